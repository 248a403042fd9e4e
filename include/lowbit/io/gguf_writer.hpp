// Writing GGUF version 3 as a stream: metadata and tensor shapes first, then each tensor's bytes in turn. Never holds a tensor.
#pragma once

#include <lowbit/io/gguf_model.hpp>
#include <lowbit/io/tensor_stream.hpp>

namespace lowbit {

/// Declares a file, then fills it. The file appears under its name only when commit() succeeds.
class gguf_writer : public tensor_stream {
 public:
  /// Writes the header. Of each tensor name, type and dims count. Fails where a name or shape is not valid, or the file cannot be written.
  static result<gguf_writer> create(const std::filesystem::path& target, const gguf_metadata& metadata,
                                    const std::vector<gguf_tensor>& tensors) {
    const std::size_t alignment = metadata.find<std::uint32_t>("general.alignment").value_or(32);
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) return failure{errc::bad_value, "general.alignment is not a power of two"};
    std::string head = "GGUF";
    put<std::uint32_t>(head, 3);
    put<std::uint64_t>(head, tensors.size());
    put<std::uint64_t>(head, metadata.entries().size());
    for (const auto& e : metadata.entries()) {
      put_string(head, e.key);
      put_value(head, e.value);
    }
    std::uint64_t offset = 0;
    std::vector<tensor_bytes> pending;
    std::unordered_set<std::string_view> seen;
    for (const gguf_tensor& t : tensors) {
      const auto bytes = detail::gguf_tensor_bytes(t);
      if (!bytes) return bytes.error();
      if (t.name.empty() || t.name.size() >= 64 || t.dims.size() > 4 || !seen.insert(t.name).second)
        return failure{errc::bad_value, "tensor '" + t.name + "' cannot be written: GGUF wants unique names of 1 to 63 bytes and at most 4 dimensions"};
      put_string(head, t.name);
      put<std::uint32_t>(head, static_cast<std::uint32_t>(t.dims.size()));
      for (const std::uint64_t d : t.dims) put<std::uint64_t>(head, d);
      put<std::uint32_t>(head, t.type);
      put<std::uint64_t>(head, offset);
      offset = round_up(static_cast<std::size_t>(offset) + *bytes, alignment);
      pending.push_back({t.name, *bytes});
    }
    auto stream = begin(target, head, std::move(pending), alignment);
    if (!stream) return std::move(stream).error();
    return gguf_writer(*std::move(stream));
  }

 private:
  explicit gguf_writer(tensor_stream stream) : tensor_stream(std::move(stream)) {}

  template <class T>
  static void put(std::string& out, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    out.append(bytes, sizeof(T));
  }
  static void put_string(std::string& out, std::string_view s) {
    put<std::uint64_t>(out, s.size());
    out.append(s);
  }
  template <class T>
  static void put_scalar(std::string& out, const T& v) {
    if constexpr (std::is_same_v<T, std::string>) put_string(out, v);
    else put(out, v);
  }
  static void put_value(std::string& out, const gguf_value& value) {
    if (const auto* const scalar = std::get_if<gguf_scalar>(&value)) {
      put<std::int32_t>(out, detail::gguf_type_of_index(scalar->index()));
      std::visit([&](const auto& v) { put_scalar(out, v); }, *scalar);
      return;
    }
    const gguf_array& array = std::get<gguf_array>(value);
    put<std::int32_t>(out, detail::gguf_array_type);
    put<std::int32_t>(out, detail::gguf_type_of_index(array.index()));
    std::visit(
        [&](const auto& all) {
          put<std::uint64_t>(out, all.size());
          for (const auto& v : all) put_scalar(out, v);
        },
        array);
  }
};

/// The same in several files, which gguf_model and llama.cpp read as one: as many tensors in each as fit.
class gguf_split_writer {
 public:
  /// Files prefix-00001-of-….gguf beside each other, none with more than `most_bytes` of tensors unless a single one is larger.
  static result<gguf_split_writer> create(const std::filesystem::path& prefix, const gguf_metadata& metadata,
                                          const std::vector<gguf_tensor>& tensors, std::size_t most_bytes) {
    gguf_split_writer w;
    std::size_t filled = 0;
    std::vector<std::vector<gguf_tensor>> parts(1);
    for (const gguf_tensor& t : tensors) {
      const auto bytes = detail::gguf_tensor_bytes(t);
      if (!bytes) return bytes.error();
      if (filled != 0 && (*bytes > most_bytes || filled > most_bytes - *bytes)) {
        parts.emplace_back();
        filled = 0;
      }
      parts.back().push_back(t);
      filled += *bytes;
    }
    if (parts.size() > 65535) return failure{errc::unsupported, "a GGUF model has at most 65535 parts, not " + std::to_string(parts.size())};
    for (std::size_t i = 0; i < parts.size(); ++i) {
      gguf_metadata m = i == 0 ? metadata : gguf_metadata();
      if (const auto alignment = metadata.find<std::uint32_t>("general.alignment")) m.set("general.alignment", *alignment);
      m.set("split.no", static_cast<std::uint16_t>(i));
      m.set("split.count", static_cast<std::uint16_t>(parts.size()));
      m.set("split.tensors.count", static_cast<std::int32_t>(tensors.size()));
      auto part = gguf_writer::create(prefix.parent_path() / gguf_split_name(prefix.filename().string(), i, parts.size()), m, parts[i]);
      if (!part) return std::move(part).error();
      w.parts_.push_back(*std::move(part));
    }
    w.skip_complete();
    return w;
  }

  /// As tensor_stream has it.
  status append(std::span<const std::uint8_t> bytes) {
    if (bytes.empty()) return done{};
    LOWBIT_EXPECTS(at_ < parts_.size());
    status s = parts_[at_].append(bytes);
    skip_complete();
    return s;
  }
  /// Makes all files appear. Expects that every declared tensor was appended.
  status commit() {
    for (gguf_writer& part : parts_)
      if (status s = part.commit(); !s) return s;
    return done{};
  }
  [[nodiscard]] std::size_t parts() const noexcept { return parts_.size(); }
  /// Bytes of all files so far.
  [[nodiscard]] std::size_t written() const noexcept {
    std::size_t n = 0;
    for (const gguf_writer& part : parts_) n += part.written();
    return n;
  }

 private:
  gguf_split_writer() = default;
  void skip_complete() noexcept {
    while (at_ < parts_.size() && parts_[at_].complete()) ++at_;
  }
  std::vector<gguf_writer> parts_;
  std::size_t at_ = 0;
};

}  // namespace lowbit
