// Hugging Face folders with weights as the tools of the field store them, or as plain floats.
//
// Floats are written a run of rows at a time. A quantised matrix is put together in its blocks first, because layouts have its codes, scales and
// zero-points apart; its parts are written one after the other while it is at hand, so no more than one matrix is in memory. Large models are cut
// into several files. The folder is made under another name and renamed when it is whole.
#include "hf_json.hpp"
#include "names.hpp"
#include "save_formats.hpp"

#include <lowbit/io/checkpoint.hpp>
#include <lowbit/io/safetensors_writer.hpp>

#include <filesystem>
#include <unistd.h>

namespace llm {
namespace {

namespace fs = std::filesystem;
using lowbit::packed_matrix;
using lowbit::packed_view;
using parts = std::vector<lowbit::checkpoint_part>;

constexpr std::size_t usual_part = std::size_t{4} << 30;  // bytes of weights in a file

std::size_t bytes_of(const lowbit::safetensor& t) {
  std::size_t bits = *lowbit::safetensors_bits(t.dtype);
  for (const std::uint64_t d : t.shape) bits *= static_cast<std::size_t>(d);
  return bits / 8;
}

// The parts of a tensor; without data, their declarations. Plain floats have no data here.
lowbit::result<parts> parts_of(const tensor& t, const packed_view& w, const std::optional<lowbit::checkpoint_layout>& layout) {
  const std::string name = hf_name(t.name).value_or(t.name);
  if (!w.spec->is_float()) {
    if (!layout) return lowbit::failure{lowbit::errc::unsupported, "tensor " + name + " is not plain floats"};
    return lowbit::checkpoint_parts(name.substr(0, name.rfind('.')), w, *layout);
  }
  std::vector<std::uint64_t> shape{w.cols};
  if (!t.is_vector) shape.insert(shape.begin(), w.rows);
  const char* const dtype = lowbit::scale_dtype(w.spec->element);
  return parts{{{name, dtype, std::move(shape), {}}, {}}};
}

nlohmann::json json_of(const lowbit::gguf_value& value) {
  const auto number_or_text = [](const auto& v) -> nlohmann::json {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(v)>, lowbit::gguf_boolean>) return v.value != 0;
    else return v;
  };
  if (const auto* scalar = std::get_if<lowbit::gguf_scalar>(&value)) return std::visit(number_or_text, *scalar);
  return std::visit(
      [&](const auto& all) {
        auto items = nlohmann::json::array();
        for (const auto& v : all) items.push_back(number_or_text(v));
        return items;
      },
      std::get<lowbit::gguf_array>(value));
}

lowbit::status write_text(const fs::path& path, const nlohmann::json& j, std::size_t& written) {
  auto file = lowbit::file_writer::create(path);
  if (!file) return std::move(file).error();
  const std::string text = j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  written += text.size();
  if (auto s = file->append(std::string_view{text}); !s) return s;
  return file->commit();
}

// A folder that disappears unless it is renamed to its final name.
class new_folder {
 public:
  static lowbit::result<new_folder> create(const fs::path& final_path) {
    std::error_code error;
    new_folder f;
    f.final_ = final_path;
    f.partial_ = final_path.parent_path() / ("." + final_path.filename().string() + ".partial-" + std::to_string(getpid()));
    if (!fs::create_directory(f.partial_, error))
      return lowbit::failure{lowbit::errc::io, "cannot write " + final_path.string() + ": " + (error ? error.message() : "a folder for it exists already")};
    f.owned_ = true;
    f.remembered_ = lowbit::partial_path{f.partial_};
    return f;
  }
  new_folder(new_folder&& other) noexcept
      : final_(std::move(other.final_)), partial_(std::move(other.partial_)), owned_(std::exchange(other.owned_, false)),
        remembered_(std::move(other.remembered_)) {}
  new_folder& operator=(new_folder&&) = delete;
  ~new_folder() {
    std::error_code ignored;
    if (owned_) fs::remove_all(partial_, ignored);
  }
  [[nodiscard]] const fs::path& path() const noexcept { return partial_; }
  /// What a message says of the folder, by the name that its reader knows.
  [[nodiscard]] lowbit::failure with_final_name(lowbit::failure f) const {
    const std::string name = partial_.string();
    if (const auto at = f.message.find(name); at != f.message.npos) f.message.replace(at, name.size(), final_.string());
    return f;
  }
  lowbit::status commit() {
    std::error_code error;
    fs::rename(partial_, final_, error);
    if (error) return lowbit::failure{lowbit::errc::io, "cannot write " + final_.string() + ": " + error.message()};
    owned_ = false;
    return lowbit::done{};
  }

