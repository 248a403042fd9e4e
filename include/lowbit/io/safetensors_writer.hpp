// Writing safetensors as a stream: all shapes first, then each tensor's bytes in the writer's order. Never holds a tensor.
#pragma once

#include <lowbit/io/safetensors.hpp>
#include <lowbit/io/tensor_stream.hpp>

#include <unordered_set>

namespace lowbit {

/// In which order tensors lie in the file. Readers take any.
enum class tensor_order : std::uint8_t {
  sorted,      ///< as the reference writes them: the widest element types first, then by name
  as_declared  ///< so that the parts of one weight can be written while it is at hand
};

/// Declares a file, then fills it in the order of `order()`. The file appears under its name only when commit() succeeds.
class safetensors_writer : public tensor_stream {
 public:
  /// Writes the header. Of each tensor name, dtype and shape count. `metadata` usually holds {"format": "pt"}. Fails,
  /// naming the tensor, where a name is taken or __metadata__, or a size is not to be had; and where readers would refuse so long a header.
  static result<safetensors_writer> create(const std::filesystem::path& target, const std::map<std::string, std::string>& metadata,
                                           std::vector<safetensor> tensors, tensor_order how = tensor_order::sorted) {
    std::vector<tensor_bytes> pending;
    for (const safetensor& t : tensors)
      if (!safetensors_bits(t.dtype)) return failure{errc::bad_value, "tensor '" + t.name + "': unknown dtype " + t.dtype};
    if (how == tensor_order::sorted) std::stable_sort(tensors.begin(), tensors.end(), [](const safetensor& a, const safetensor& b) {
      const unsigned wide_a = *safetensors_bits(a.dtype), wide_b = *safetensors_bits(b.dtype);
      return wide_a != wide_b ? wide_a > wide_b : a.name < b.name;
    });
    // The header is put together as text: an ordered_json looks every new key up in all those before. Names from outside may hold anything:
    // bytes that are not UTF-8 are replaced rather than thrown over, so that two names may become one.
    using json = nlohmann::ordered_json;
    const auto dump = [](const json& v) { return v.dump(-1, ' ', false, json::error_handler_t::replace); };
    std::string text = metadata.empty() ? "{" : "{\"__metadata__\":" + dump(metadata);
    std::unordered_set<std::string> seen;
    std::size_t at = 0;
    for (const safetensor& t : tensors) {
      std::size_t bits = *safetensors_bits(t.dtype);
      for (const std::uint64_t d : t.shape) {
        const auto product = checked_mul(bits, static_cast<std::size_t>(d));
        if (!product) return failure{errc::shape, "tensor '" + t.name + "': its size overflows"};
        bits = *product;
      }
      if (bits % 8 != 0) return failure{errc::shape, "tensor '" + t.name + "': its size is not whole bytes"};
      const auto end = checked_add(at, bits / 8);
      if (!end) return failure{errc::shape, "tensor '" + t.name + "': the size of the file overflows"};
      const std::string name = dump(t.name);
      if (t.name == "__metadata__") return failure{errc::bad_value, "no tensor can be called '__metadata__'"};
      if (!seen.insert(name).second) return failure{errc::bad_value, "tensor '" + t.name + "' is declared twice"};
      if (text.size() > 1) text += ',';
      text += name + ':' + dump({{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {at, *end}}});
      pending.push_back({t.name, bits / 8});
      at = *end;
    }
    text += '}';
    text.resize(round_up(text.size(), 8), ' ');
    if (text.size() > detail::safetensors_most_header)
      return failure{errc::bad_value, "the header of " + target.string() + " would have " + std::to_string(text.size()) + " bytes, more than safetensors may have"};
    std::string head(sizeof(std::uint64_t), '\0');
    const auto length = static_cast<std::uint64_t>(text.size());
    std::memcpy(head.data(), &length, sizeof length);
    auto stream = begin(target, head + text, std::move(pending), 1);
    if (!stream) return std::move(stream).error();
    return safetensors_writer(*std::move(stream));
  }

 private:
  explicit safetensors_writer(tensor_stream stream) : tensor_stream(std::move(stream)) {}
};

}  // namespace lowbit
