// Reading safetensors: a JSON header, then raw tensors. Rules: safetensors' src/tensor.rs (Metadata::validate).
//
// A file is valid only if the tensors' byte ranges, sorted, start at 0, leave no hole, do not overlap, have the size that shape and type
// say, and end where the file ends. Sharded models are read through their index, whose file names are not trusted.
#pragma once

#include <lowbit/core/bits.hpp>
#include <lowbit/io/byte_reader.hpp>
#include <lowbit/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace lowbit {

/// Bits of an element of a safetensors type; nothing for an unknown one.
inline std::optional<unsigned> safetensors_bits(std::string_view dtype) noexcept {
  struct entry {
    std::string_view name;
    unsigned bits;
  };
  static constexpr entry known[] = {{"BOOL", 8},       {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},
                                    {"F8_E5M2", 8},    {"F8_E4M3", 8},     {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8},          {"F8_E5M2FNUZ", 8},
                                    {"I16", 16},       {"U16", 16},        {"F16", 16},        {"BF16", 16},   {"I32", 32}, {"U32", 32},
                                    {"F32", 32},       {"C64", 64},        {"F64", 64},        {"I64", 64},    {"U64", 64}};
  for (const entry& e : known)
    if (e.name == dtype) return e.bits;
  return std::nullopt;
}

/// One tensor; the last dimension is the fastest.
struct safetensor {
  std::string name;
  std::string dtype;   ///< "F32", "BF16", "U8", …
  std::vector<std::uint64_t> shape;
  std::span<const std::uint8_t> data;
  std::size_t offset = 0, bytes = 0;  ///< of the data in their file
};

/// The content of a file whose bytes somebody else keeps. Tensors in the order of their data.
struct safetensors_content {
  std::vector<safetensor> tensors;
  std::map<std::string, std::string> metadata;

  [[nodiscard]] const safetensor* find(std::string_view name) const noexcept {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const safetensor& t) { return t.name == name; });
    return at != tensors.end() ? &*at : nullptr;
  }
};

namespace detail {

/// The longest header, the reference's MAX_HEADER_SIZE.
inline constexpr std::size_t safetensors_most_header = 100'000'000;

/// How deep arrays and objects are nested in a text, valid JSON or not.
inline int json_nesting(std::string_view text) noexcept {
  int depth = 0, most = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (quoted) {
      if (text[i] == '\\') ++i;
      else if (text[i] == '"') quoted = false;
    } else if (text[i] == '"') quoted = true;
    else if (text[i] == '{' || text[i] == '[') most = std::max(most, ++depth);
    else if (text[i] == '}' || text[i] == ']') --depth;
  }
  return most;
}

/// Looks for a key that an object repeats, event by event.
template <class Json>
struct repeated_key : nlohmann::json_sax<Json> {
  std::vector<std::set<std::string>> open;
  std::optional<std::string> found;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(typename Json::number_integer_t) override { return true; }
  bool number_unsigned(typename Json::number_unsigned_t) override { return true; }
  bool number_float(typename Json::number_float_t, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(typename Json::binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    open.emplace_back();
    return true;
  }
  bool key(std::string& name) override {
    if (open.back().insert(name).second) return true;
    found = name;
    return false;
  }
  bool end_object() override {
    open.pop_back();
    return true;
  }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }
};

/// Parses JSON that is not nested deeper than `deepest` and repeats no key in an object. Repeated keys are looked for in a pass of its own:
/// nlohmann's parser with a callback takes quadratic time in the members of an object. So does ordered_json, which looks keys up one by one:
/// where there may be many of them, take nlohmann::json.
template <class Json = nlohmann::ordered_json>
result<Json> parse_json(std::string_view text, const std::string& what, int deepest = 32) {
  if (text.find('\0') != text.npos) return failure{errc::malformed, what + " is not valid JSON: it has a byte of zero"};  // nlohmann's end of text
  // Nesting is bounded before parsing: the parser's own stack is the thing to protect.
  if (json_nesting(text) > deepest) return failure{errc::malformed, what + " is nested too deeply"};
  repeated_key<Json> repeated;
  const bool valid = Json::sax_parse(text.begin(), text.end(), &repeated);
  if (repeated.found) return failure{errc::malformed, what + " has the key '" + *repeated.found + "' twice"};
  auto json = valid ? Json::parse(text.begin(), text.end(), nullptr, false) : Json(Json::value_t::discarded);
  if (json.is_discarded()) return failure{errc::malformed, what + " is not valid JSON"};
  return json;
}

