// llama.cpp's mixes: which tensor gets which type in a Q4_K_M file and its like, by name, layer and shape (llama-quant.cpp).
//
// What its llama_tensor_get_type decides for decoder models with GGUF's tensor names, dense or with experts, for the types that
// lowbit has; with no layers pruned and its default options. A type whose blocks do not divide a tensor's columns is replaced by its fallback.
#pragma once

#include <lowbit/format/registry.hpp>

#include <charconv>
#include <string_view>

namespace lowbit {

/// llama.cpp's file types.
enum class mix : std::uint8_t {
  f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q2_k_s, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k, iq4_nl, iq4_xs, tq2_0
};

/// A mix, its name, the id that general.file_type holds, and the format that most tensors get.
struct mix_entry {
  mix id;
  std::string_view name;
  unsigned file_type;
  format_id format;
};

inline constexpr std::array<mix_entry, 21> mixes{{
    {mix::f32, "F32", 0, id_of<f32>()},        {mix::f16, "F16", 1, id_of<float16>()},     {mix::bf16, "BF16", 32, id_of<bfloat16>()},
    {mix::q4_0, "Q4_0", 2, id_of<q4_0>()},     {mix::q4_1, "Q4_1", 3, id_of<q4_1>()},      {mix::q5_0, "Q5_0", 8, id_of<q5_0>()},
    {mix::q5_1, "Q5_1", 9, id_of<q5_1>()},     {mix::q8_0, "Q8_0", 7, id_of<q8_0>()},      {mix::q2_k, "Q2_K", 10, id_of<q2_k>()},
    {mix::q2_k_s, "Q2_K_S", 21, id_of<q2_k>()}, {mix::q3_k_s, "Q3_K_S", 11, id_of<q3_k>()}, {mix::q3_k_m, "Q3_K_M", 12, id_of<q3_k>()},
    {mix::q3_k_l, "Q3_K_L", 13, id_of<q3_k>()}, {mix::q4_k_s, "Q4_K_S", 14, id_of<q4_k>()}, {mix::q4_k_m, "Q4_K_M", 15, id_of<q4_k>()},
    {mix::q5_k_s, "Q5_K_S", 16, id_of<q5_k>()}, {mix::q5_k_m, "Q5_K_M", 17, id_of<q5_k>()}, {mix::q6_k, "Q6_K", 18, id_of<q6_k>()},
    {mix::iq4_nl, "IQ4_NL", 25, id_of<iq4_nl>()}, {mix::iq4_xs, "IQ4_XS", 30, id_of<iq4_xs>()}, {mix::tq2_0, "TQ2_0", 37, id_of<tq2_0>()},
}};

constexpr const mix_entry& entry_of(mix m) noexcept {
  LOWBIT_EXPECTS(static_cast<std::size_t>(m) < mixes.size());
  return mixes[static_cast<std::size_t>(m)];
}

/// The mix of that name, whatever its case ("q4_k_m"), or nothing.
constexpr std::optional<mix> find_mix(std::string_view name) noexcept {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; };
  for (const mix_entry& e : mixes) {
    bool same = e.name.size() == name.size();
    for (std::size_t i = 0; same && i < name.size(); ++i) same = e.name[i] == upper(name[i]);
    if (same) return e.id;
  }
  return std::nullopt;
}

/// What replaces a format whose blocks do not divide a tensor's columns: llama.cpp's table, and for types that it has none for the
/// nearest type with smaller blocks; f16 where that does not divide them either.
constexpr format_id fallback_format(format_id wanted, std::size_t cols) noexcept {
  constexpr std::pair<format_id, format_id> fallbacks[] = {
      {id_of<q2_k>(), id_of<q4_0>()},     {id_of<q3_k>(), id_of<q4_0>()},   {id_of<tq2_0>(), id_of<q4_0>()}, {id_of<q2_0>(), id_of<q4_0>()},
      {id_of<q1_0>(), id_of<q4_0>()},     {id_of<q4_k>(), id_of<q5_0>()},   {id_of<q5_k>(), id_of<q5_1>()},  {id_of<q6_k>(), id_of<q8_0>()},
      {id_of<iq4_xs>(), id_of<iq4_nl>()}, {id_of<nvfp4>(), id_of<mxfp4>()}, {id_of<tq1_0>(), id_of<q4_0>()}};
  const auto divides = [&](format_id id) { return cols % spec_of_id(id).block == 0; };
  if (divides(wanted)) return wanted;
  for (const auto& [from, to] : fallbacks)
    if (from == wanted && divides(to)) return to;
  return id_of<float16>();
}

/// What the rules look at besides a tensor's name.
struct mix_model {
  std::size_t layers = 0;
  std::size_t heads = 1, kv_heads = 1;
  std::size_t experts = 0;          ///< 0 or 1: dense
  bool tied = false;                ///< no output.weight: the embedding is the output matrix
  bool has_importance = false;      ///< quantised with an importance matrix
};

