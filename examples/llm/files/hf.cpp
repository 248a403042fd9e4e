// Hugging Face folders: config.json, tokenizer.json, and the tensors in model.safetensors or its shards.
#include "hf.hpp"
#include "hf_json.hpp"
#include "load.hpp"
#include "names.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/io/checkpoint.hpp>

#include <algorithm>
#include <filesystem>
#include <optional>

namespace llm {
namespace {

namespace fs = std::filesystem;

lowbit::result<std::string> read_text(const fs::path& path) {
  auto file = lowbit::mapped_file::open(path);
  if (!file) return std::move(file).error();
  return std::string{reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()};
}

lowbit::result<nlohmann::json> read_json(const fs::path& path) {
  const auto text = read_text(path);
  if (!text) return text.error();
  return parse_json(path.string(), *text);
}

/// What the folder says of its quantisation: in its config.json, or in a file of the quantising tool's own.
lowbit::result<lowbit::quantisation_config> read_quantisation(const fs::path& folder, const nlohmann::json& config) {
  std::error_code ignored;
  nlohmann::json found = config.value("quantization_config", nlohmann::json());
  fs::path from = folder / "config.json";
  for (const char* const name : {"quantize_config.json", "quant_config.json"}) {
    if (!found.is_null() || !fs::exists(folder / name, ignored)) continue;
    from = folder / name;
    auto read = read_json(from);
    if (!read) return std::move(read).error();
    found = *std::move(read);
    if (!found.contains("quant_method")) found["quant_method"] = found.contains("w_bit") ? "awq" : "gptq";
  }
  auto settings = lowbit::read_quantisation_config(nlohmann::ordered_json(found));
  if (!settings) return lowbit::failure{settings.error().kind, from.string() + ": " + settings.error().message};
  return settings;
}

}  // namespace

const lowbit::format_spec* float_format(std::string_view dtype) {
  if (dtype == "F32") return &lowbit::spec_of<lowbit::f32>;
  if (dtype == "F16") return &lowbit::spec_of<lowbit::float16>;
  if (dtype == "BF16") return &lowbit::spec_of<lowbit::bfloat16>;
  return nullptr;
}

lowbit::result<lowbit::quantisation_config> read_quantisation(const std::string& folder) {
  const fs::path config = fs::path{folder} / "config.json";
  std::error_code ignored;
  if (!fs::exists(config, ignored)) return read_quantisation(folder, nlohmann::json::object());
  const auto read = read_json(config);
  if (!read) return read.error();
  return read_quantisation(folder, *read);
}

std::optional<lowbit::result<lowbit::checkpoint_weight>> find_quantised(lowbit::safetensors_parts& parts, const std::string& module,
                                                                        const lowbit::quantisation_config& settings) {
  auto w = lowbit::find_weight([&](const std::string& name) { return parts.find(name); }, module, settings);
  if (parts.failed()) return *parts.failed();
  return w;
}

std::optional<std::string> module_of(const lowbit::safetensors_model& model, const lowbit::safetensor& t) {
  const bool has_state = model.find(t.name + ".quant_state.bitsandbytes__nf4") != nullptr || model.find(t.name + ".quant_state.bitsandbytes__fp4") != nullptr;
  if (float_format(t.dtype) != nullptr && !has_state) return std::nullopt;
  return lowbit::module_with_codes(t.name);
}

lowbit::result<checkpoint> open_hf(const std::string& folder, const std::string& weights_path) {
  const fs::path path{folder};
  const std::string& where = weights_path.empty() ? folder : weights_path;
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
  if (fs::exists(path / "chat_template.jinja", ignored)) {  // counts before the one in the settings
    auto text = read_text(path / "chat_template.jinja");
    if (!text) return std::move(text).error();
    words->chat_template = *std::move(text);
  }

  auto opened = lowbit::safetensors_model::open(where);
  if (!opened) return std::move(opened).error();
  const auto model = std::make_shared<const lowbit::safetensors_model>(*std::move(opened));

  checkpoint c;
  c.name = fs::absolute(path, ignored).lexically_normal().filename().string();
  if (c.name.empty()) c.name = fs::absolute(path, ignored).parent_path().filename().string();
  c.kind = "safetensors";
  c.config = *std::move(numbers);
  c.words = *std::move(words);
  const auto tied = is_tied((path / "config.json").string(), *config);
  if (!tied) return tied.error();
  auto read_settings = read_quantisation(path, *config);
  if (!read_settings) return std::move(read_settings).error();
  const auto quantisation = std::make_shared<const lowbit::quantisation_config>(*std::move(read_settings));
  c.folder = folder;
  for (const lowbit::safetensors_model::tensor& t : model->tensors()) {
    const auto fail = [&](lowbit::errc kind, const std::string& what) {
      return lowbit::failure{kind, where + ": tensor " + t.name + ' ' + what};
    };
    if (t.name.ends_with(".rotary_emb.inv_freq") || (*tied && t.name.starts_with("lm_head."))) continue;  // computed; a copy
    if (lowbit::is_checkpoint_part(t.name)) continue;
    if (t.name.ends_with(".bias")) {  // some GPTQ tools write biases of zeros for layers that have none
      const auto data = model->map(t);
      if (!data) return data.error();
      if (std::any_of(data->bytes().begin(), data->bytes().end(), [](std::uint8_t b) { return b != 0; })) return fail(lowbit::errc::unsupported, "is a bias, which is not supported");
      continue;
    }
    const lowbit::format_spec* const spec = float_format(t.dtype);
    const auto module = module_of(*model, t);
    const auto name = gguf_name(module ? *module + ".weight" : t.name);
    if (!name) return fail(lowbit::errc::unsupported, "is not part of a Llama");
    if (module) {
      // Checked here; its tensors are mapped again when somebody wants them.
      lowbit::safetensors_parts parts(*model);
      const auto w = find_quantised(parts, *module, *quantisation);
      if (w && !*w) return lowbit::failure{w->error().kind, where + ": " + w->error().message};
      if (w) {
        const lowbit::checkpoint_weight& found = **w;
        if (!found.warning.empty()) c.warnings.push_back(found.warning);
        c.layout = found.family != nullptr ? found.family->name : "bitsandbytes";
        tensor out{*name, false, found.rows, found.cols, found.spec, found.bytes, {}};
        out.read = [model, module = *module, quantisation, name = *name, rows = found.rows, cols = found.cols, spec = found.spec]() -> lowbit::result<weights> {
          lowbit::safetensors_parts again(*model);
          const auto weight = find_quantised(again, module, *quantisation);
          if (weight && !*weight) return weight->error();
          // Shapes are among the data of some layouts: who made room for the declared one is not given another.
          if (!weight || (*weight)->rows != rows || (*weight)->cols != cols || (*weight)->spec != spec)
            return in_tensor(name, {lowbit::errc::malformed, "its file has changed since it was opened"});
          lowbit::serial_executor serial;
          auto read = (*weight)->read(serial);
          if (!read) return std::move(read).error();
          return weights{*std::move(read)};
        };
        c.tensors.push_back(std::move(out));
        continue;
      }
    }
    if (spec == nullptr) return fail(lowbit::errc::unsupported, "is of type " + t.dtype + ", which is not supported");
    if (t.shape.empty() || t.shape.size() > 2 || t.bytes == 0) return fail(lowbit::errc::shape, "is neither a vector nor a matrix");
    const bool is_vector = t.shape.size() == 1;
    c.tensors.push_back(mapped_tensor(*name, is_vector, is_vector ? 1 : static_cast<std::size_t>(t.shape[0]), static_cast<std::size_t>(t.shape.back()), *spec,
                                      [model, &t](std::size_t first, std::size_t bytes) { return model->map(t, first, bytes); }));
  }
  return c;
}

}  // namespace llm
