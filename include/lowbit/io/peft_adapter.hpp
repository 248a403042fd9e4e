// Adapters as Hugging Face's PEFT stores them: adapter_config.json and adapter_model.safetensors in a folder. Format: peft's
// tuners/lora/config.py, layer.py and utils/save_and_load.py.
//
// Module M has tensors base_model.model.M.lora_A.weight [r, in] and base_model.model.M.lora_B.weight [out, r]. r and lora_alpha hold for
// all but the modules that rank_pattern and alpha_pattern name (by the end of their names; of several the first in the file); the scale is
// lora_alpha / r, or with use_rslora lora_alpha / sqrt(r). What changes the meaning of the factors (fan_in_fan_out, DoRA, biases, whole
// modules or tokens saved, layers repeated, activation by tokens, a base that initialisation changed) is refused by name.
#pragma once

#include <lowbit/io/adapter_file.hpp>
#include <lowbit/io/safetensors_writer.hpp>

#include <nlohmann/json.hpp>

#include <set>

namespace lowbit {

/// What adapter_config.json says.
struct peft_config {
  std::size_t rank = 0;
  double alpha = 0;
  bool rank_stabilised = false;  ///< scales are alpha / sqrt(rank)
  template <class T>
  using pattern = std::vector<std::pair<std::string, T>>;  ///< ends of modules' names in the file's order: the first that matches counts
  pattern<std::size_t> ranks;
  pattern<double> alphas;
  std::vector<std::string> targets;  ///< ends of adapted modules' names; empty where the file has a pattern

