// What the tensors of a Llama are called: in GGUF (which the engine uses throughout) and by Hugging Face.
#pragma once

#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

namespace llm {

struct name_pair {
  std::string_view gguf, hf;
};

/// Tensors that exist once.
inline constexpr std::array<name_pair, 3> global_names{{
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
}};
/// Tensors of a layer, after "blk.N." or "model.layers.N.".
inline constexpr std::array<name_pair, 9> layer_names{{
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
}};

/// "blk.3.attn_q.weight".
inline std::string layer_name(std::size_t layer, std::string_view part) {
  return "blk." + std::to_string(layer) + '.' + std::string{part};
}

/// A name translated from one side of the tables to the other, or nothing for a tensor that a Llama does not have.
inline std::optional<std::string> translate_name(std::string_view name, std::string_view name_pair::*from, std::string_view name_pair::*to) {
  for (const name_pair& p : global_names)
    if (name == p.*from) return std::string{p.*to};
  constexpr name_pair prefix{"blk.", "model.layers."};
  if (!name.starts_with(prefix.*from)) return std::nullopt;
  name.remove_prefix((prefix.*from).size());
  std::size_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{} || end == name.data() + name.size() || *end != '.') return std::nullopt;
  name.remove_prefix(static_cast<std::size_t>(end - name.data()) + 1);
  for (const name_pair& p : layer_names)
    if (name == p.*from) return std::string{prefix.*to} + std::to_string(layer) + '.' + std::string{p.*to};
  return std::nullopt;
}

inline std::optional<std::string> gguf_name(std::string_view hf) { return translate_name(hf, &name_pair::hf, &name_pair::gguf); }
inline std::optional<std::string> hf_name(std::string_view gguf) { return translate_name(gguf, &name_pair::gguf, &name_pair::hf); }

/// The tensor that holds the factor of a weight's values in GGUF (NVFP4): "blk.0.attn_q.scale" for "blk.0.attn_q.weight".
inline std::string gguf_factor_name(std::string_view weight) {
  return std::string{weight.substr(0, weight.rfind('.'))} + ".scale";
}

/// Whether RoPE's row order matters to this tensor (its GGUF name): queries and keys.
inline bool is_query(std::string_view name) noexcept { return name.ends_with(".attn_q.weight"); }
inline bool is_key(std::string_view name) noexcept { return name.ends_with(".attn_k.weight"); }
/// Whether this is the embedding or the output matrix (its GGUF name), which checkpoints outside GGUF keep in floats.
inline bool is_vocabulary_matrix(std::string_view name) noexcept { return name == "token_embd.weight" || name == "output.weight"; }

}  // namespace llm