 private:
  new_folder() = default;
  fs::path final_, partial_;
  bool owned_ = false;
  lowbit::partial_path remembered_;
};

/// Everything in a folder that is there. Returns the bytes written.
lowbit::result<std::size_t> write_folder(const fs::path& folder, const checkpoint& model, const tensor_forms& forms,
                                         const std::optional<lowbit::checkpoint_layout>& layout, const weight_source& source, const save_progress& progress, std::size_t part_bytes) {
  // Which tensors go into which file: in order, as many as fit.
  struct part_file {
    std::vector<const tensor*> tensors;
    std::vector<lowbit::safetensor> declarations;
    std::size_t bytes = 0;
  };
  std::vector<part_file> files(1);
  std::size_t done = 0, total_source = 0, total_parts = 0, written = 0;
  std::vector<lowbit::quantised_module> quantised;
  std::vector<std::string> left_alone;
  const lowbit::format_spec* floats = nullptr;  // of the widest float matrix: the type that loaders are told
  for (const tensor& t : model.tensors) {
    const packed_view form = forms(t);
    const auto declared = parts_of(t, form, layout);
    if (!declared) return declared.error();
    const std::string name = hf_name(t.name).value_or(t.name), module = name.substr(0, name.rfind('.'));
    if (!form.spec->is_float()) {
      quantised.push_back({module, form.spec, form.cols, form.inputs != nullptr});
    } else if (!t.is_vector && (floats == nullptr || form.spec->bytes > floats->bytes)) {
      floats = form.spec;
    }
    if (form.spec->is_float() && !t.is_vector && t.name != "token_embd.weight") left_alone.push_back(module);
    std::size_t bytes = 0;
    for (const auto& p : *declared) bytes += bytes_of(p.declaration);
    if (files.back().bytes != 0 && files.back().bytes + bytes > part_bytes) files.emplace_back();
    files.back().tensors.push_back(&t);
    files.back().bytes += bytes;
    for (const auto& p : *declared) files.back().declarations.push_back(p.declaration);
    total_source += t.bytes;
    total_parts += bytes;
  }
  const bool tied = model.find("output.weight") == nullptr;
  if (tied) left_alone.emplace_back("lm_head");  // loaders build one over the embedding
  std::optional<nlohmann::json> quantisation;
  if (layout && !quantised.empty()) {
    auto says = lowbit::quantization_config(*layout, quantised, left_alone);
    if (!says) return std::move(says).error();
    quantisation = nlohmann::json(*std::move(says));
  }

  nlohmann::json where = nlohmann::json::object();
  for (std::size_t i = 0; i < files.size(); ++i) {
    char name[64] = "model.safetensors";
    if (files.size() > 1) std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, files.size());
    for (const auto& d : files[i].declarations) where[d.name] = name;
    auto writer = lowbit::safetensors_writer::create(folder / name, {{"format", "pt"}}, files[i].declarations, lowbit::tensor_order::as_declared);
    if (!writer) return std::move(writer).error();
    for (const tensor* t : files[i].tensors) {
      const packed_view form = forms(*t);
      const bool is_float = form.spec->is_float();
      packed_matrix matrix = is_float ? packed_matrix{} : packed_matrix{*form.spec, form.rows, form.cols};
      const lowbit::status taken = write_runs(*t, source, [&](const tensor& run, const packed_view& w) -> lowbit::status {
        done += run.bytes;
        if (progress) progress(done, total_source);
        if (is_float) return writer->append({w.data, w.size_bytes()});
        std::memcpy(matrix.row(run.first_row), w.data, w.size_bytes());
        if (w.inputs != nullptr) matrix.set_inputs({w.inputs, w.inputs + w.cols});
        matrix.set_factor(w.factor);
        return lowbit::done{};
      });
      if (!taken) return taken.error();
      if (is_float) continue;
      const auto filled = parts_of(*t, matrix.view(), layout);
      if (!filled) return filled.error();
      for (const auto& p : *filled)
        if (auto s = writer->append(p.bytes); !s) return std::move(s).error();
    }
    written += writer->written();
    if (auto s = writer->commit(); !s) return std::move(s).error();
  }