namespace detail {

/// The number in "blk.N.…", or nothing.
constexpr std::optional<std::size_t> layer_of(std::string_view name) noexcept {
  if (!name.starts_with("blk.")) return std::nullopt;
  std::size_t layer = 0, i = 4;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < 1000000; ++i) layer = 10 * layer + static_cast<std::size_t>(name[i] - '0');
  return i > 4 && i < name.size() && name[i] == '.' ? std::optional(layer) : std::nullopt;
}

/// llama.cpp's use_more_bits: the first and last eighth of the layers, and every third in between.
constexpr bool more_bits(std::size_t i, std::size_t n) noexcept { return i < n / 8 || i >= 7 * n / 8 || (i >= n / 8 && (i - n / 8) % 3 == 2); }

constexpr format_id format_of_role(const mix_entry& e, std::string_view name, std::size_t cols, const mix_model& m) noexcept {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  const auto is = [&](auto... any) { return ((e.id == any) || ...); };
  const std::size_t n = m.layers, layer = layer_of(name).value_or(0);
  const bool grouped = m.kv_heads != 0 && m.heads / m.kv_heads >= 4, eight = m.experts == 8;
  const format_id q3 = id_of<q3_k>(), q4 = id_of<q4_k>(), q5 = id_of<q5_k>(), q6 = id_of<q6_k>(), q8 = id_of<q8_0>();

  const bool embedding = name == "token_embd.weight" || name == "per_layer_token_embd.weight";
  if (name == "output.weight" || (m.tied && embedding))
    return cols % spec_of_id(e.format).block != 0 || e.format == q8 ? q8 : q6;
  if (embedding) return is(mix::tq2_0) ? q4 : e.format;

  const bool fused = has("attn_qkv.weight");
  if (fused || has("attn_v.weight") || has("attn_kv_b.weight")) {
    format_id f = e.format;
    if (is(mix::q2_k)) f = grouped ? q4 : q3;
    else if (is(mix::q2_k_s) && grouped) f = q4;
    else if (is(mix::q3_k_m)) f = layer < 2 ? q5 : q4;
    else if (is(mix::q3_k_l)) f = q5;
    else if (is(mix::iq4_nl, mix::iq4_xs) && grouped) f = q5;
    else if (is(mix::q4_k_m, mix::q5_k_m) && more_bits(layer, n)) f = q6;
    else if (is(mix::q4_k_s) && layer < 4) f = q5;
    if (n == 80 && m.heads != m.kv_heads && (f == q3 || f == q4)) f = q5;  // Llama 2 70B: eight heads share these values
    return eight ? q8 : f;
  }
  if (has("attn_k.weight")) return eight ? q8 : e.format;
  if (has("ffn_down")) {
    if (is(mix::q2_k)) return q3;
    if (is(mix::q2_k_s)) return layer < n / 8 ? q4 : e.format;
    if (is(mix::q3_k_m)) return layer < n / 16 ? q5 : q4;
    if (is(mix::q3_k_l)) return q5;
    if (is(mix::q4_k_m, mix::q5_k_m)) return more_bits(layer, n) ? q6 : e.format;
    if (layer >= n / 8) return e.format;
    if (is(mix::iq4_nl, mix::iq4_xs) && !m.has_importance) return q5;
    if (is(mix::q4_k_s)) return q5;
    if (is(mix::q4_0) && m.has_importance) return id_of<q4_1>();
    if (is(mix::q5_0) && m.has_importance) return id_of<q5_1>();
    return e.format;
  }
  if (has("attn_output.weight")) {
    if (eight) return is(mix::q2_k, mix::q3_k_s, mix::q3_k_m, mix::iq4_nl, mix::iq4_xs, mix::q4_k_s, mix::q4_k_m) ? q5 : e.format;
    if (is(mix::q2_k)) return q3;
    if (is(mix::q3_k_m)) return q4;
    if (is(mix::q3_k_l)) return q5;
  }
  return e.format;
}

}  // namespace detail

/// Whether llama.cpp quantises a tensor of a decoder at all: a matrix whose name ends in "weight" and that is neither a norm nor a router.
constexpr bool quantised_by_mixes(std::string_view name, std::size_t dimensions) noexcept {
  if (dimensions < 2 || !name.ends_with("weight")) return false;
  for (const std::string_view kept : {"_norm.weight", "ffn_gate_inp.weight", "position_embd", "token_types", "ssm_conv1d", "shortconv.conv.weight"})
    if (name.find(kept) != name.npos) return false;
  return true;
}

/// The format that a mix gives a tensor of `cols` columns, by its GGUF name ("blk.3.attn_v.weight"); nothing: it stays as it is.
constexpr std::optional<format_id> mix_format(mix m, std::string_view name, std::size_t dimensions, std::size_t cols, const mix_model& model) noexcept {
  const mix_entry& e = entry_of(m);
  if (!quantised_by_mixes(name, dimensions)) return std::nullopt;
  if (spec_of_id(e.format).is_float()) return e.format;
  return fallback_format(detail::format_of_role(e, name, cols, model), cols);
}

}  // namespace lowbit
