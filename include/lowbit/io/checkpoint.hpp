// Quantised checkpoints in safetensors: what config.json says of them, which weights they hold, and the tensors that a weight becomes.
//
// One call finds a weight whatever tool wrote it; one writes it for any. Families: checkpoint_family.hpp, checkpoint_bitsandbytes.hpp.
// Keys of `quantization_config`: transformers, utils/quantization_config.py; compressed-tensors, quantization/quant_config.py.
#pragma once

#include <lowbit/io/checkpoint_bitsandbytes.hpp>

namespace lowbit {

/// A way to store weights: a family, or bitsandbytes' 4-bit types. `lowbit convert --to` takes the names.
struct checkpoint_layout {
  std::string_view name{};
  const checkpoint_family* family = nullptr;   ///< null: bitsandbytes, 4 bits
  bool nested = false;                         ///< its scales quantised
};

/// The layout of that name, or nothing. "bitsandbytes-nested" is bnb_4bit_use_double_quant.
inline std::optional<checkpoint_layout> find_layout(std::string_view name) noexcept {
  if (name == "bitsandbytes") return checkpoint_layout{"bitsandbytes", nullptr, false};
  if (name == "bitsandbytes-nested") return checkpoint_layout{"bitsandbytes-nested", nullptr, true};
  if (const checkpoint_family* f = find_family(name)) return checkpoint_layout{f->name, f, false};
  return std::nullopt;
}

/// All layouts' names.
inline std::vector<std::string_view> layout_names() {
  std::vector<std::string_view> names{"bitsandbytes", "bitsandbytes-nested", bitsandbytes_int8.name};
  for (const checkpoint_family& f : checkpoint_families) names.push_back(f.name);
  return names;
}

/// The layout that a format is saved in where none is named: bitsandbytes or compressed-tensors; nothing where neither has it.
inline std::optional<checkpoint_layout> layout_for_format(const format_spec& s, std::size_t cols) noexcept {
  if (detail::bitsandbytes_base(s) != nullptr) return cols % s.block == 0 ? find_layout("bitsandbytes") : std::nullopt;
  return is_plain_uniform(s) ? find_layout("compressed-tensors") : std::nullopt;
}

/// The tensors of weight `module` (without ".weight") in a layout. With `w.data` null, their declarations only. Fails (unsupported) where
/// the layout cannot hold the weight.
inline result<std::vector<checkpoint_part>> checkpoint_parts(const std::string& module, const packed_view& w, const checkpoint_layout& layout) {
  return layout.family != nullptr ? checkpoint_parts(module, w, *layout.family) : bitsandbytes_parts(module, w, layout.nested);
}

/// What a model's configuration says about its quantised weights.
struct quantisation_config {
  std::string method;                            ///< quant_method, or empty
  const checkpoint_family* family = nullptr;     ///< where the configuration decides between those of a method
  checkpoint_hints hints;                        ///< of modules that are not `named`
  std::map<std::string, checkpoint_hints, std::less<>> named{};  ///< of those that the configuration calls by their names

