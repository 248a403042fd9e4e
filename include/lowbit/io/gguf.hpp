// Reading GGUF version 3: metadata, and tensors as spans of the file's own bytes. Format: ggml, docs/gguf.md and src/gguf.cpp.
//
// Files are hostile until checked: every length is bounded by the bytes that are left, products are checked, names and keys are unique,
// zero dimensions are refused, and offsets must be the running padded sum that the format prescribes.
#pragma once

#include <lowbit/core/bits.hpp>
#include <lowbit/format/registry.hpp>
#include <lowbit/io/gguf_metadata.hpp>

#include <algorithm>
#include <unordered_set>

namespace lowbit {

/// Name and block of a GGUF tensor type.
struct gguf_type_info {
  std::string_view name;
  std::size_t block = 1, bytes = 0;
};

/// The type with that id: lowbit's own formats, and those that it only knows the size of. Nothing for an unknown id.
constexpr std::optional<gguf_type_info> find_gguf_type(std::uint32_t id) noexcept {
  if (const auto format = find_gguf_format(static_cast<int>(id))) {
    const format_spec& s = spec_of_id(*format);
    return gguf_type_info{s.name, s.block, s.bytes};
  }
  switch (id) {
    case 9: return gguf_type_info{"q8_1", 32, 36};
    case 15: return gguf_type_info{"q8_k", 256, 292};
    case 24: return gguf_type_info{"i8", 1, 1};
    case 25: return gguf_type_info{"i16", 1, 2};
    case 26: return gguf_type_info{"i32", 1, 4};
    case 27: return gguf_type_info{"i64", 1, 8};
    case 28: return gguf_type_info{"f64", 1, 8};
    default: return std::nullopt;
  }
}

/// One tensor of a file. dims[0] is the fastest, the input dimension: a [rows, cols] matrix has dims {cols, rows}.
struct gguf_tensor {
  std::string name;
  std::uint32_t type = 0;
  std::vector<std::uint64_t> dims;
  std::span<const std::uint8_t> data;  ///< empty where only a header was read
  std::size_t offset = 0, bytes = 0;   ///< of the data in the file; for a writer they do not count

  [[nodiscard]] std::uint64_t elements() const noexcept {
    std::uint64_t n = 1;
    for (const std::uint64_t d : dims) n *= d;
    return n;
  }
};

/// The content of a file whose bytes somebody else keeps.
struct gguf_content {
  gguf_metadata metadata;
  std::vector<gguf_tensor> tensors;
  std::size_t alignment = 32;

  [[nodiscard]] const gguf_tensor* find(std::string_view name) const noexcept {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const gguf_tensor& t) { return t.name == name; });
    return at != tensors.end() ? &*at : nullptr;
  }
};

namespace detail {

/// Bytes of a tensor, checked; fails where the type is unknown or the shape is not whole blocks.
inline result<std::size_t> gguf_tensor_bytes(const gguf_tensor& t) {
  const auto named = [&](errc kind, const std::string& what) { return failure{kind, "tensor '" + t.name + "': " + what}; };
  const auto type = find_gguf_type(t.type);
  if (!type) return named(errc::unsupported, "unknown tensor type " + std::to_string(t.type));
  std::size_t n = 1;
  for (const std::uint64_t d : t.dims) {
    if (d == 0) return named(errc::shape, "a dimension is 0");
    const auto product = checked_mul(n, static_cast<std::size_t>(d));
    if (!product || *product > static_cast<std::size_t>(INT64_MAX)) return named(errc::shape, "the number of elements overflows");
    n = *product;
  }
  if (!t.dims.empty() && t.dims[0] % type->block != 0)
    return named(errc::shape, "its rows of " + std::to_string(t.dims[0]) + " are not whole blocks of " + std::string(type->name));
  const auto bytes = checked_mul(n / type->block, type->bytes);
  if (!bytes || (t.dims.empty() && type->block != 1)) return named(errc::shape, "the size overflows");
  return *bytes;
}

}  // namespace detail