template <class Json>
std::optional<std::uint64_t> json_size(const Json& v) {
  if (!v.is_number_integer() || (!v.is_number_unsigned() && v.template get<std::int64_t>() < 0)) return std::nullopt;
  return v.template get<std::uint64_t>();
}

}  // namespace detail

/// Where the data of a file of `file_size` bytes begin, from its first eight.
inline result<std::size_t> safetensors_data_begin(std::span<const std::uint8_t> first, std::size_t file_size) {
  byte_reader in(first);
  const auto length = in.read<std::uint64_t>();
  if (!in.ok()) return failure{errc::truncated, "the safetensors file is shorter than its header's length"};
  if (length > detail::safetensors_most_header) return failure{errc::bad_magic, "not a safetensors file (a header of " + std::to_string(length) + " bytes)"};
  if (length > file_size - in.position()) return failure{errc::truncated, "the safetensors header ends after the file"};
  return in.position() + static_cast<std::size_t>(length);
}

/// Parses what comes before the data in a file of `file_size` bytes. The tensors' `data` are empty.
inline result<safetensors_content> read_safetensors_header(std::span<const std::uint8_t> head, std::size_t file_size) {
  constexpr std::size_t number = sizeof(std::uint64_t);
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + number, head.size() - number);
  if (text.empty() || text[0] != '{') return failure{errc::bad_magic, "not a safetensors file (the header does not begin with '{')"};
  auto parsed = detail::parse_json<nlohmann::json>(text, "the safetensors header", 8);
  if (!parsed) return std::move(parsed).error();
  const std::size_t data = file_size - head.size();

  struct range {
    std::uint64_t begin, end;
  };
  safetensors_content content;
  std::vector<range> ranges;
  for (const auto& [name, info] : parsed->items()) {
    const auto bad = [&, &tensor = name](const std::string& what) { return failure{errc::malformed, "tensor '" + tensor + "': " + what}; };
    if (name == "__metadata__") {
      if (info.is_null()) continue;
      if (!info.is_object()) return failure{errc::malformed, "__metadata__ is not an object"};
      for (const auto& [key, value] : info.items()) {
        if (!value.is_string()) return failure{errc::malformed, "__metadata__ '" + key + "' is not a string"};
        content.metadata.emplace(key, value.get<std::string>());
      }
      continue;
    }
    if (!info.is_object() || !info.contains("dtype") || !info.contains("shape") || !info.contains("data_offsets"))  // the reference ignores others
      return bad("needs dtype, shape and data_offsets");
    if (!info["dtype"].is_string() || !info["shape"].is_array() || !info["data_offsets"].is_array() || info["data_offsets"].size() != 2)
      return bad("dtype, shape or data_offsets is of the wrong kind");
    safetensor t;
    t.name = name;
    t.dtype = info["dtype"].get<std::string>();
    const auto bits = safetensors_bits(t.dtype);
    if (!bits) return failure{errc::unsupported, "tensor '" + name + "': unknown dtype " + t.dtype};
    std::size_t elements = 1;
    for (const auto& d : info["shape"]) {
      const auto size = detail::json_size(d);
      const auto product = size ? checked_mul(elements, static_cast<std::size_t>(*size)) : std::nullopt;
      if (!product) return failure{errc::shape, "tensor '" + name + "': its shape is not of sizes, or overflows"};
      t.shape.push_back(*size);
      elements = *product;
    }
    const auto total = checked_mul(elements, *bits);
    if (!total || *total % 8 != 0) return failure{errc::shape, "tensor '" + name + "': its size overflows, or is not whole bytes"};
    const auto begin = detail::json_size(info["data_offsets"][0]), end = detail::json_size(info["data_offsets"][1]);
    if (!begin || !end || *begin > *end) return bad("its data_offsets are not a range");
    if (*end > data) return failure{errc::truncated, "tensor '" + name + "': its data end after the file"};
    if (*end - *begin != *total / 8)
      return failure{errc::shape, "tensor '" + name + "': shape and dtype want " + std::to_string(*total / 8) + " bytes, data_offsets hold " +
                                      std::to_string(*end - *begin)};
    t.offset = head.size() + static_cast<std::size_t>(*begin);
    t.bytes = static_cast<std::size_t>(*end - *begin);
    content.tensors.push_back(std::move(t));
    ranges.push_back({*begin, *end});
  }
  std::vector<std::size_t> order(ranges.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(ranges[a].begin, ranges[a].end) < std::pair(ranges[b].begin, ranges[b].end);
  });
  std::uint64_t at = 0;
  std::vector<safetensor> sorted;
  for (const std::size_t i : order) {
    if (ranges[i].begin != at)
      return failure{errc::malformed, "tensor '" + content.tensors[i].name + "': its data " + (ranges[i].begin < at ? "overlap" : "leave a hole after") + " those before"};
    at = ranges[i].end;
    sorted.push_back(std::move(content.tensors[i]));
  }
  if (at != data) return failure{errc::malformed, "the safetensors file has " + std::to_string(data - at) + " bytes after its last tensor"};
  content.tensors = std::move(sorted);
  return content;
}