  [[nodiscard]] const checkpoint_hints& hints_of(std::string_view module) const noexcept {
    const auto found = named.find(module);
    return found == named.end() ? hints : found->second;
  }
};

namespace detail {
/// What several groups of modules have in common.
inline checkpoint_hints common_hints(const checkpoint_hints& a, const checkpoint_hints& b) noexcept {
  checkpoint_hints both = a;
  if (a.bits != b.bits) both.bits = 0;
  if (a.group != b.group) both.group = 0;
  if (a.symmetric != b.symmetric) both.symmetric.reset();
  both.reordered = a.reordered || b.reordered;
  return both;
}
}  // namespace detail

/// Reads `quantization_config`. Fails (unsupported) for a method or version that is not read.
inline result<quantisation_config> read_quantisation_config(const nlohmann::ordered_json& j) {
  quantisation_config c;
  if (j.is_null()) return c;
  const auto text = [](const nlohmann::ordered_json& o, const char* key) { return o.is_object() && o.contains(key) && o[key].is_string() ? o[key].get<std::string>() : std::string(); };
  const auto number = [](const nlohmann::ordered_json& o, const char* key) { return o.is_object() && o.contains(key) ? detail::json_size(o[key]).value_or(0) : 0; };
  const auto either = [&](const char* a, const char* b) { return text(j, a).empty() ? text(j, b) : text(j, a); };
  if (!j.is_object()) return failure{errc::malformed, "quantization_config is not an object"};
  const auto is_set = [&](const char* key) { return j.contains(key) && !j[key].empty() && j[key] != "" && j[key] != false; };  // null is empty
  for (const char* key : {"rotation", "transform_config"})  // activations are turned as well, by what is in no tensor
    if (is_set(key)) return failure{errc::unsupported, std::string("checkpoints with ") + key + " in their quantization_config are not read"};
  c.method = either("quant_method", "method");
  c.hints.bits = static_cast<unsigned>(std::min<std::uint64_t>(std::max(number(j, "bits"), number(j, "w_bit")), 64));
  c.hints.group = static_cast<std::size_t>(std::max(number(j, "group_size"), number(j, "q_group_size")));
  if (j.contains("sym") && j["sym"].is_boolean()) c.hints.symmetric = j["sym"].get<bool>();
  if (c.method == "gptq") {
    const std::string format = either("checkpoint_format", "format");
    c.family = find_family(format.empty() ? "gptq" : format);
    if (c.family == nullptr || c.family->method != "gptq") return failure{errc::unsupported, "checkpoints of GPTQ format \"" + format + "\" are not read"};
    c.hints.reordered = j.contains("desc_act") && j["desc_act"].is_boolean() && j["desc_act"].get<bool>();
  } else if (c.method == "awq") {
    std::string version = text(j, "version");
    for (char& ch : version) ch = static_cast<char>(ch >= 'A' && ch <= 'Z' ? ch - 'A' + 'a' : ch);
    if (version.empty() || version == "gemm") c.family = find_family("awq");
    else if (version == "gemv") c.family = find_family("awq_gemv");
    else if (version == "gemv_fast") c.family = find_family("awq_gemv_fast");
    else if (version == "llm-awq") c.family = find_family("llm_awq");
    else return failure{errc::unsupported, "checkpoints of AWQ version \"" + version + "\" are not read"};
  } else if (c.method == "compressed-tensors" && j.contains("config_groups") && j["config_groups"].is_object()) {
    // Targets are modules' names, classes, or patterns, which are not matched here: of modules that no name tells apart all groups speak.
    std::optional<checkpoint_hints> all;
    for (const auto& group : j["config_groups"]) {
      if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object()) continue;
      const auto& w = group["weights"];
      checkpoint_hints h;
      h.bits = static_cast<unsigned>(std::min<std::uint64_t>(number(w, "num_bits"), 64));
      h.group = static_cast<std::size_t>(number(w, "group_size"));
      if (w.contains("symmetric") && w["symmetric"].is_boolean()) h.symmetric = w["symmetric"].get<bool>();
      h.reordered = text(w, "actorder") == "group";
      all = all ? detail::common_hints(*all, h) : h;
      if (group.contains("targets") && group["targets"].is_array())
        for (const auto& target : group["targets"])
          if (target.is_string()) c.named.emplace(target.get<std::string>(), h);
    }
    if (all) c.hints = *all;
  } else if (!c.method.empty() && c.method != "compressed-tensors" && c.method != "bitsandbytes" && c.method != "modelopt" && c.method != "mxfp4") {
    return failure{errc::unsupported, "checkpoints of quant_method \"" + c.method + "\" are not read"};
  }
  return c;
}

/// The module of a tensor that holds a weight's codes in some layout ("p.qweight", "p.weight_packed", "p.weight": p), or nothing for one
/// that only belongs to such a weight.
inline std::optional<std::string> module_with_codes(std::string_view tensor) {
  const auto strip = [&](std::string_view suffix) -> std::optional<std::string> {
    if (tensor.size() <= suffix.size() || !tensor.ends_with(suffix)) return std::nullopt;
    return std::string(tensor.substr(0, tensor.size() - suffix.size()));
  };
  for (const checkpoint_family& f : checkpoint_families)
    if (auto module = strip(f.codes.suffix)) return module;
  return std::nullopt;
}

/// Whether a tensor only belongs to a quantised weight, which is found by its codes.
inline bool is_checkpoint_part(std::string_view tensor) {
  const auto ends = [&](std::string_view suffix) { return !suffix.empty() && tensor.ends_with(suffix); };
  for (const checkpoint_family& f : checkpoint_families)
    if (ends(f.zeros.suffix) || ends(f.scales) || ends(f.index) || ends(f.shape) || ends(f.factor)) return true;
  for (const std::string_view suffix : {bitsandbytes_int8.scales, bitsandbytes_int8.marker, std::string_view(".absmax"), std::string_view(".quant_map"),
                                        std::string_view(".nested_absmax"), std::string_view(".nested_quant_map"), std::string_view(".input_scale"),
                                        std::string_view(".input_global_scale")})
    if (ends(suffix)) return true;
  return tensor.find(".quant_state.") != tensor.npos;
}

