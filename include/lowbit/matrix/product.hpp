// y = x Wᵀ: the one call that engines make.
#pragma once

#include <lowbit/matrix/panel_matrix.hpp>

namespace lowbit {

/// How activations enter a product.
enum class precision : std::uint8_t {
  int8,   ///< quantised to 8 bits per block of weights; formats without an integer path (floats, NF4, FP4) run exact
  exact   ///< as floats
};

/// Memory that products reuse. One for each thread that calls multiply; grows to the largest product seen.
class workspace {
 public:
  /// Room for prepared activations. What was there is lost.
  std::uint8_t* reserve(std::size_t bytes) {
    if (bytes > buffer_.size()) {
      buffer_ = aligned_buffer();
      buffer_ = aligned_buffer(bytes);
      LOWBIT_EXPECTS(buffer_.size() == bytes);
    }
    return buffer_.data();
  }

 private:
  aligned_buffer buffer_;
};

/// y[tokens, out] = x[tokens, in] Wᵀ. The result has the same bits for every executor, and on the int8 path for every machine.
/// Expects x.cols == w.cols(), y.cols == w.rows(), equal rows, and y apart from x.
template <executor E>
void multiply(matrix_view<const float> x, const panel_matrix& w, matrix_view<float> y, workspace& space, E& executor,
              precision how = precision::int8) {
  LOWBIT_EXPECTS(x.cols == w.cols() && y.cols == w.rows() && x.rows == y.rows);
  if (y.empty()) return;
  const kernel::panel_layout& p = w.layout();
  const kernel::unit& unit = w.unit();
  const bool exact = how == precision::exact || w.products().int8 == nullptr;
  const bool plain = p.shape.level == kernel::level_kind::plain;
  const std::size_t tiles = ceil_div(x.rows, unit.tile_tokens), columns = tiles * unit.tile_tokens;
  const std::size_t blocks = plain ? 0 : p.blocks(x.cols), subs = blocks * p.sub_blocks;
  const std::size_t padded = p.padded_cols(x.cols);

  const std::size_t value_bytes = round_up(columns * padded * (exact ? sizeof(float) : 1), 64);
  const std::size_t scale_bytes = round_up(columns * blocks * sizeof(float), 64);
  const std::size_t sum_bytes = columns * subs * sizeof(float), pair_bytes = columns * blocks * p.sum_pairs() * sizeof(std::int32_t);
  std::uint8_t* const memory = space.reserve(value_bytes + scale_bytes + (exact ? sum_bytes : 2 * sum_bytes + pair_bytes));
  kernel::activation_buffers buffers;
  buffers.words = reinterpret_cast<std::int32_t*>(memory);
  buffers.floats = reinterpret_cast<float*>(memory);
  buffers.scales = reinterpret_cast<float*>(memory + value_bytes);
  buffers.sums = reinterpret_cast<std::int32_t*>(memory + value_bytes + scale_bytes);
  buffers.float_sums = reinterpret_cast<float*>(memory + value_bytes + scale_bytes);
  buffers.starts = reinterpret_cast<std::int32_t*>(memory + value_bytes + scale_bytes + sum_bytes);
  buffers.pairs = reinterpret_cast<std::int32_t*>(memory + value_bytes + scale_bytes + 2 * sum_bytes);

  for_parts(executor, tiles, 4, [&](std::size_t begin, std::size_t end) {
    const kernel::activation_args a{&p, x.data, x.stride, x.rows, x.cols, begin, end, buffers};
    exact ? unit.copy_activations(a) : unit.quantise_activations(a);
  });
  for_parts(executor, kernel::panel_count(w.rows()), 2, [&](std::size_t begin, std::size_t end) {
    const kernel::multiply_args a{&p, w.data(), w.rows(), w.cols(), begin, end, buffers, x.rows, y.data, y.stride};
    exact ? w.products().exact(a) : w.products().int8(a);
  });
}

/// The same with everything on the calling thread.
inline void multiply(matrix_view<const float> x, const panel_matrix& w, matrix_view<float> y, workspace& space,
                     precision how = precision::int8) {
  serial_executor serial;
  multiply(x, w, y, space, serial, how);
}

}  // namespace lowbit
