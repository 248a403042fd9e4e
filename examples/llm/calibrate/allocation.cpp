#include "allocation.hpp"

#include <lowbit/quantise/allocate_mix.hpp>

namespace llm {
namespace {

lowbit::result<std::vector<lowbit::format_override>> read_overrides(const std::vector<std::string>& texts, const checkpoint& model) {
  std::vector<lowbit::format_override> all;
  for (const std::string& text : texts) {
    const std::size_t at = text.find('=');
    if (at == text.npos || at == 0)
      return lowbit::failure{lowbit::errc::bad_value, "--override " + text + ": not of the form PATTERN=FORMAT"};
    const auto format = format_named(text.substr(at + 1));
    if (!format) return format.error();
    const std::string pattern = text.substr(0, at);
    bool used = false;
    for (const tensor& t : model.tensors) used |= !t.is_vector && lowbit::glob_match(pattern, t.name);
    if (!used) return lowbit::failure{lowbit::errc::not_found, "--override " + text + ": no matrix of the model is called that"};
    all.push_back({pattern, *format});
  }
  return all;
}

}  // namespace

lowbit::result<lowbit::format_id> choose_formats(checkpoint& model, const format_choice& choice, bool has_importance) {
  const auto overrides = read_overrides(choice.overrides, model);
  if (!overrides) return overrides.error();
  const auto mix = lowbit::find_format(choice.format) ? std::nullopt : lowbit::find_mix(choice.format);
  lowbit::format_id whole{};
  if (mix) {
    whole = lowbit::entry_of(*mix).format;
    model.notes.set("general.file_type", static_cast<std::uint32_t>(lowbit::entry_of(*mix).file_type));
  } else {
    const auto format = format_named(choice.format);
    if (!format) return format.error();
    whole = *format;
  }
  const model_config& c = model.config;
  const lowbit::mix_model shape{.layers = c.layers, .heads = c.heads, .kv_heads = c.kv_heads, .experts = 0,
                                .tied = model.find("output.weight") == nullptr, .has_importance = has_importance};
  for (tensor& t : model.tensors) {
    if (t.is_vector) continue;
    t.wanted = mix ? lowbit::mix_format(*mix, t.name, 2, t.cols, shape) : std::nullopt;
    if (const auto forced = lowbit::overridden(*overrides, t.name)) t.wanted = forced;
    if (t.wanted && in_gguf(*t.wanted) != in_gguf(whole))
      return lowbit::failure{lowbit::errc::unsupported, "tensor " + t.name + ": no file holds both " + std::string(lowbit::spec_of_id(*t.wanted).name) + " and " +
                                                            std::string(lowbit::spec_of_id(whole).name)};
  }
  return whole;
}

}  // namespace llm
