// The product of weights in two parts (quantise/outliers.hpp): the rest with the activations that are left, plus the outliers' columns.
//
// The outliers' activations are gathered and multiplied in float; in what the quantised part sees they are zero, so that they do not widen
// the range that a token's 8-bit activations are rounded to (LLM.int8: Dettmers et al. 2022, equation 8).
#pragma once

#include <lowbit/matrix/product.hpp>
#include <lowbit/quantise/outliers.hpp>

namespace lowbit {

/// outlier_weights, ready to run.
struct outlier_panels {
  panel_matrix rest, columns;
  std::vector<std::uint32_t> channels;

  template <executor E>
  static outlier_panels from(const outlier_weights& w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    outlier_panels p;
    p.rest = panel_matrix::from(w.rest.view(), executor, unit);
    if (!w.channels.empty()) p.columns = panel_matrix::from(w.columns.view(), executor, unit);
    p.channels = w.channels;
    return p;
  }
};

/// Moves channels out of activations: gathered[t, i] = x[t, channels[i]], which become zero in x. Expects both of equal rows.
inline void take_channels(matrix_view<float> x, std::span<const std::uint32_t> channels, matrix_view<float> gathered) {
  LOWBIT_EXPECTS(gathered.rows == x.rows && gathered.cols == channels.size() && (channels.empty() || channels.back() < x.cols));
  for (std::size_t t = 0; t < x.rows; ++t)
    for (std::size_t i = 0; i < channels.size(); ++i) gathered(t, i) = std::exchange(x(t, channels[i]), 0.0f);
}

/// y[tokens, out] = x[tokens, in] Wᵀ. Expects shapes that agree, and y apart from x.
template <executor E>
void multiply(matrix_view<const float> x, const outlier_panels& w, matrix_view<float> y, workspace& space, E& executor,
              precision how = precision::int8) {
  LOWBIT_EXPECTS(x.cols == w.rest.cols());
  if (w.channels.empty()) return multiply(x, w.rest, y, space, executor, how);
  std::vector<float> memory(x.rows * (x.cols + w.channels.size()));
  const matrix_view<float> left(memory.data(), x.rows, x.cols), gathered(memory.data() + x.rows * x.cols, x.rows, w.channels.size());
  for (std::size_t t = 0; t < x.rows; ++t) std::copy(x.row(t), x.row(t) + x.cols, left.row(t));
  take_channels(left, w.channels, gathered);
  multiply(left, w.rest, y, space, executor, how);
  multiply(gathered, w.columns, y, space, executor, precision::exact, add_matrix{y});
}

}  // namespace lowbit
