// Transforms: changing the weights before they are quantised, in a way that is undone exactly elsewhere.
//
// A transform is a type with `needs`, the statistics it uses, and `apply(weights, stats) -> input_scales` or, for those that try out the
// quantisation that will follow, `apply<Fit>(spec, weights, stats, executor)`: it may change the [out, in] weights, and answers by what
// each input channel must be divided so that the layer's output is as before (empty: nothing). Several are applied from left to right,
// their scales multiplied. The functions here fold such scales into what produces the channels (AutoAWQ's and SmoothQuant's folds).
#pragma once

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/format/spec.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace lowbit {

/// Factors for input channels: the activations are to be divided by them. Empty: all 1.
using input_scales = std::vector<float>;

template <class T>
concept transform = requires { typename T::needs; };

/// Weights that multiply the same inputs: q, k and v; gate and up; o; down. All [out, in] with the same `in`.
using consumer_group = std::span<const matrix_view<const float>>;

namespace detail {
template <class T, class Fit, class Stats, class E>
input_scales apply_transform(const format_spec& s, matrix_view<float> w, const Stats& stats, E& executor) {
  if constexpr (requires { T::template apply<Fit>(s, w, stats, executor); }) return T::template apply<Fit>(s, w, stats, executor);
  else return T::apply(w, stats);
}

/// A scale that can be divided by: what is zero, negative or not a finite float becomes 1.
inline float usable_scale(double s) noexcept {
  const float f = static_cast<float>(s);
  return f > 0.0f && std::isfinite(f) && std::isfinite(1.0f / f) ? f : 1.0f;
}
}  // namespace detail

/// A consumer's side of a fold: column c times scales[c]. No scales: nothing.
inline void multiply_columns(matrix_view<float> w, std::span<const float> scales) {
  if (scales.empty()) return;
  LOWBIT_EXPECTS(scales.size() == w.cols);
  for (std::size_t r = 0; r < w.rows; ++r)
    for (std::size_t c = 0; c < w.cols; ++c) w(r, c) *= scales[c];
}

/// A producing linear layer's side: its last scales.size() rows (in a fused q, k, v layer the values are last) and their biases
/// (empty: it has none) are divided.
inline void divide_rows(matrix_view<float> w, std::span<float> bias, std::span<const float> scales) {
  LOWBIT_EXPECTS(scales.size() <= w.rows && (bias.empty() || bias.size() == w.rows));
  const std::size_t first = w.rows - scales.size();
  for (std::size_t i = 0; i < scales.size(); ++i) {
    for (std::size_t c = 0; c < w.cols; ++c) w(first + i, c) /= scales[i];
    if (!bias.empty()) bias[first + i] /= scales[i];
  }
}

/// What a norm multiplies by: its weight, or 1 more than it (Gemma).
enum class norm_gain : std::uint8_t { weight, one_plus_weight };

/// A producing norm's side: its gain and bias (empty: it has none, as RMSNorm) are divided.
inline void divide_norm(std::span<float> weight, std::span<float> bias, std::span<const float> scales, norm_gain gain = norm_gain::weight) {
  LOWBIT_EXPECTS(scales.empty() || (scales.size() == weight.size() && (bias.empty() || bias.size() == weight.size())));
  for (std::size_t c = 0; c < scales.size(); ++c) {
    if (gain == norm_gain::weight) weight[c] /= scales[c];
    else weight[c] = static_cast<float>((static_cast<double>(weight[c]) + 1.0) / static_cast<double>(scales[c]) - 1.0);
    if (!bias.empty()) bias[c] /= scales[c];
  }
}

/// A linear layer behind a norm; `bias` may be empty where the norm has none.
struct linear_view {
  matrix_view<float> weights;
  std::span<float> bias{};
};

/// Moves a norm's gain and bias into the layers that read it, and leaves it a gain of 1 and no bias: W diag(g), b + W beta. What a rotation
/// of the residual stream needs, since only a norm without gain commutes with it (Ashkboos et al. 2024, QuaRot, section 3).
inline void move_norm(std::span<float> weight, std::span<float> bias, std::span<const linear_view> consumers, norm_gain gain = norm_gain::weight) {
  LOWBIT_EXPECTS(bias.empty() || bias.size() == weight.size());
  for (const linear_view& l : consumers) {
    LOWBIT_EXPECTS(l.weights.cols == weight.size() && (bias.empty() || l.bias.size() == l.weights.rows));
    for (std::size_t r = 0; r < l.weights.rows; ++r) {
      double moved = 0;
      for (std::size_t c = 0; c < weight.size(); ++c) {
        float& w = l.weights(r, c);
        if (!bias.empty()) moved += static_cast<double>(w) * static_cast<double>(bias[c]);
        w *= gain == norm_gain::weight ? weight[c] : 1.0f + weight[c];
      }
      if (!bias.empty()) l.bias[r] = static_cast<float>(static_cast<double>(l.bias[r]) + moved);
    }
  }
  std::fill(weight.begin(), weight.end(), gain == norm_gain::weight ? 1.0f : 0.0f);
  std::fill(bias.begin(), bias.end(), 0.0f);
}

/// Which of the producer's channels each input channel comes from, where several come from one: with grouped-query attention the output
/// projection reads every key-value head's values heads / kv_heads times.
inline std::vector<std::uint32_t> grouped_query_channels(std::size_t heads, std::size_t kv_heads, std::size_t head_size) {
  LOWBIT_EXPECTS(kv_heads != 0 && heads % kv_heads == 0);
  std::vector<std::uint32_t> from(heads * head_size);
  for (std::size_t c = 0; c < from.size(); ++c)
    from[c] = static_cast<std::uint32_t>(c / head_size / (heads / kv_heads) * head_size + c % head_size);
  return from;
}

/// Scales of the producer's channels, given those of the channels that come from them (as a search with `tied` gives: equal where tied).
inline input_scales producer_scales(const input_scales& scales, std::span<const std::uint32_t> tied) {
  LOWBIT_EXPECTS(scales.empty() || scales.size() == tied.size());
  input_scales out;
  for (std::size_t c = 0; c < scales.size(); ++c) {
    if (tied[c] >= out.size()) out.resize(tied[c] + std::size_t{1}, 1.0f);
    out[tied[c]] = scales[c];
  }
  return out;
}

}  // namespace lowbit