  // Configuration and tokeniser: the source's own where it has them, with what changed.
  const fs::path own{model.folder};
  nlohmann::json config = hf_config(model.config, model.words, tied);
  if (!model.folder.empty()) {
    auto file = lowbit::mapped_file::open(own / "config.json");
    if (!file) return std::move(file).error();
    auto read = parse_json((own / "config.json").string(), {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()});
    if (!read) return std::move(read).error();
    config = *std::move(read);
    config.erase("quantization_config");
    config["tie_word_embeddings"] = tied;  // a rotation unties them
  }
  config.erase("dtype");
  config["torch_dtype"] = floats == nullptr || floats == &lowbit::spec_of<lowbit::f32> ? "float32" : floats == &lowbit::spec_of<lowbit::float16> ? "float16" : "bfloat16";
  if (quantisation) config["quantization_config"] = *std::move(quantisation);
  for (const auto& note : model.notes.entries()) config["lowbit"][note.key] = json_of(note.value);
  std::vector<std::pair<const char*, nlohmann::json>> texts;
  if (files.size() > 1)
    texts.emplace_back("model.safetensors.index.json", nlohmann::json{{"metadata", {{"total_size", total_parts}}}, {"weight_map", std::move(where)}});
  texts.emplace_back("config.json", std::move(config));
  if (model.folder.empty()) {
    texts.emplace_back("tokenizer.json", hf_tokeniser(model.words));
    texts.emplace_back("tokenizer_config.json", hf_tokeniser_settings(model.words));
  } else {
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "generation_config.json", "chat_template.jinja"}) {
      std::error_code error;
      if (!fs::exists(own / name, error)) continue;
      if (!fs::copy_file(own / name, folder / name, error)) return lowbit::failure{lowbit::errc::io, "cannot copy " + (own / name).string() + ": " + error.message()};
      written += static_cast<std::size_t>(fs::file_size(folder / name, error));
    }
  }
  for (const auto& [name, j] : texts)
    if (auto s = write_text(folder / name, j, written); !s) return std::move(s).error();
  return written;
}

}  // namespace

lowbit::result<fs::path> target_folder(const std::string& path) {
  fs::path target = fs::path{path}.lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "name/"
  if (target.extension() == ".gguf") return lowbit::failure{lowbit::errc::bad_value, path + ": what is to be written is a folder, and this names a GGUF file"};
  std::error_code error;
  if (fs::exists(target, error)) return lowbit::failure{lowbit::errc::io, "cannot write " + target.string() + ": it exists already"};
  if (lowbit::status there = check_parent(target); !there) return std::move(there).error();
  return target;
}

lowbit::result<std::size_t> save_hf(const std::string& folder, const checkpoint& model, const tensor_forms& forms,
                                    const std::optional<lowbit::checkpoint_layout>& layout, const weight_source& source, const save_progress& progress, std::size_t part_bytes) {
  if (!model.config.rope_divisors.empty() && model.folder.empty())
    return lowbit::failure{lowbit::errc::unsupported, "a config.json with scaled RoPE is not written"};
  const auto target = target_folder(folder);
  if (!target) return target.error();
  auto made = new_folder::create(*target);
  if (!made) return std::move(made).error();
  const auto written = write_folder(made->path(), model, forms, layout, source, progress, part_bytes != 0 ? part_bytes : usual_part);
  if (!written) return made->with_final_name(written.error());
  if (auto s = made->commit(); !s) return std::move(s).error();
  return written;
}

}  // namespace llm