/// Parses a whole file. The spans in the result point into `file`.
inline result<safetensors_content> read_safetensors(std::span<const std::uint8_t> file) {
  const auto begin = safetensors_data_begin(file, file.size());
  if (!begin) return begin.error();
  auto content = read_safetensors_header(file.first(*begin), file.size());
  if (!content) return content;
  for (safetensor& t : content->tensors) t.data = file.subspan(t.offset, t.bytes);
  return content;
}

/// Which file each tensor of a sharded model is in: the weight_map of its index, whose file names are not trusted. `what` names the index
/// in failures.
inline result<std::map<std::string, std::string>> read_shard_index(std::string_view text, const std::string& what) {
  const auto json = detail::parse_json<nlohmann::json>(text, what);
  if (!json) return json.error();
  if (!json->is_object() || !json->contains("weight_map") || !(*json)["weight_map"].is_object())
    return failure{errc::malformed, what + " has no weight_map"};
  std::map<std::string, std::string> where;
  for (const auto& [tensor, file] : (*json)["weight_map"].items()) {
    const auto* const name = file.template get_ptr<const std::string*>();
    if (name == nullptr || name->empty() || name->find_first_of(std::string_view("/\\\0", 3)) != name->npos || *name == "." || *name == "..")
      return failure{errc::malformed, what + ": '" + (name != nullptr ? *name : std::string()) + "' is not the name of a file beside it"};
    where.emplace(tensor, *name);
  }
  if (where.empty()) return failure{errc::malformed, what + " names no tensors"};
  return where;
}

/// A model in one file or several: only headers are read, and the bytes of tensors are mapped when somebody asks for them.
class safetensors_model {
 public:
  struct tensor : safetensor {  ///< `data` is empty
    std::size_t file = 0;       ///< which of the files it is in
  };