  [[nodiscard]] static bool is_end_of(std::string_view end, std::string_view module) noexcept {
    return module == end || (module.size() > end.size() && module.ends_with(end) && module[module.size() - end.size() - 1] == '.');
  }
  template <class T>
  [[nodiscard]] static T find(const pattern<T>& in, std::string_view module, T otherwise) noexcept {
    for (const auto& [end, value] : in)
      if (is_end_of(end, module)) return value;
    return otherwise;
  }
};

/// Fails, naming the key, on what is missing, of the wrong kind, or not supported.
inline result<peft_config> read_peft_config(std::string_view text) {
  using json_value = nlohmann::ordered_json;  // of the patterns the first that matches counts
  const auto json = detail::parse_json<json_value>(text, "adapter_config.json");
  if (!json) return json.error();
  if (!json->is_object()) return failure{errc::malformed, "adapter_config.json is not an object"};
  const auto unsupported = [](const std::string& what) {
    return failure{errc::unsupported, "adapter_config.json: " + what + " is not supported"};
  };
  const auto wrong = [](const std::string& key, const std::string& due) {
    return failure{errc::bad_value, "adapter_config.json: '" + key + "' is not " + due};
  };
  const auto at = [&](const char* key) -> const json_value* {
    const auto i = json->find(key);
    return i == json->end() || i->is_null() ? nullptr : &*i;
  };
  const auto* const type = at("peft_type");
  if (type == nullptr || *type != "LORA") return unsupported("a peft_type other than \"LORA\"");
  for (const char* key : {"fan_in_fan_out", "use_dora", "lora_bias", "use_qalora"})
    if (const auto* v = at(key); v != nullptr && *v != false) return unsupported(std::string("'") + key + "'");
  if (const auto* bias = at("bias"); bias != nullptr && *bias != "none") return unsupported("a bias");
  for (const char* key : {"modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens"})
    if (const auto* v = at(key); v != nullptr && !v->empty()) return unsupported(std::string("'") + key + "'");
  // pissa, olora, corda, loftq: training began by taking the factors out of the base, whose weights are others since.
  if (const auto* start = at("init_lora_weights"); start != nullptr && !start->is_boolean() && *start != "gaussian" && *start != "eva" && *start != "orthogonal")
    return unsupported("an 'init_lora_weights' that changes the base");

  const auto rank_of = [](const json_value& v) {
    const auto size = detail::json_size(v);
    return size && *size != 0 && *size <= (1u << 20) ? std::optional(static_cast<std::size_t>(*size)) : std::nullopt;
  };
  peft_config c;
  const auto* const r = at("r");
  const auto rank = r != nullptr ? rank_of(*r) : std::nullopt;
  if (!rank) return wrong("r", "a rank");
  c.rank = *rank;
  const auto* const alpha = at("lora_alpha");
  if (alpha == nullptr || !alpha->is_number()) return wrong("lora_alpha", "a number");
  c.alpha = alpha->get<double>();
  if (const auto* stabilised = at("use_rslora"); stabilised != nullptr) {
    if (!stabilised->is_boolean()) return wrong("use_rslora", "true or false");
    c.rank_stabilised = stabilised->get<bool>();
  }
  for (const char* key : {"rank_pattern", "alpha_pattern"}) {
    const auto* const pattern = at(key);
    if (pattern == nullptr) continue;
    if (!pattern->is_object()) return wrong(key, "an object");
    const bool are_ranks = std::string_view(key) == "rank_pattern";
    for (const auto& [end, value] : pattern->items()) {
      if (end.find_first_of("\\^$*+?()[]{}|") != end.npos)
        return unsupported(std::string("the regular expression '") + end + "' in '" + key + "'");
      const auto of_module = rank_of(value);
      if (are_ranks ? !of_module : !value.is_number())
        return wrong(std::string(key) + "." + end, are_ranks ? "a rank" : "a number for a module");
      if (are_ranks) c.ranks.emplace_back(end, *of_module);
      else c.alphas.emplace_back(end, value.get<double>());
    }
  }
  if (const auto* targets = at("target_modules"); targets != nullptr && targets->is_array())
    for (const auto& t : *targets) {
      if (!t.is_string()) return wrong("target_modules", "a list of names");
      c.targets.push_back(t.get<std::string>());
    }
  return c;
}

/// An adapter from both files' contents. Fails, naming the tensor, where it is no part of a LoRA adapter, alone, of another shape or rank
/// than declared, or not finite; and where a target module has no tensors.
inline result<adapter> read_peft_adapter(const peft_config& config, const safetensors_content& content) {
  constexpr std::string_view prefix = "base_model.model.", ends[] = {".lora_A.weight", ".lora_B.weight"};
  std::map<std::string, detail::adapter_tensors> found;  // by module
  for (const safetensor& t : content.tensors) {
    const bool is_a = t.name.ends_with(ends[0]);
    if (!t.name.starts_with(prefix) || !(is_a || t.name.ends_with(ends[1])) || t.name.size() <= prefix.size() + ends[0].size())
      return failure{errc::unsupported, "tensor '" + t.name + "' is no part of a LoRA adapter of linear layers"};
    const format_spec* const type = t.dtype == "F32"    ? &spec_of<f32>
                                    : t.dtype == "F16"  ? &spec_of<float16>
                                    : t.dtype == "BF16" ? &spec_of<bfloat16>
                                                        : nullptr;
    if (type == nullptr) return failure{errc::unsupported, "tensor '" + t.name + "' is of type " + t.dtype + ", which is not supported"};
    if (t.shape.size() != 2) return failure{errc::shape, "tensor '" + t.name + "' is not a matrix"};
    detail::adapter_tensors& of = found[t.name.substr(prefix.size(), t.name.size() - prefix.size() - ends[0].size())];
    const auto rows = static_cast<std::size_t>(t.shape[0]), cols = static_cast<std::size_t>(t.shape[1]);
    (is_a ? of.a : of.b) = {t.name, {type, rows, cols, t.data.data()}};
  }
  adapter out;
  for (const auto& [module, tensors] : found) {
    const std::size_t rank = peft_config::find(config.ranks, module, config.rank);
    const std::string weight = module + ".weight";
    auto f = detail::read_factors(weight, tensors, rank);
    if (!f) return std::move(f).error();
    const auto r = static_cast<double>(rank);
    const double alpha = peft_config::find(config.alphas, module, config.alpha);
    const auto scale = detail::checked_scale(alpha, config.rank_stabilised ? std::sqrt(r) : r, weight);
    if (!scale) return scale.error();
    f->scale = *scale;
    out.weights.emplace(weight, *std::move(f));
    const auto base = content.metadata.find(std::string(adapter_base_key) + weight);
    if (base != content.metadata.end()) out.bases.emplace(weight, base->second);
  }
  for (const std::string& target : config.targets)
    if (std::none_of(found.begin(), found.end(), [&](const auto& m) { return peft_config::is_end_of(target, m.first); }))
      return failure{errc::not_found, "adapter_config.json names the module '" + target + "', and no tensor belongs to it"};
  if (out.weights.empty()) return failure{errc::malformed, "the adapter has no tensors"};
  return out;
}

/// The same from a folder.
inline result<adapter> read_peft_adapter(const std::filesystem::path& folder) {
  const auto in = [](const std::filesystem::path& p, const failure& f) { return failure{f.kind, p.string() + ": " + f.message}; };
  const auto config_path = folder / "adapter_config.json", tensors_path = folder / "adapter_model.safetensors";
  const auto config_file = mapped_file::open(config_path);
  if (!config_file) return config_file.error();
  const auto bytes = config_file->bytes();
  const auto config = read_peft_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!config) return in(folder, config.error());
  const auto file = mapped_file::open(tensors_path);
  if (!file) return file.error();
  const auto content = read_safetensors(file->bytes());
  if (!content) return in(tensors_path, content.error());
  auto out = read_peft_adapter(*config, *content);
  if (!out) return in(folder, out.error());
  return out;
}