/// Parses what comes before the data of a file of `file_size` bytes. `beginning` may be the whole file or only its first bytes; where those
/// do not hold the header it fails (truncated).
inline result<gguf_content> read_gguf_header(std::span<const std::uint8_t> beginning, std::size_t file_size) {
  byte_reader in(beginning);
  const auto magic = in.take(4);
  if (!in.ok() || std::memcmp(magic.data(), "GGUF", 4) != 0) return failure{errc::bad_magic, "not a GGUF file (no magic number)"};
  const auto version = in.read<std::uint32_t>();
  const failure truncated{errc::truncated, "the GGUF header ends before its last field"};
  if (!in.ok()) return truncated;
  if (version != 0 && (version & 0xffffu) == 0) return failure{errc::bad_magic, "the GGUF file is big-endian"};
  if (version != 2 && version != 3) return failure{errc::bad_magic, "GGUF version " + std::to_string(version) + " (2 and 3 are read)"};
  const auto tensor_count = in.read<std::uint64_t>(), key_count = in.read<std::uint64_t>();
  // The shortest key takes 8 + 1 + 4 + 1 bytes, the shortest tensor 8 + 1 + 4 + 4 + 8.
  if (!in.ok() || key_count > in.left() / 14 || tensor_count > in.left() / 25) return truncated;

  gguf_content content;
  std::unordered_set<std::string_view> seen;
  for (std::uint64_t i = 0; i < key_count; ++i) {
    const std::string_view key = in.read_string();
    if (!in.ok()) return truncated;
    if (key.empty()) return failure{errc::malformed, "a metadata key is empty"};
    if (!seen.insert(key).second) return failure{errc::malformed, "metadata key '" + std::string(key) + "' appears twice"};
    auto value = detail::read_gguf_value(in, key);
    if (!in.ok()) return truncated;
    if (!value) return std::move(value).error();
    content.metadata.set_new(key, *std::move(value));
  }
  if (content.metadata.find("general.alignment") != nullptr) {
    const auto alignment = content.metadata.get<std::uint32_t>("general.alignment");
    if (!alignment) return alignment.error();
    if (*alignment == 0 || (*alignment & (*alignment - 1)) != 0)
      return failure{errc::malformed, "general.alignment is " + std::to_string(*alignment) + ", not a power of two"};
    content.alignment = *alignment;
  }

  seen.clear();
  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    const std::string_view name = in.read_string();
    const auto rank = in.read<std::uint32_t>();
    if (!in.ok()) return truncated;
    if (name.empty() || name.size() >= 64) return failure{errc::malformed, "a tensor name is empty or has 64 bytes or more"};
    if (!seen.insert(name).second) return failure{errc::malformed, "tensor '" + std::string(name) + "' appears twice"};
    if (rank > 4) return failure{errc::shape, "tensor '" + std::string(name) + "' has " + std::to_string(rank) + " dimensions"};
    gguf_tensor t;
    t.name = name;
    for (std::uint32_t d = 0; d < rank; ++d) t.dims.push_back(in.read<std::uint64_t>());
    t.type = in.read<std::uint32_t>();
    offsets.push_back(in.read<std::uint64_t>());
    if (!in.ok()) return truncated;
    content.tensors.push_back(std::move(t));
  }

  const std::size_t padding = (content.alignment - in.position() % content.alignment) % content.alignment;
  const std::size_t start = in.position() + padding;
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < content.tensors.size(); ++i) {
    gguf_tensor& t = content.tensors[i];
    const auto bytes = detail::gguf_tensor_bytes(t);
    if (!bytes) return bytes.error();
    if (offsets[i] != expected)
      return failure{errc::malformed, "tensor '" + t.name + "': offset " + std::to_string(offsets[i]) + " where " + std::to_string(expected) + " was due"};
    if (start > file_size || offsets[i] > file_size - start || *bytes > file_size - start - offsets[i])
      return failure{errc::truncated, "tensor '" + t.name + "': its data end after the file"};
    t.offset = start + static_cast<std::size_t>(offsets[i]);
    t.bytes = *bytes;
    expected = round_up(static_cast<std::size_t>(offsets[i]) + *bytes, content.alignment);
  }
  return content;
}

/// Parses a whole file. The spans in the result point into `file`.
inline result<gguf_content> read_gguf(std::span<const std::uint8_t> file) {
  auto content = read_gguf_header(file, file.size());
  if (content)
    for (gguf_tensor& t : content->tensors) t.data = file.subspan(t.offset, t.bytes);
  return content;
}

}  // namespace lowbit
