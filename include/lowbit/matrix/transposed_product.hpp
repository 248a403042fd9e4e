// y = x W: the product over the rows of W, which back-propagation through quantised weights needs, and attention for its weighted sum of
// a quantised cache of values.
//
// Some rows at a time become floats, which stay in the caches, and are multiplied there. Sums run over rows from the first on, in pieces of
// fixed length, so results have the same bits for every executor.
#pragma once

#include <lowbit/matrix/dequantise.hpp>

namespace lowbit {

/// Memory that transposed products reuse. One for each thread that calls multiply_transposed; grows to the largest call seen.
class transposed_workspace {
 public:
  /// Room for [rows, cols] floats of weights and [rows, tokens] of inputs, with what the kernel may read past them.
  void reserve(std::size_t rows, std::size_t cols, std::size_t tokens) {
    weights_.resize(rows * cols + 32);
    inputs_.resize(rows * round_up(tokens, 12));
  }
  [[nodiscard]] float* weights() noexcept { return weights_.data(); }
  [[nodiscard]] float* inputs() noexcept { return inputs_.data(); }

 private:
  std::vector<float> weights_, inputs_;
};

/// y[tokens, in] = x[tokens, out] W, for W [out, in] in any format. Expects x.cols == w.rows, y.cols == w.cols, equal rows, y apart from x.
template <executor E>
void multiply_transposed(matrix_view<const float> x, packed_view w, matrix_view<float> y, transposed_workspace& space, E& executor,
                         const kernel::unit& unit = kernel::best_unit()) {
  LOWBIT_EXPECTS(x.cols == w.rows && y.cols == w.cols && x.rows == y.rows);
  // 16 KB of floats where rows are short; the kernel's own piece where they are long.
  const std::size_t least = 4096 / (w.cols + 1), at_once = least < 96 ? 96 : round_up(least, 96), stride = round_up(x.rows, 12);
  for (std::size_t t = 0; t < y.rows; ++t) std::fill_n(y.row(t), y.cols, 0.0f);
  if (x.empty() || w.cols == 0) return;
  space.reserve(at_once < w.rows ? at_once : w.rows, w.cols, x.rows);
  for (std::size_t first = 0; first < w.rows; first += at_once) {
    const std::size_t count = w.rows - first < at_once ? w.rows - first : at_once;
    dequantise(w.middle_rows(first, count), {space.weights(), count, w.cols}, executor, unit);
    float* const a = space.inputs();
    for (std::size_t k = 0; k < count; ++k)
      for (std::size_t t = 0; t < stride; ++t) a[k * stride + t] = t < x.rows ? x(t, first + k) : 0.0f;
    for_parts(executor, ceil_div(w.cols, kernel::accumulate_strip), 1, [&](std::size_t begin, std::size_t end) {
      const std::size_t c = begin * kernel::accumulate_strip, last = end * kernel::accumulate_strip < w.cols ? end * kernel::accumulate_strip : w.cols;
      unit.accumulate({a, stride, space.weights() + c, w.cols, count, y.data + c, y.stride, y.rows, last - c});
    });
  }
}

}  // namespace lowbit