/// Writes one whose weights have Hugging Face's names and order of rows, with factors in a float type, into a folder, which is made. What
/// most modules have is r and lora_alpha; the others are in rank_pattern and alpha_pattern by their whole names. Fails where a file cannot
/// be written; an adapter that was there is then as it was, or without one of its files.
inline status write_peft_adapter(const std::filesystem::path& folder, const adapter& in, const std::string& base_name,
                                 const format_spec& type = spec_of<f32>) {
  LOWBIT_EXPECTS(type.is_float() && type.gguf >= 0);
  const std::string dtype = type.element == number::f32 ? "F32" : type.element == number::f16 ? "F16" : "BF16";
  constexpr std::string_view weight_end = ".weight";
  std::map<std::size_t, std::size_t> ranks;
  std::map<double, std::size_t> alphas;
  std::map<std::string, std::string> metadata{{"format", "pt"}};
  std::vector<safetensor> tensors;
  for (const auto& [weight, f] : in.weights) {
    if (!weight.ends_with(weight_end)) return failure{errc::bad_value, "'" + weight + "' is not the name of a weight"};
    ++ranks[f.rank];
    ++alphas[detail::alpha_of(f)];
    const std::string module = "base_model.model." + weight.substr(0, weight.size() - weight_end.size());
    tensors.push_back({module + ".lora_A.weight", dtype, {f.rank, f.cols}, {}});
    tensors.push_back({module + ".lora_B.weight", dtype, {f.rows, f.rank}, {}});
  }
  for (const auto& [weight, base] : in.bases) metadata.emplace(std::string(adapter_base_key) + weight, base);
  const auto most = [](const auto& counts) {
    return std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
  };
  if (ranks.empty()) return failure{errc::bad_value, "an adapter without weights cannot be written"};
  const std::size_t rank = most(ranks);
  const double alpha = most(alphas);
  using json = nlohmann::ordered_json;
  const auto number_of = [](double v) { return v == std::floor(v) && std::fabs(v) < 1e15 ? json(static_cast<std::int64_t>(v)) : json(v); };
  json targets = json::array(), rank_pattern = json::object(), alpha_pattern = json::object();
  for (const auto& [weight, f] : in.weights) {
    const std::string module = weight.substr(0, weight.size() - weight_end.size());
    targets.push_back(module);
    if (f.rank != rank) rank_pattern[module] = f.rank;
    if (detail::alpha_of(f) != alpha) alpha_pattern[module] = number_of(detail::alpha_of(f));
  }
  const json config{{"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"base_model_name_or_path", base_name}, {"r", rank},
                    {"lora_alpha", number_of(alpha)}, {"lora_dropout", 0.0}, {"bias", "none"}, {"use_rslora", false},
                    {"use_dora", false}, {"fan_in_fan_out", false}, {"target_modules", targets}, {"modules_to_save", nullptr},
                    {"rank_pattern", rank_pattern}, {"alpha_pattern", alpha_pattern}, {"inference_mode", true}};

  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return failure{errc::io, "cannot make the folder " + folder.string() + ": " + error.message()};
  auto out = safetensors_writer::create(folder / "adapter_model.safetensors", metadata, tensors, tensor_order::as_declared);
  if (!out) return std::move(out).error();
  for (const auto& [weight, f] : in.weights)
    for (const auto* values : {&f.a, &f.b})
      if (status s = detail::append_floats(*out, type, *values); !s) return s;
  auto text = file_writer::create(folder / "adapter_config.json");
  if (!text) return std::move(text).error();
  const std::string lines = config.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  if (status s = text->append(std::string_view(lines)); !s) return s;
  auto weights = std::move(*out).finish();
  if (!weights) return std::move(weights).error();
  // New weights beside an old configuration would be read with wrong scales: neither file has its name before both are whole.
  std::vector<file_writer> files;
  files.push_back(*std::move(text));
  files.push_back(*std::move(weights));
  return file_writer::commit_all(std::move(files));
}

}  // namespace lowbit
