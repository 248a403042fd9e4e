// A model in one GGUF file or several: only headers are read, and the bytes of tensors are mapped when somebody asks for them.
//
// Split files are named `…-00001-of-00003.gguf`, from 1; each holds a part of the tensors, the first one the metadata, and all of them
// split.no (from 0), split.count and split.tensors.count (llama.cpp, llama_split_path and gguf-split). All parts must be there and agree.
#pragma once

#include <lowbit/io/gguf.hpp>
#include <lowbit/io/mapped_file.hpp>

#include <cstdio>
#include <string>

namespace lowbit {

/// The name of part `index` (from 0) of `count`: prefix-00001-of-00003.gguf.
inline std::string gguf_split_name(const std::string& prefix, std::size_t index, std::size_t count) {
  char end[64];
  std::snprintf(end, sizeof end, "-%05zu-of-%05zu.gguf", index + 1, count);
  return prefix + end;
}

/// The prefix of a split file's name, or nothing where the name is not that of part `index` of `count`.
inline std::optional<std::string> gguf_split_prefix(std::string_view name, std::size_t index, std::size_t count) {
  const std::string end = gguf_split_name("", index, count);
  if (name.size() <= end.size() || !name.ends_with(end)) return std::nullopt;
  return std::string(name.substr(0, name.size() - end.size()));
}

/// Movable.
class gguf_model {
 public:
  struct tensor : gguf_tensor {  ///< `data` is empty
    std::size_t file = 0;        ///< which of the parts it is in
  };

  /// Opens `path`, and where it is the first of several files its other parts beside it. Fails where a part is missing or is another
  /// model's, or where they do not hold as many tensors as they say.
  static result<gguf_model> open(const std::filesystem::path& path) {
    gguf_model model;
    auto first = model.add(path);
    if (!first) return std::move(first).error();
    model.metadata_ = *std::move(first);
    const auto in_file = [](const std::filesystem::path& p, errc kind, const std::string& what) { return failure{kind, p.string() + ": " + what}; };
    if (model.metadata_.find("split.count") == nullptr) return model;
    const auto declared = model.metadata_.get<std::uint64_t>("split.count");
    if (!declared) return in_file(path, declared.error().kind, declared.error().message);
    const auto count = static_cast<std::size_t>(*declared);
    if (count <= 1) return model;
    if (model.metadata_.find<std::uint64_t>("split.no") != 0u)
      return in_file(path, errc::unsupported, "is a later part of a split model; open its first part");
    const auto prefix = gguf_split_prefix(path.filename().string(), 0, count);
    if (!prefix)
      return in_file(path, errc::malformed, "is the first of " + std::to_string(count) + " parts, but is not named ..." + gguf_split_name("", 0, count));
    for (std::size_t i = 1; i < count; ++i) {
      const auto beside = path.parent_path() / gguf_split_name(*prefix, i, count);
      const auto part = model.add(beside);
      if (!part) return part.error();
      if (part->find<std::uint64_t>("split.no") != i || part->find<std::uint64_t>("split.count") != count)
        return in_file(beside, errc::malformed, "is not part " + std::to_string(i) + " of " + std::to_string(count));
    }
    if (const auto total = model.metadata_.find<std::int32_t>("split.tensors.count"); !total || static_cast<std::size_t>(*total) != model.tensors_.size())
      return in_file(path, errc::malformed, "split.tensors.count is " + std::to_string(total.value_or(-1)) + ", the parts hold " + std::to_string(model.tensors_.size()));
    for (const char* key : {"split.no", "split.count", "split.tensors.count"}) model.metadata_.erase(key);  // of the files, not of the model
    return model;
  }

  [[nodiscard]] const gguf_metadata& metadata() const noexcept { return metadata_; }
  [[nodiscard]] const std::vector<tensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] std::size_t parts() const noexcept { return files_.size(); }

  /// Bytes [first, first + bytes) of a tensor. Expects a range inside it.
  [[nodiscard]] result<mapped_file> map(const tensor& t, std::size_t first, std::size_t bytes) const {
    LOWBIT_EXPECTS(first <= t.bytes && bytes <= t.bytes - first);
    return files_[t.file].map(t.offset + first, bytes);
  }
  [[nodiscard]] result<mapped_file> map(const tensor& t) const { return map(t, 0, t.bytes); }

 private:
  /// Adds a file's tensors and gives its metadata. Of a header of unknown length a little is mapped first, then ever more.
  result<gguf_metadata> add(const std::filesystem::path& path) {
    auto file = open_file::open(path);
    if (!file) return std::move(file).error();
    for (std::size_t length = std::size_t{1} << 20;; length *= 4) {
      length = std::min(length, file->size());
      const auto beginning = file->map(0, length);
      if (!beginning) return beginning.error();
      auto content = read_gguf_header(beginning->bytes(), file->size());
      if (!content && content.error().kind == errc::truncated && length < file->size()) continue;
      if (!content) return failure{content.error().kind, path.string() + ": " + content.error().message};
      for (gguf_tensor& t : content->tensors) {
        if (!names_.insert(t.name).second) return failure{errc::malformed, path.string() + ": tensor '" + t.name + "' is in another part too"};
        tensors_.push_back({std::move(t), files_.size()});
      }
      files_.push_back(*std::move(file));
      return std::move(content->metadata);
    }
  }

  std::vector<open_file> files_;
  gguf_metadata metadata_;
  std::vector<tensor> tensors_;
  std::unordered_set<std::string> names_;
};

}  // namespace lowbit
