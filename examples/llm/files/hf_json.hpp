// The JSON files of a Hugging Face folder, read and written: config.json, tokenizer.json with tokenizer_config.json.
#pragma once

#include "../engine/config.hpp"
#include "../text/vocabulary.hpp"

#include <nlohmann/json.hpp>

#include <span>
#include <string_view>

namespace llm {

/// Parses JSON; `path` is for the message.
lowbit::result<nlohmann::json> parse_json(std::string_view path, std::string_view text);

/// config.json of a LlamaForCausalLM. Fails on features that the engine lacks (biases, other RoPE scalings than llama3).
lowbit::result<model_config> read_hf_config(std::string_view path, const nlohmann::json& config);

/// Whether config.json says that the embedding serves as the output matrix.
lowbit::result<bool> is_tied(std::string_view path, const nlohmann::json& config);

/// tokenizer.json: byte-level BPE as GPT-2 or SmolLM cut words, or Llama 2's BPE with byte fallback. `settings` is
/// tokenizer_config.json, or null; `config` is config.json.
lowbit::result<vocabulary> read_hf_tokeniser(std::string_view path, const nlohmann::json& tokeniser, const nlohmann::json& settings,
                                             const nlohmann::json& config);

/// What the readers above read. `tied`: the embedding serves as the output matrix.
nlohmann::json hf_config(const model_config& c, const vocabulary& v, bool tied);
nlohmann::json hf_tokeniser(const vocabulary& v);
nlohmann::json hf_tokeniser_settings(const vocabulary& v);

}  // namespace llm
