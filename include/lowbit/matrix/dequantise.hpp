// A whole matrix back to floats, by the kernels of a unit.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

namespace lowbit {

/// out[rows, cols] = the weights, the codec's values bit for bit. A large, 64-byte aligned output is written past the caches.
/// Expects out of the weights' shape.
template <executor E>
void dequantise(packed_view w, matrix_view<float> out, E& executor, const kernel::unit& unit = kernel::best_unit()) {
  LOWBIT_EXPECTS(out.rows == w.rows && out.cols == w.cols);
  const bool streamed = goes_past_caches(out, std::size_t{16} << 20);
  const bool finished = w.inputs == nullptr && w.factor == 1.0;
  // Rows that follow one another without a gap or a ragged block are one long row, which short rows gain much from.
  const bool one_row = finished && !w.spec->is_recoded() && out.stride == out.cols && w.cols % w.spec->block == 0;
  for_parts(executor, w.rows, 4, [&](std::size_t begin, std::size_t end) {
    if (one_row) return unit.dequantise_row(*w.spec, w.row(begin), (end - begin) * w.cols, out.row(begin), streamed);
    std::vector<float> stored(finished ? 0 : w.cols);
    aligned_buffer recoded(w.spec->is_recoded() ? w.spec->planes().row_bytes(w.cols) : 0);
    for (std::size_t r = begin; r < end; ++r) {
      if (w.spec->is_recoded()) recode_row(*w.spec, w.row(r), w.cols, recoded.data());
      unit.dequantise_row(w.spec->planes(), w.spec->is_recoded() ? recoded.data() : w.row(r), w.cols, finished ? out.row(r) : stored.data(),
                          finished && streamed);
      if (!finished) finish_row(w, stored.data(), out.row(r));
    }
  });
}

}  // namespace lowbit