/// Finds weight `module` (without ".weight") in whatever layout it is stored, the configuration's where that says; checks that its tensors
/// fit together. Nothing where it is not quantised or not there.
template <class Find>
std::optional<result<checkpoint_weight>> find_weight(const Find& find, const std::string& module, const quantisation_config& config = {}) {
  if (auto w = find_bitsandbytes(find, module)) return w;
  if (find(module + std::string(bitsandbytes_int8.scales)) != nullptr) return find_weight(find, module, bitsandbytes_int8, config.hints);
  const checkpoint_hints& stated = config.hints_of(module);
  // The stated width is tried in every family before other widths are: 7 bits padded to words look like 8 bits that are not.
  std::optional<result<checkpoint_weight>> first;
  for (std::size_t i = stated.bits != 0 ? 0 : checkpoint_families.size(); i < 2 * checkpoint_families.size(); ++i) {
    const checkpoint_family& f = checkpoint_families[i % checkpoint_families.size()];
    checkpoint_hints hints = stated;
    hints.no_other_width = i < checkpoint_families.size();
    if (config.family != nullptr ? config.family != &f : !config.method.empty() && config.method != f.method) continue;
    const safetensor* const codes = find(module + std::string(f.codes.suffix));
    if (codes == nullptr || codes->dtype != f.codes.dtype) continue;
    auto w = find_weight(find, module, f, hints);
    if (w && w->ok()) return w;
    if (w && !first) first = std::move(w);
  }
  return first;
}

/// A quantised matrix, as `quantization_config` speaks of it.
struct quantised_module {
  std::string name;                    ///< without ".weight"
  const format_spec* format = nullptr;
  std::size_t cols = 0;
  bool act_order = false;              ///< its columns are in another order
};

namespace detail {
/// What loaders are told of matrices that are alike.
struct module_kind {
  unsigned bits = 0;
  std::int64_t group = 0;  ///< -1: one scale a row
  bool symmetric = true, act_order = false;
  std::vector<std::string> names;

  [[nodiscard]] bool same(const module_kind& k) const noexcept {
    return bits == k.bits && group == k.group && symmetric == k.symmetric && act_order == k.act_order;
  }
};

/// The kinds, the one of most matrices first. `alike`: whether there are zero-points, and an order of columns, is said once for all.
inline std::vector<module_kind> kinds_of(std::span<const quantised_module> modules, bool alike) {
  const bool any_zeros = std::any_of(modules.begin(), modules.end(), [](const auto& m) { return m.format->zero_point.present(); });
  const bool any_order = std::any_of(modules.begin(), modules.end(), [](const auto& m) { return m.act_order; });
  std::vector<module_kind> kinds;
  for (const quantised_module& m : modules) {
    module_kind k{m.format->codes.bits(), static_cast<std::int64_t>(m.format->block), !(alike ? any_zeros : m.format->zero_point.present()),
                  alike ? any_order : m.act_order, {}};
    // A row of one group is also one of the groups that other matrices have.
    const bool among_groups = std::any_of(modules.begin(), modules.end(), [&](const auto& other) { return other.format->block == m.format->block && other.format->block < other.cols; });
    if (m.format->block >= m.cols && !among_groups) k.group = -1;
    auto known = std::find_if(kinds.begin(), kinds.end(), [&](const module_kind& other) { return other.same(k); });
    if (known == kinds.end()) known = kinds.insert(kinds.end(), k);
    known->names.push_back(m.name);
  }
  std::stable_sort(kinds.begin(), kinds.end(), [](const auto& a, const auto& b) { return a.names.size() > b.names.size(); });
  return kinds;
}

/// A regular expression that only this name matches.
inline std::string pattern_of(std::string_view name) {
  std::string pattern = "^";
  for (const char c : name) pattern.append(c == '.' ? "\\" : "") += c;
  return pattern + '$';
}
}  // namespace detail

