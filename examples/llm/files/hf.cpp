// Hugging Face folders: config.json, tokenizer.json, and the tensors in model.safetensors or its shards.
#include "hf_json.hpp"
#include "load.hpp"
#include "names.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/io/checkpoint.hpp>

#include <algorithm>
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

// What the model's files say of its quantisation: a part of config.json, or a file of AutoGPTQ's or AutoAWQ's.
lowbit::result<lowbit::quantisation_config> read_quantisation(const fs::path& folder, const nlohmann::json& config) {
  nlohmann::json found = config.value("quantization_config", nlohmann::json());
  fs::path path = folder / "config.json";
  for (const char* const name : {"quantize_config.json", "quant_config.json"}) {
    std::error_code ignored;
    if (!found.is_null() || !fs::exists(folder / name, ignored)) continue;
    path = folder / name;
    auto read = read_json(path);
    if (!read) return std::move(read).error();
    found = *std::move(read);
    if (!found.contains("quant_method")) found["quant_method"] = found.contains("w_bit") ? "awq" : "gptq";
  }
  auto settings = lowbit::read_quantisation_config(nlohmann::ordered_json(found));
  if (!settings) return lowbit::failure{settings.error().kind, path.string() + ": " + settings.error().message};
  return settings;
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
  const auto quantisation = read_quantisation(path, *config);
  if (!quantisation) return quantisation.error();
  c.folder = folder;
  const auto find = [&](const std::string& name) { return model->find(name); };
  for (const lowbit::safetensor& t : model->tensors()) {
    const auto fail = [&](lowbit::errc kind, const std::string& what) {
      return lowbit::failure{kind, folder + ": tensor " + t.name + ' ' + what};
    };
    if (t.name.ends_with(".rotary_emb.inv_freq") || (tied && t.name.starts_with("lm_head."))) continue;  // computed; a copy
    if (lowbit::is_checkpoint_part(t.name)) continue;
    if (t.name.ends_with(".bias")) {  // some GPTQ tools write biases of zeros for layers that have none
      if (std::any_of(t.data.begin(), t.data.end(), [](std::uint8_t b) { return b != 0; })) return fail(lowbit::errc::unsupported, "is a bias, which is not supported");
      continue;
    }
    const auto module = lowbit::module_with_codes(t.name);
    const auto name = gguf_name(module ? *module + ".weight" : t.name);
    if (!name) return fail(lowbit::errc::unsupported, "is not part of a Llama");
    if (module)
      if (auto quantised = lowbit::find_weight(find, *module, *quantisation)) {
        if (!*quantised) return lowbit::failure{quantised->error().kind, folder + ": " + quantised->error().message};
        const auto w = std::make_shared<const lowbit::checkpoint_weight>(**std::move(quantised));
        if (!w->warning.empty()) c.warnings.push_back(w->warning);
        c.layout = w->family != nullptr ? w->family->name : "bitsandbytes";
        tensor out{*name, false, w->rows, w->cols, w->spec, w->bytes, {}, {}};
        out.read = [w, model]() -> lowbit::result<weights> {
          lowbit::serial_executor serial;
          auto read = w->read(serial);
          if (!read) return std::move(read).error();
          return weights{*std::move(read)};
        };
        out.forget = [w, model] {
          for (const auto part : w->data) lowbit::mapped_file{}.release(part);
        };
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
