// Which matrices of a Llama's layer read the same activations, and what lies before those: where a scaling of the channels can be folded.
//
//   attention_norm -> query, key, value    value -> output    mlp_norm -> gate, up    up -> down
//
// The groups stand in the order in which they are quantised, so that each sees inputs that the quantised ones before it made
// (Frantar et al. 2023, "true sequential").
#pragma once

#include "../engine/layer.hpp"

#include <lowbit/quantise/transform.hpp>

#include <array>
#include <numeric>
#include <span>
#include <string_view>

namespace llm {

/// The matrices of a layer.
enum class part : unsigned char { query, key, value, output, gate, up, down };
inline constexpr std::array all_parts{part::query, part::key, part::value, part::output, part::gate, part::up, part::down};
inline constexpr std::size_t part_count = all_parts.size();

struct part_info {
  std::string_view name;                            ///< of the tensor, after "blk.N."
  lowbit::panel_matrix layer_weights::*weights;
  lowbit::low_rank layer_adapters::*adapter;
};
inline constexpr std::array<part_info, part_count> parts{{
    {"attn_q.weight", &layer_weights::query, &layer_adapters::query},
    {"attn_k.weight", &layer_weights::key, &layer_adapters::key},
    {"attn_v.weight", &layer_weights::value, &layer_adapters::value},
    {"attn_output.weight", &layer_weights::output, &layer_adapters::output},
    {"ffn_gate.weight", &layer_weights::gate, &layer_adapters::gate},
    {"ffn_up.weight", &layer_weights::up, &layer_adapters::up},
    {"ffn_down.weight", &layer_weights::down, &layer_adapters::down},
}};
constexpr const part_info& info_of(part p) noexcept { return parts[static_cast<std::size_t>(p)]; }

/// One layer's weights as floats.
struct float_layer {
  std::vector<float> attention_norm, mlp_norm;
  std::array<matrix, part_count> weights;  ///< by part, [out, in]

  [[nodiscard]] matrix& operator[](part p) noexcept { return weights[static_cast<std::size_t>(p)]; }
  [[nodiscard]] const matrix& operator[](part p) const noexcept { return weights[static_cast<std::size_t>(p)]; }
};

/// Matrices that read the same activations.
enum class input_group : unsigned char { attention, attention_output, mlp, mlp_output };
inline constexpr std::array<input_group, 4> input_groups{input_group::attention, input_group::attention_output, input_group::mlp,
                                                         input_group::mlp_output};

/// The matrices that read a group's activations.
constexpr std::span<const part> consumers_of(input_group g) noexcept {
  switch (g) {
    case input_group::attention: return std::span(all_parts).subspan(0, 3);
    case input_group::attention_output: return std::span(all_parts).subspan(3, 1);
    case input_group::mlp: return std::span(all_parts).subspan(4, 2);
    case input_group::mlp_output: break;
  }
  return std::span(all_parts).subspan(6, 1);
}

/// How many channels the activations of a group have.
constexpr std::size_t channels_of(input_group g, const model_config& c) noexcept {
  switch (g) {
    case input_group::attention:
    case input_group::mlp: return c.hidden;
    case input_group::attention_output: return c.query_size();
    case input_group::mlp_output: break;
  }
  return c.intermediate;
}

/// Which of its producer's channels each of a group's comes from, where the producer is a matrix; empty: a norm's, one by one. With grouped
/// queries a value feeds every query head of its group, so a scaling has to be the same for all of them.
inline std::vector<std::uint32_t> producer_channels(input_group g, const model_config& c) {
  if (g == input_group::attention_output) return lowbit::grouped_query_channels(c.heads, c.kv_heads, c.head_dim);
  if (g != input_group::mlp_output) return {};
  std::vector<std::uint32_t> one_by_one(c.intermediate);
  std::iota(one_by_one.begin(), one_by_one.end(), 0u);
  return one_by_one;
}

/// Multiplies a group's columns by scales and divides what produces its channels by them: the layer computes the same. `from` as
/// producer_channels gives it; channels with the same number must have the same scale. Empty scales: nothing.
inline void fold(float_layer& layer, input_group g, const lowbit::input_scales& scales, std::span<const std::uint32_t> from) {
  for (const part p : consumers_of(g)) lowbit::multiply_columns(lowbit::view(layer[p]), scales);
  const lowbit::input_scales produced = from.empty() ? scales : lowbit::producer_scales(scales, from);
  switch (g) {
    case input_group::attention: return lowbit::divide_norm(layer.attention_norm, {}, produced);
    case input_group::attention_output: return lowbit::divide_rows(lowbit::view(layer[part::value]), {}, produced);
    case input_group::mlp: return lowbit::divide_norm(layer.mlp_norm, {}, produced);
    case input_group::mlp_output: return lowbit::divide_rows(lowbit::view(layer[part::up]), {}, produced);
  }
}

}  // namespace llm