/// The `quantization_config` that loaders look for in config.json, as JSON. Loaders go by it, not by the tensors' shapes: matrices that
/// differ are named (compressed-tensors: config_groups; GPTQModel: dynamic). Fails (unsupported), naming one, where the layout has one form for
/// all. `not_quantised`: modules that stay floats. Expects a module.
inline result<nlohmann::ordered_json> quantization_config(const checkpoint_layout& layout, std::span<const quantised_module> modules, const std::vector<std::string>& not_quantised) {
  LOWBIT_EXPECTS(!modules.empty());
  const std::string_view name = layout.name;
  const checkpoint_family* const family = layout.family;
  nlohmann::ordered_json c;
  if (family == nullptr || family == &bitsandbytes_int8) {  // the tensors say the rest
    const bool four = family == nullptr;
    c = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", four}, {"load_in_8bit", !four}, {"llm_int8_threshold", 6.0},
         {"llm_int8_skip_modules", not_quantised}, {"llm_int8_enable_fp32_cpu_offload", false}, {"llm_int8_has_fp16_weight", false}};
    if (four) {
      const format_spec& s = *modules[0].format;
      const format_spec* const base = detail::bitsandbytes_base(s);
      c["bnb_4bit_quant_type"] = base != nullptr ? base->name : s.name;
      c["bnb_4bit_use_double_quant"] = layout.nested;
      c["bnb_4bit_compute_dtype"] = "float32";
      c["bnb_4bit_quant_storage"] = "uint8";
    }
    return c;
  }
  if (family->method != "gptq" && family->method != "awq" && family->method != "compressed-tensors") {
    c = {{"quant_method", family->method}, {"modules_to_not_convert", not_quantised}};
    if (family->method == "modelopt") c["quant_algo"] = "NVFP4", c["ignore"] = not_quantised;
    return c;
  }
  const std::vector<detail::module_kind> kinds = detail::kinds_of(modules, family->method != "compressed-tensors");
  const detail::module_kind& most = kinds[0];
  if (family->method == "gptq") {
    c = {{"quant_method", "gptq"}, {"bits", most.bits}, {"group_size", most.group}, {"desc_act", most.act_order}, {"sym", most.symmetric}, {"lm_head", false},
         {"checkpoint_format", name}, {"format", name}, {"method", "gptq"}, {"pack_dtype", "int32"}, {"modules_to_not_convert", not_quantised}};
    for (std::size_t i = 1; i < kinds.size(); ++i)
      for (const std::string& module : kinds[i].names)
        c["dynamic"]["+:" + detail::pattern_of(module)] = {{"bits", kinds[i].bits}, {"group_size", kinds[i].group}};
  } else if (family->method == "awq") {
    if (kinds.size() > 1)
      return failure{errc::unsupported, std::string(name) + " has one group size for all matrices, but '" + most.names[0] + "' has " + std::to_string(most.group) +
                                            " and '" + kinds[1].names[0] + "' " + std::to_string(kinds[1].group)};
    c = {{"quant_method", "awq"}, {"bits", most.bits}, {"group_size", most.group}, {"zero_point", true},
         {"version", name == "awq" ? "gemm" : name == "awq_gemv" ? "gemv" : name == "llm_awq" ? "llm-awq" : "gemv_fast"}, {"modules_to_not_convert", not_quantised}};
  } else {
    nlohmann::ordered_json groups;
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      const detail::module_kind& k = kinds[i];
      nlohmann::ordered_json weights = {{"num_bits", k.bits}, {"type", family->table != nullptr ? "float" : "int"}, {"symmetric", k.symmetric},
                                        {"dynamic", false}, {"observer", "minmax"}};
      if (name == "compressed-tensors-nvfp4") weights["strategy"] = "tensor_group", weights["group_size"] = 16;
      else if (name == "compressed-tensors-mxfp4") weights["strategy"] = "group", weights["group_size"] = 32;
      else if (k.group < 0) weights["strategy"] = "channel";
      else weights["strategy"] = "group", weights["group_size"] = k.group;
      if (k.act_order) weights["actorder"] = "group";
      nlohmann::ordered_json targets = k.names;
      if (kinds.size() == 1) targets = {"Linear"};
      groups["group_" + std::to_string(i)] = {{"targets", targets}, {"weights", weights}, {"input_activations", nullptr}, {"output_activations", nullptr}};
    }
    const char* const format = name == "compressed-tensors-int" ? "int-quantized" : name == "compressed-tensors-nvfp4" ? "nvfp4-pack-quantized"
                               : name == "compressed-tensors-mxfp4" ? "mxfp4-pack-quantized" : "pack-quantized";
    c = {{"quant_method", "compressed-tensors"}, {"format", format}, {"quantization_status", "compressed"}, {"config_groups", groups},
         {"ignore", not_quantised}, {"kv_cache_scheme", nullptr}};
  }
  return c;
}

}  // namespace lowbit
