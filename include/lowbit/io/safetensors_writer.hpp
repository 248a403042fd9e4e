// Writing safetensors as a stream: all shapes first, then each tensor's bytes in the writer's order. Never holds a tensor.
#pragma once

#include <lowbit/io/file_writer.hpp>
#include <lowbit/io/safetensors.hpp>

namespace lowbit {

/// In which order tensors lie in the file. Readers take any.
enum class tensor_order : std::uint8_t {
  sorted,      ///< as the reference writes them: the widest element types first, then by name
  as_declared  ///< so that the parts of one weight can be written while it is at hand
};

/// Declares a file, then fills it in the order of `order()`. The file appears under its name only when commit() succeeds.
class safetensors_writer {
 public:
  /// Writes the header. Of each tensor name, dtype and shape count. `metadata` usually holds {"format": "pt"}.
  static result<safetensors_writer> create(const std::filesystem::path& target, const std::map<std::string, std::string>& metadata,
                                           std::vector<safetensor> tensors, tensor_order how = tensor_order::sorted) {
    safetensors_writer w;
    for (const safetensor& t : tensors)
      if (!safetensors_bits(t.dtype)) return failure{errc::bad_value, "tensor '" + t.name + "': unknown dtype " + t.dtype};
    if (how == tensor_order::sorted) std::stable_sort(tensors.begin(), tensors.end(), [](const safetensor& a, const safetensor& b) {
      const unsigned wide_a = *safetensors_bits(a.dtype), wide_b = *safetensors_bits(b.dtype);
      return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
    });
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::size_t at = 0;
    for (const safetensor& t : tensors) {
      std::size_t bits = *safetensors_bits(t.dtype);
      for (const std::uint64_t d : t.shape) {
        const auto product = checked_mul(bits, static_cast<std::size_t>(d));
        if (!product) return failure{errc::shape, "tensor '" + t.name + "': its size overflows"};
        bits = *product;
      }
      if (bits % 8 != 0) return failure{errc::shape, "tensor '" + t.name + "': its size is not whole bytes"};
      if (header.contains(t.name)) return failure{errc::bad_value, "tensor '" + t.name + "' is declared twice"};
      header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {at, at + bits / 8}}};
      w.pending_.push_back({t.name, bits / 8});
      at += bits / 8;
    }
    // Names from outside may hold anything: bytes that are not UTF-8 are replaced rather than thrown over.
    std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    text.resize(round_up(text.size(), 8), ' ');
    auto file = file_writer::create(target);
    if (!file) return std::move(file).error();
    w.file_.emplace(*std::move(file));
    if (status s = w.file_->append_number(static_cast<std::uint64_t>(text.size())); !s) return std::move(s).error();
    if (status s = w.file_->append(std::string_view(text)); !s) return std::move(s).error();
    w.skip_empty();
    return w;
  }

  /// The tensors' names in the order in which their data are to come.
  [[nodiscard]] std::vector<std::string> order() const {
    std::vector<std::string> names;
    for (const auto& p : pending_) names.push_back(p.name);
    return names;
  }
  /// Appends bytes of the current tensor, in pieces if that is easier. Tensors of no bytes need no call.
  status append(std::span<const std::uint8_t> bytes) {
    if (bytes.empty()) return done{};
    LOWBIT_EXPECTS(next_ < pending_.size() && bytes.size() <= pending_[next_].bytes - filled_);
    if (status s = file_->append(bytes); !s) return s;
    filled_ += bytes.size();
    if (filled_ == pending_[next_].bytes) {
      ++next_;
      filled_ = 0;
      skip_empty();
    }
    return done{};
  }
  /// Finishes the file. Expects that every declared tensor was appended.
  status commit() {
    LOWBIT_EXPECTS(next_ == pending_.size());
    return file_->commit();
  }
  [[nodiscard]] std::size_t written() const noexcept { return file_->written(); }

 private:
  struct tensor_bytes {
    std::string name;
    std::size_t bytes;
  };
  safetensors_writer() = default;
  void skip_empty() noexcept {
    while (next_ < pending_.size() && pending_[next_].bytes == 0) ++next_;
  }

  std::optional<file_writer> file_;
  std::vector<tensor_bytes> pending_;
  std::size_t next_ = 0, filled_ = 0;
};

}  // namespace lowbit