  /// `path` is a .safetensors file, an index (.json), or a folder that holds model.safetensors or its index: of both the former, as
  /// transformers takes it.
  static result<safetensors_model> open(std::filesystem::path path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
      const auto file = path / "model.safetensors", index = path / "model.safetensors.index.json";
      path = std::filesystem::exists(file, ignored) || !std::filesystem::exists(index, ignored) ? file : index;
    }
    safetensors_model model;
    if (path.extension() != ".json") {
      if (status s = model.add(path); !s) return std::move(s).error();
      return model;
    }
    auto index = mapped_file::open(path);
    if (!index) return std::move(index).error();
    const auto bytes = index->bytes();
    const auto where = read_shard_index({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
    if (!where) return where.error();
    std::set<std::string> files;
    for (const auto& [tensor, file] : *where) files.insert(file);
    std::map<std::string, std::size_t> numbers;
    for (const std::string& name : files) {
      numbers.emplace(name, model.files_.size());
      if (status s = model.add(path.parent_path() / name); !s) return std::move(s).error();
    }
    for (const auto& [name, file] : *where) {
      const tensor* const t = model.find(name);
      if (t == nullptr || t->file != numbers.at(file)) return failure{errc::not_found, path.string() + ": tensor '" + name + "' is not in " + file};
    }
    return model;
  }

  [[nodiscard]] const std::vector<tensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const tensor* find(std::string_view name) const noexcept {
    const auto at = by_name_.find(name);
    return at != by_name_.end() ? &tensors_[at->second] : nullptr;
  }

  /// Bytes [first, first + bytes) of a tensor. Expects a range inside it.
  [[nodiscard]] result<mapped_file> map(const tensor& t, std::size_t first, std::size_t bytes) const {
    LOWBIT_EXPECTS(first <= t.bytes && bytes <= t.bytes - first);
    return files_[t.file].map(t.offset + first, bytes);
  }
  [[nodiscard]] result<mapped_file> map(const tensor& t) const { return map(t, 0, t.bytes); }

 private:
  status add(const std::filesystem::path& path) {
    auto file = open_file::open(path);
    if (!file) return std::move(file).error();
    const auto in_file = [&](const failure& f) { return failure{f.kind, path.string() + ": " + f.message}; };
    const auto first = file->map(0, std::min(file->size(), sizeof(std::uint64_t)));
    if (!first) return first.error();
    const auto begin = safetensors_data_begin(first->bytes(), file->size());
    if (!begin) return in_file(begin.error());
    const auto head = file->map(0, *begin);
    if (!head) return head.error();
    auto content = read_safetensors_header(head->bytes(), file->size());
    if (!content) return in_file(content.error());
    for (safetensor& t : content->tensors) {
      if (!by_name_.emplace(t.name, tensors_.size()).second) return failure{errc::malformed, path.string() + ": tensor '" + t.name + "' is in two files"};
      tensors_.push_back({std::move(t), files_.size()});
    }
    files_.push_back(*std::move(file));
    return done{};
  }

  std::vector<open_file> files_;
  std::vector<tensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

/// Some of a model's tensors, each mapped when it is first asked for and as long as this lives: what finders of weights are given.
class safetensors_parts {
 public:
  explicit safetensors_parts(const safetensors_model& model) : model_(&model) {}
  /// The tensor of that name with its data, or null: there is none, or the system did not map it, which failed() then says.
  const safetensor* find(const std::string& name) {
    if (const auto at = found_.find(name); at != found_.end()) return &at->second.tensor;
    const auto* const t = model_->find(name);
    if (t == nullptr) return nullptr;
    auto bytes = model_->map(*t);
    if (!bytes) {
      failed_ = std::move(bytes).error();
      return nullptr;
    }
    part& p = found_.emplace(name, part{*t, *std::move(bytes)}).first->second;
    p.tensor.data = p.bytes.bytes();
    return &p.tensor;
  }
  [[nodiscard]] const std::optional<failure>& failed() const noexcept { return failed_; }

 private:
  struct part {
    safetensor tensor;
    mapped_file bytes;
  };
  const safetensors_model* model_;
  std::map<std::string, part> found_;  // whose nodes stay where they are
  std::optional<failure> failed_;
};

}  // namespace lowbit
