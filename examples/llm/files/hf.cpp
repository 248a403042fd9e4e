// Hugging Face folders: config.json, tokenizer.json, and the tensors in model.safetensors or its shards.
#include "hf_json.hpp"
#include "load.hpp"
#include "names.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/io/checkpoint.hpp>

#include <filesystem>

namespace llm {
namespace {

namespace fs = std::filesystem;

lowbit::result<nlohmann::json> read_json(const fs::path& path) {
  auto file = lowbit::mapped_file::open(path);
  if (!file) return std::move(file).error();
  return parse_json(path.string(), {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()});
}

const lowbit::format_spec* float_format(std::string_view dtype) {
  if (dtype == "F32") return &lowbit::spec_of<lowbit::f32>;
  if (dtype == "F16") return &lowbit::spec_of<lowbit::float16>;
  if (dtype == "BF16") return &lowbit::spec_of<lowbit::bfloat16>;
  return nullptr;
}

// Whether a tensor only belongs to a quantised weight, which is read with its codes.
bool is_part_of_weight(std::string_view name) {
  for (std::string_view end : {".weight_scale", ".weight_shape", ".weight_zero_point", ".absmax", ".quant_map"})
    if (name.ends_with(end)) return true;
  return name.find(".quant_state.") != name.npos;
}

}  // namespace

lowbit::result<checkpoint> open_hf(const std::string& folder) {
  const fs::path path{folder};
  auto config = read_json(path / "config.json");
  if (!config) return std::move(config).error();
  auto numbers = read_hf_config((path / "config.json").string(), *config);
  if (!numbers) return std::move(numbers).error();

  auto tokeniser = read_json(path / "tokenizer.json");
  if (!tokeniser) return std::move(tokeniser).error();
  nlohmann::json settings;
  std::error_code ignored;
  if (fs::exists(path / "tokenizer_config.json", ignored)) {
    auto read = read_json(path / "tokenizer_config.json");
    if (!read) return std::move(read).error();
    settings = *std::move(read);
  }
  auto words = read_hf_tokeniser((path / "tokenizer.json").string(), *tokeniser, settings, *config);
  if (!words) return std::move(words).error();

  auto opened = lowbit::safetensors_model::open(path);
  if (!opened) return std::move(opened).error();
  const auto model = std::make_shared<const lowbit::safetensors_model>(*std::move(opened));

  checkpoint c;
  c.name = fs::absolute(path, ignored).lexically_normal().filename().string();
  if (c.name.empty()) c.name = fs::absolute(path, ignored).parent_path().filename().string();
  c.kind = "safetensors";
  c.config = *std::move(numbers);
  c.words = *std::move(words);
  const bool tied = config->value("tie_word_embeddings", false);
  const auto find = [&](const std::string& name) { return model->find(name); };
  for (const lowbit::safetensor& t : model->tensors()) {
    const auto fail = [&](lowbit::errc kind, const std::string& what) {
      return lowbit::failure{kind, folder + ": tensor " + t.name + ' ' + what};
    };
    if (t.name.ends_with(".rotary_emb.inv_freq") || (tied && t.name == "lm_head.weight")) continue;  // computed; a copy
    if (is_part_of_weight(t.name)) continue;
    const std::string whole = t.name.ends_with("_packed") ? t.name.substr(0, t.name.size() - 7) : t.name;
    const auto name = gguf_name(whole);
    if (!name) return fail(lowbit::errc::unsupported, "is not part of a Llama");
    if (auto quantised = lowbit::read_checkpoint(find, whole)) {
      if (!*quantised) return lowbit::failure{quantised->error().kind, folder + ": " + quantised->error().message};
      const auto owned = std::make_shared<const lowbit::packed_matrix>(**std::move(quantised));
      tensor out{*name, false, owned->rows(), owned->cols(), &owned->spec(), owned->bytes().size(), {}, {}};
      out.read = [owned]() -> lowbit::result<weights> { return weights{owned->view()}; };
      c.tensors.push_back(std::move(out));
      continue;
    }
    const lowbit::format_spec* const spec = float_format(t.dtype);
    if (spec == nullptr) return fail(lowbit::errc::unsupported, "is of type " + t.dtype + ", which is not supported");
    if (t.shape.empty() || t.shape.size() > 2 || t.data.empty()) return fail(lowbit::errc::shape, "is neither a vector nor a matrix");
    const bool is_vector = t.shape.size() == 1;
    const lowbit::packed_view view{spec, is_vector ? 1 : static_cast<std::size_t>(t.shape[0]), static_cast<std::size_t>(t.shape.back()),
                                   t.data.data()};
    tensor out{*name, is_vector, view.rows, view.cols, spec, view.size_bytes(), {}, {}};
    out.read = [view, model]() -> lowbit::result<weights> { return weights{view}; };
    out.forget = [view, model] { lowbit::mapped_file{}.release({view.data, view.size_bytes()}); };
    c.tensors.push_back(std::move(out));
  }
  return c;
}

}  // namespace llm
