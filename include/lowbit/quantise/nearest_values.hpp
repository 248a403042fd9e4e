// What rounding to nearest makes of weights: the values that a reader of the format will see, for whoever compares it with something.
#pragma once

#include <lowbit/quantise/round.hpp>
#include <lowbit/quantise/rows.hpp>

namespace lowbit::detail {

/// out[rows, cols]: w by a fit, rounded to nearest, de-quantised. Expects finite weights.
template <fit_policy Fit>
void nearest_values(const format_spec& s, matrix_view<const float> w, const input_statistics& about, float* out) {
  packed_matrix blocks(s, w.rows, w.cols);
  if (const row_kernel rows(s, rows_of<Fit>(s), w, about.importance, blocks); rows.quantise(0, w.rows)) {
    for (std::size_t r = 0; r < w.rows; ++r) LOWBIT_BEST_KERNEL(dequantise_row)(s, blocks.row(r), w.cols, out + r * w.cols, false);
    return;
  }
  std::vector<float> copy(w.rows * w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) std::copy_n(w.row(r), w.cols, &copy[r * w.cols]);
  round_nearest::round_rows<Fit>(s, {}, {copy.data(), w.rows, w.cols}, about, [&](std::size_t r, std::size_t b, const block_fields& f) {
    const grid g(s, f);
    for (std::size_t i = 0, c = b * s.block; i < s.block && c < w.cols; ++i, ++c) out[r * w.cols + c] = g.value(f.codes[i], i);
  });
}

}  // namespace lowbit::detail
