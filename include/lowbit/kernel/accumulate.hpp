// c += aᵀ b in float32, with the sum's index outermost in both factors: what calibration and error feedback spend their time on.
//
// c[i, j] += Σ_k a[k, i] b[k, j], or -=. Both factors are read in the order in which they lie, so nothing is packed: callers keep matrices
// as strips of `accumulate_strip` columns, whose pieces stay in the first-level cache. A tile of c is in registers for a piece's terms, which
// are summed on their own before they are added (the error of a sum grows with its length), in the order of k, each product fused with the sum
// where the instruction set has that: an element's bits depend neither on the tile it falls into nor on how the work is split.
#pragma once

#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Columns of a strip: a multiple of every instruction set's tile, so that strips need no code for rests.
inline constexpr std::size_t accumulate_strip = 96;

struct accumulate_args {
  const float* a;             ///< [depth, rows], readable up to the next multiple of 12 columns
  std::size_t a_stride;
  const float* b;             ///< [depth, cols], readable up to the next multiple of 32 columns
  std::size_t b_stride;
  std::size_t depth;
  float* c;                   ///< [rows, cols]; nothing past them is written
  std::size_t c_stride;
  std::size_t rows, cols;
  bool subtract = false;
};

namespace detail {

/// Terms that are summed before c is touched: longer pieces of a strip fall out of the first-level cache (96 terms
/// ran at 90 % of the multiply-add peak on Zen 3 with AVX2, 256 at 70 %).
inline constexpr std::size_t accumulate_depth = 96;

template <class Arch, std::size_t Rows>
LOWBIT_ALWAYS_INLINE void accumulate_tile(const accumulate_args& g, std::size_t i, std::size_t j, std::size_t first, std::size_t last) noexcept {
  using floats = simd::batch<float, Arch>;
  constexpr std::size_t n = floats::size, vectors = 2;
  floats sum[Rows][vectors];
  LOWBIT_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) sum[r][v] = floats(0.0f);
  }
  const float* a = g.a + first * g.a_stride + i;
  const float* b = g.b + first * g.b_stride + j;
  for (std::size_t k = first; k < last; ++k, a += g.a_stride, b += g.b_stride) {
    const floats right[vectors] = {floats::load_unaligned(b), floats::load_unaligned(b + n)};
    LOWBIT_UNROLL
    for (std::size_t r = 0; r < Rows; ++r) {
      const floats left(a[r]);
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < vectors; ++v) sum[r][v] = xsimd::fma(left, right[v], sum[r][v]);
    }
  }
  const auto add = [&](const floats& was, const floats& s) LOWBIT_INLINE_LAMBDA { return g.subtract ? was - s : was + s; };
  float* const c = g.c + i * g.c_stride + j;
  if (i + Rows <= g.rows && j + vectors * n <= g.cols) {
    LOWBIT_UNROLL
    for (std::size_t r = 0; r < Rows; ++r) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < vectors; ++v) {
        float* const at = c + r * g.c_stride + v * n;
        add(floats::load_unaligned(at), sum[r][v]).store_unaligned(at);
      }
    }
    return;
  }
  alignas(64) float spilt[Rows][vectors * n];
  LOWBIT_UNROLL
  for (std::size_t r = 0; r < Rows; ++r) {
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) sum[r][v].store_aligned(&spilt[r][v * n]);
  }
  for (std::size_t r = 0; r < Rows && i + r < g.rows; ++r)
    for (std::size_t s = 0; s < vectors * n && j + s < g.cols; ++s) c[r * g.c_stride + s] += g.subtract ? -spilt[r][s] : spilt[r][s];
}

}  // namespace detail

template <class Arch>
void accumulate(const accumulate_args& g) noexcept {
  // Accumulators, two registers of b and a broadcast: 15 of 16 registers, or 27 of 32.
  constexpr std::size_t rows = simd::includes<Arch, xsimd::avx512f> ? 12 : 6, cols = 2 * simd::lanes<Arch>;
  static_assert(accumulate_strip % rows == 0 && accumulate_strip % cols == 0);
  for (std::size_t k = 0; k < g.depth; k += detail::accumulate_depth) {
    const std::size_t last = g.depth - k < detail::accumulate_depth ? g.depth : k + detail::accumulate_depth;
    for (std::size_t j = 0; j < g.cols; j += cols)
      for (std::size_t i = 0; i < g.rows; i += rows) detail::accumulate_tile<Arch, rows>(g, i, j, k, last);
  }
}

}  // namespace lowbit::kernel
