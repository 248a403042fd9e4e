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
  checkpoint_hints hints;
};

/// Reads `quantization_config`. Fails (unsupported) for a method or version that is not read.
inline result<quantisation_config> read_quantisation_config(const nlohmann::ordered_json& j) {
  quantisation_config c;
  if (j.is_null()) return c;
  const auto text = [](const nlohmann::ordered_json& o, const char* key) { return o.is_object() && o.contains(key) && o[key].is_string() ? o[key].get<std::string>() : std::string(); };
  const auto number = [](const nlohmann::ordered_json& o, const char* key) { return o.is_object() && o.contains(key) ? detail::json_size(o[key]).value_or(0) : 0; };
  const auto either = [&](const char* a, const char* b) { return text(j, a).empty() ? text(j, b) : text(j, a); };
  if (!j.is_object()) return failure{errc::malformed, "quantization_config is not an object"};
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
  } else if (c.method == "compressed-tensors" && j.contains("config_groups") && j["config_groups"].is_object() && j["config_groups"].size() == 1) {
    const auto& group = *j["config_groups"].begin();
    if (group.is_object() && group.contains("weights") && group["weights"].is_object()) {
      const auto& w = group["weights"];
      c.hints.bits = static_cast<unsigned>(std::min<std::uint64_t>(number(w, "num_bits"), 64));
      c.hints.group = static_cast<std::size_t>(number(w, "group_size"));
      if (w.contains("symmetric") && w["symmetric"].is_boolean()) c.hints.symmetric = w["symmetric"].get<bool>();
      c.hints.reordered = text(w, "actorder") == "group";
    }
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
  // The stated width is tried in every family before other widths are: 7 bits padded to words look like 8 bits that are not.
  std::optional<result<checkpoint_weight>> first;
  for (std::size_t i = config.hints.bits != 0 ? 0 : checkpoint_families.size(); i < 2 * checkpoint_families.size(); ++i) {
    const checkpoint_family& f = checkpoint_families[i % checkpoint_families.size()];
    checkpoint_hints hints = config.hints;
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

/// The `quantization_config` that loaders look for in config.json, as JSON text. `s` is the format of the matrices; `act_order` says that
/// some have their columns in another order, `modules_not_quantised` which stay floats.
inline std::string quantization_config(const checkpoint_layout& layout, const format_spec& s, std::size_t cols, bool act_order,
                                       const std::vector<std::string>& modules_not_quantised) {
  const std::string_view name = layout.name;
  const unsigned bits = s.codes.bits();
  const bool symmetric = !s.zero_point.present();
  const auto group = static_cast<std::int64_t>(s.block >= cols ? -1 : static_cast<std::int64_t>(s.block));
  nlohmann::ordered_json c;
  if (layout.family == nullptr || layout.family == &bitsandbytes_int8) {
    const bool four = layout.family == nullptr;
    c = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", four}, {"load_in_8bit", !four}, {"llm_int8_threshold", 6.0},
         {"llm_int8_skip_modules", modules_not_quantised}, {"llm_int8_enable_fp32_cpu_offload", false}, {"llm_int8_has_fp16_weight", false}};
    if (four) {
      const format_spec* const base = detail::bitsandbytes_base(s);
      c["bnb_4bit_quant_type"] = base != nullptr ? base->name : s.name;
      c["bnb_4bit_use_double_quant"] = layout.nested;
      c["bnb_4bit_compute_dtype"] = "float32";
      c["bnb_4bit_quant_storage"] = "uint8";
    }
  } else if (layout.family->method == "gptq") {
    c = {{"quant_method", "gptq"}, {"bits", bits}, {"group_size", group}, {"desc_act", act_order}, {"sym", symmetric}, {"lm_head", false},
         {"checkpoint_format", name}, {"format", name}, {"method", "gptq"}, {"pack_dtype", "int32"}, {"modules_to_not_convert", modules_not_quantised}};
  } else if (layout.family->method == "awq") {
    c = {{"quant_method", "awq"}, {"bits", bits}, {"group_size", group}, {"zero_point", true},
         {"version", name == "awq" ? "gemm" : name == "awq_gemv" ? "gemv" : name == "llm_awq" ? "llm-awq" : "gemv_fast"}, {"modules_to_not_convert", modules_not_quantised}};
  } else if (layout.family->method == "compressed-tensors") {
    nlohmann::ordered_json weights = {{"num_bits", bits}, {"type", layout.family->table != nullptr ? "float" : "int"}, {"symmetric", symmetric},
                                      {"dynamic", false}, {"observer", "minmax"}};
    if (name == "compressed-tensors-nvfp4") weights["strategy"] = "tensor_group", weights["group_size"] = 16;
    else if (name == "compressed-tensors-mxfp4") weights["strategy"] = "group", weights["group_size"] = 32;
    else if (group < 0) weights["strategy"] = "channel";
    else weights["strategy"] = "group", weights["group_size"] = group;
    if (act_order) weights["actorder"] = "group";
    const char* const format = name == "compressed-tensors-int" ? "int-quantized" : name == "compressed-tensors-nvfp4" ? "nvfp4-pack-quantized"
                               : name == "compressed-tensors-mxfp4" ? "mxfp4-pack-quantized" : "pack-quantized";
    c = {{"quant_method", "compressed-tensors"}, {"format", format}, {"quantization_status", "compressed"},
         {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", nullptr}, {"output_activations", nullptr}}}}},
         {"ignore", modules_not_quantised}, {"kv_cache_scheme", nullptr}};
  } else {
    c = {{"quant_method", layout.family->method}, {"modules_to_not_convert", modules_not_quantised}};
    if (layout.family->method == "modelopt") c["quant_algo"] = "NVFP4", c["ignore"] = modules_not_quantised;
  }
  return c.dump(2);
}

}  // namespace lowbit
