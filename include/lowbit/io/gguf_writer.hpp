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
    const auto plan = lay_out(metadata, tensors);
    if (!plan) return plan.error();
    return open(target, *plan);
  }

 private:
  friend class gguf_split_writer;
  static constexpr std::size_t most_alignment = std::size_t{1} << 16;  // the format allows 2 GiB, all of it padding
  /// What a file begins with and which tensors follow.
  struct layout {
    std::string head;
    std::vector<tensor_bytes> tensors;
    std::size_t alignment;
  };

  explicit gguf_writer(tensor_stream stream) : tensor_stream(std::move(stream)) {}

  static result<layout> lay_out(const gguf_metadata& metadata, const std::vector<gguf_tensor>& tensors) {
    std::size_t alignment = 32;
    if (metadata.find("general.alignment") != nullptr) {
      const auto declared = metadata.get<std::uint32_t>("general.alignment");
      if (!declared) return declared.error();
      alignment = *declared;
      if (alignment == 0 || (alignment & (alignment - 1)) != 0) return failure{errc::bad_value, "general.alignment is not a power of two"};
      if (alignment > most_alignment)
        return failure{errc::bad_value, "general.alignment is " + std::to_string(alignment) + ", more than the " + std::to_string(most_alignment) + " that are written"};
    }
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
      const auto end = checked_add(static_cast<std::size_t>(offset), *bytes);
      if (!end || !checked_add(*end, alignment)) return failure{errc::shape, "tensor '" + t.name + "': the size of the file overflows"};
      offset = round_up(*end, alignment);
      pending.push_back({t.name, *bytes});
    }
    return layout{std::move(head), std::move(pending), alignment};
  }
  static result<gguf_writer> open(const std::filesystem::path& target, const layout& plan) {
    auto stream = begin(target, plan.head, plan.tensors, plan.alignment);
    if (!stream) return std::move(stream).error();
    return gguf_writer(*std::move(stream));
  }

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

/// The same in several files, which gguf_model and llama.cpp read as one: as many tensors in each as fit. One is open at a time, and none
/// has its name before all are whole.
class gguf_split_writer {
 public:
  /// Files prefix-00001-of-….gguf beside each other, none with more than `most_bytes` of tensors unless a single one is larger.
  static result<gguf_split_writer> create(const std::filesystem::path& prefix, const gguf_metadata& metadata,
                                          const std::vector<gguf_tensor>& tensors, std::size_t most_bytes) {
    std::size_t filled = 0;
    std::vector<std::vector<gguf_tensor>> parts(1);
    std::unordered_set<std::string_view> seen;
    for (const gguf_tensor& t : tensors) {
      const auto bytes = detail::gguf_tensor_bytes(t);
      if (!bytes) return bytes.error();
      if (!seen.insert(t.name).second) return failure{errc::bad_value, "tensor '" + t.name + "' is declared twice"};
      if (filled != 0 && (*bytes > most_bytes || filled > most_bytes - *bytes)) {
        parts.emplace_back();
        filled = 0;
      }
      parts.back().push_back(t);
      filled += *bytes;
    }
    if (parts.size() > 65535) return failure{errc::unsupported, "a GGUF model has at most 65535 parts, not " + std::to_string(parts.size())};
    std::vector<gguf_writer::layout> plans;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      gguf_metadata m = i == 0 ? metadata : gguf_metadata();
      if (const auto alignment = metadata.find<std::uint32_t>("general.alignment")) m.set("general.alignment", *alignment);
      m.set("split.no", static_cast<std::uint16_t>(i));
      m.set("split.count", static_cast<std::uint16_t>(parts.size()));
      m.set("split.tensors.count", static_cast<std::int32_t>(tensors.size()));
      auto plan = gguf_writer::lay_out(m, parts[i]);
      if (!plan) return std::move(plan).error();
      plans.push_back(*std::move(plan));
    }
    auto first = gguf_writer::open(name_of(prefix, 0, plans.size()), plans[0]);
    if (!first) return std::move(first).error();
    return gguf_split_writer(prefix, std::move(plans), *std::move(first));
  }

  /// As tensor_stream has it.
  status append(std::span<const std::uint8_t> bytes) {
    if (bytes.empty()) return done{};
    if (current_.complete())
      if (status s = begin_next(); !s) return s;
    return current_.append(bytes);
  }
  /// Makes all files appear, or none. Expects that every declared tensor was appended.
  status commit() {
    LOWBIT_EXPECTS(whole_.size() + 1 == plans_.size());
    if (status s = finish_current(); !s) return s;
    return file_writer::commit_all(std::move(whole_));
  }
  [[nodiscard]] std::size_t parts() const noexcept { return plans_.size(); }
  /// Bytes of all files so far.
  [[nodiscard]] std::size_t written() const noexcept { return whole_bytes_ + current_.written(); }

 private:
  gguf_split_writer(std::filesystem::path prefix, std::vector<gguf_writer::layout> plans, gguf_writer first)
      : prefix_(std::move(prefix)), plans_(std::move(plans)), current_(std::move(first)) {}
  static std::filesystem::path name_of(const std::filesystem::path& prefix, std::size_t part, std::size_t parts) {
    return prefix.parent_path() / gguf_split_name(prefix.filename().string(), part, parts);
  }
  status begin_next() {
    const std::size_t part = whole_.size() + 1;
    LOWBIT_EXPECTS(part < plans_.size());
    auto next = gguf_writer::open(name_of(prefix_, part, plans_.size()), plans_[part]);
    if (!next) return std::move(next).error();
    if (status s = finish_current(); !s) return s;
    current_ = *std::move(next);
    return done{};
  }
  status finish_current() {
    auto file = std::move(current_).finish();
    if (!file) return std::move(file).error();
    whole_bytes_ += file->written();
    whole_.push_back(*std::move(file));
    return done{};
  }

  std::filesystem::path prefix_;
  std::vector<gguf_writer::layout> plans_;
  std::vector<file_writer> whole_;  // but under their temporary names
  std::size_t whole_bytes_ = 0;
  gguf_writer current_;
};

}  // namespace lowbit
