// Outlier channels apart (LLM.int8: Dettmers et al. 2022, section 3.2): a few input channels keep float weights, the rest is quantised.
//
// W x = Q(W with those columns zeroed) x' + W[:, outliers] x[outliers], x' being x with those channels zeroed, so that they neither
// widen the weights' ranges nor the activations'. Any format serves for the rest. LLM.int8's own is int8_rows: one scale a row, so that the
// run-time activations are rounded by each token's largest value as well. Products: adapt/outlier_panels.hpp.
#pragma once

#include <lowbit/quantise/quantiser.hpp>

#include <algorithm>
#include <limits>
#include <utility>

namespace lowbit {

/// Channels whose inputs reach a threshold (the paper's 6.0), ascending; at most `most` of them, those with the largest inputs. A NaN is
/// never an outlier, an infinity always; a statistic without samples has none.
inline std::vector<std::uint32_t> outlier_channels(const channel_maximum& inputs, float threshold = 6.0f,
                                                   std::size_t most = std::numeric_limits<std::size_t>::max()) {
  std::vector<std::uint32_t> channels;
  if (inputs.tokens() == 0) return channels;
  const Eigen::VectorXf x = inputs.maximum();
  for (Eigen::Index c = 0; c < x.size(); ++c)
    if (x[c] >= threshold) channels.push_back(static_cast<std::uint32_t>(c));
  if (channels.size() > most) {
    std::stable_sort(channels.begin(), channels.end(), [&](std::uint32_t a, std::uint32_t b) { return x[a] > x[b]; });
    channels.resize(most);
    std::sort(channels.begin(), channels.end());
  }
  return channels;
}

/// The `count` channels with the largest inputs, ascending: a threshold of nothing.
inline std::vector<std::uint32_t> largest_channels(const channel_maximum& inputs, std::size_t count) {
  return outlier_channels(inputs, -std::numeric_limits<float>::infinity(), count);
}

/// LLM.int8's rows as a format: signed bytes with one scale, SCB / 127, for a row of `cols`. A value made at run time, since its block is
/// the row: keep it as long as the matrices that are made with it. The scale is an f16, for which every unit has kernels; codes are rounded
/// with the scale as stored.
constexpr format_spec int8_rows(std::size_t cols) noexcept {
  LOWBIT_EXPECTS(cols <= std::numeric_limits<unsigned>::max() / 16);
  format_spec s{};
  s.name = "int8_rows";
  s.block = cols == 0 ? 1 : static_cast<unsigned>(cols);
  s.bytes = s.block + 2;
  s.codes = {{plane{8, 0, byte(2), {{s.block}, {8}}}}, 0, true};
  s.scale = {number::f16, 0};
  return s;
}

/// The fit of int8_rows, and of any symmetric format: max|x| on the largest positive level, so that both signs reach as far.
struct symmetric_absmax {
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    if (detail::has_offset(s)) return absmax::fit(s, x, n, about, f);
    std::vector<detail::real_scale> sub(s.sub_blocks());
    for (std::size_t i = 0; i < n; ++i) {
      float& most = sub[i / s.sub_block()].scale;
      most = std::max(most, std::fabs(x[i]));
    }
    for (detail::real_scale& r : sub) r.scale /= levels_of(s).highest;
    detail::store_scales(s, sub, f);
    return false;
  }
};

/// Weights in two parts.
struct outlier_weights {
  packed_matrix rest;                   ///< [out, in], the outliers' columns zero
  std::vector<std::uint32_t> channels;  ///< the outliers, ascending
  std::vector<float> columns;           ///< [out, channels.size()]

  [[nodiscard]] matrix_view<const float> columns_view() const noexcept { return {columns.data(), rest.rows(), channels.size()}; }
};

/// Splits a [out, in] matrix and quantises the rest. Expects ascending channels below `in`. Statistics are used with the outliers' inputs
/// taken as zero, so that error feedback leaves their columns alone. Fails (bad_value) on a weight that is not finite.
template <fit_policy Fit = symmetric_absmax, rounding Rounding = round_nearest, class Stats = uncalibrated, executor E>
result<outlier_weights> quantise_with_outliers(const format_spec& s, matrix_view<const float> weights, std::span<const std::uint32_t> channels,
                                               E& executor, const Stats& stats = Stats()) {
  static_assert(detail::has_all<Stats>(typename Fit::needs{}) && detail::has_all<Stats>(typename Rounding::needs{}),
                "lowbit: this quantiser needs calibration statistics that were not given");
  if (auto bad = detail::find_non_finite(weights, executor)) return *std::move(bad);
  for (std::size_t i = 0; i < channels.size(); ++i) LOWBIT_EXPECTS(channels[i] < weights.cols && (i == 0 || channels[i - 1] < channels[i]));
  outlier_weights out{packed_matrix(s, weights.rows, weights.cols), {channels.begin(), channels.end()},
                      std::vector<float>(weights.rows * channels.size())};
  std::vector<float> rest(weights.rows * weights.cols);
  const matrix_view<float> view(rest.data(), weights.rows, weights.cols);
  for (std::size_t r = 0; r < weights.rows; ++r) {
    std::copy(weights.row(r), weights.row(r) + weights.cols, view.row(r));
    for (std::size_t i = 0; i < channels.size(); ++i) out.columns[r * channels.size() + i] = std::exchange(view(r, channels[i]), 0.0f);
  }
  Stats now = stats;
  if (!channels.empty()) {
    input_scales removed(weights.cols, 1.0f);
    for (const std::uint32_t c : channels) removed[c] = std::numeric_limits<float>::infinity();  // x / infinity
    now.divide(removed);
  }
  detail::quantise_rows<Fit, Rounding>(s, view, now, out.rest, executor);
  return out;
}

}  // namespace lowbit
