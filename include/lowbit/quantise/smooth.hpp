// SmoothQuant (Xiao et al. 2023, equation 4): part of the activations' spread moved into the weights, where it hurts less.
//
// s_j = max|x_j|^a / max|w_j|^(1-a), over the rows of all layers that share the input; W diag(s) and x / s are what is quantised. The
// default a is a half. Maxima are floored at 1e-5, as the authors' code floors them. A channel whose inputs or weights are all zero, or
// whose maximum is not a finite number, keeps the scale 1; so do all channels of a statistic without samples.
#pragma once

#include <lowbit/quantise/transform.hpp>

namespace lowbit {

/// The scales of a group of layers, by the largest |x| of every channel. Expects 0 <= alpha <= 1.
inline input_scales smooth_scales(consumer_group consumers, const channel_maximum& inputs, double alpha = 0.5) {
  LOWBIT_EXPECTS(!consumers.empty() && alpha >= 0 && alpha <= 1);
  const std::size_t cols = inputs.channels();
  if (inputs.tokens() == 0) return {};
  std::vector<float> most(cols);
  for (const matrix_view<const float>& w : consumers) {
    LOWBIT_EXPECTS(w.cols == cols);
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t c = 0; c < cols; ++c) most[c] = std::max(most[c], std::fabs(w(r, c)));
  }
  const Eigen::VectorXf x = inputs.maximum();
  input_scales s(cols, 1.0f);
  for (std::size_t c = 0; c < cols; ++c) {
    const double a = static_cast<double>(x[static_cast<Eigen::Index>(c)]), b = static_cast<double>(most[c]);
    if (a > 0 && b > 0 && std::isfinite(a) && std::isfinite(b))
      s[c] = detail::usable_scale(std::pow(std::max(a, 1e-5), alpha) / std::pow(std::max(b, 1e-5), 1 - alpha));
  }
  return s;
}

/// The same as a quantiser's transform, the matrix a group of its own; a = AlphaPercent / 100.
template <unsigned AlphaPercent = 50>
struct smooth_quant {
  static_assert(AlphaPercent <= 100);
  using needs = needs_statistics<channel_maximum>;
  template <class Stats>
  static input_scales apply(matrix_view<float> w, const Stats& stats) {
    const matrix_view<const float> one = w;
    input_scales s = smooth_scales(consumer_group(&one, 1), stats.template get<channel_maximum>(), AlphaPercent / 100.0);
    multiply_columns(w, s);
    return s;
  }
};

}  // namespace lowbit
