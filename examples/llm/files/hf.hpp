// What a Hugging Face folder says of its quantised weights, and which tensors make them.
#pragma once

#include <lowbit/io/checkpoint.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace llm {

/// The format of a tensor of floats, or null for other types.
const lowbit::format_spec* float_format(std::string_view dtype);

/// What the files say of the quantisation: a part of config.json, or a file of AutoGPTQ's or AutoAWQ's. Nothing where there is none of them.
lowbit::result<lowbit::quantisation_config> read_quantisation(const std::string& folder);

/// The module whose codes a tensor may hold. Floats are no codes, unless bitsandbytes keeps its bytes under a float's type (quant_storage).
std::optional<std::string> module_of(const lowbit::safetensors_model& model, const lowbit::safetensor& t);

/// A quantised weight, or nothing where there is none; a failure too where the system did not map its tensors.
std::optional<lowbit::result<lowbit::checkpoint_weight>> find_quantised(lowbit::safetensors_parts& parts, const std::string& module,
                                                                        const lowbit::quantisation_config& settings);

}  // namespace llm
