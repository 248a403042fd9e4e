// The products: y = x Wᵀ on panels, written once for every format and every instruction set: tiles of rows and tokens, on integers
// (integer_tile.hpp), floats (multiply_exactly.hpp), bfloat16 (bf16_tile.hpp), or, many tokens, in matrix registers (matrix_tile.hpp).
#pragma once

#include <lowbit/kernel/bf16_tile.hpp>
#include <lowbit/kernel/multiply_exactly.hpp>
#include <lowbit/kernel/integer_tile.hpp>
#include <lowbit/kernel/matrix_tile.hpp>

namespace lowbit::kernel {

namespace detail {

/// One tile. Never inlined: with its four forms in one function g++ 12 for Arm ends in an internal error (codes of 7 bits).
template <std::uint32_t Key, class Arch, activation_kind Kind, std::size_t Tokens, std::size_t Vectors>
__attribute__((noinline)) void multiply_tile(const multiply_args& a, std::size_t first_vector, std::size_t end_vector,
                                        std::size_t first_token) noexcept {
  constexpr std::size_t per_panel = panel_rows / simd::lanes<Arch>;
  const panel_layout& p = *a.layout;
  const std::size_t panel_bytes = p.panel_bytes(a.cols);
  tile<Arch, Tokens, Vectors> tile;
  LOWBIT_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    // A last vector without a neighbour is computed twice: cheaper than code of its own.
    const std::size_t vector = first_vector + v < end_vector ? first_vector + v : first_vector;
    tile.panel[v] = a.panels + vector / per_panel * panel_bytes;
    tile.row[v] = vector % per_panel * simd::lanes<Arch>;
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) tile.y[v][t] = floats<Arch>(0.0f);
  }
  if constexpr (Kind == activation_kind::bf16) tile_bf16(a, tile, a.x.words + first_token * pair_steps(a.cols));
  else tile_integer<Key, Kind>(a, tile, tile_activations::at(a.x, p, Kind, first_token * p.blocks(a.cols)));
  const std::size_t row = first_vector * simd::lanes<Arch>;
  const std::size_t rows = (end_vector - first_vector < Vectors ? end_vector - first_vector : Vectors) * simd::lanes<Arch>;
  const std::size_t tokens = a.tokens - first_token < Tokens ? a.tokens - first_token : Tokens;
  if (rows == Vectors * simd::lanes<Arch> && row + rows <= a.rows && a.finish == nullptr) {
    for (std::size_t t = 0; t < tokens; ++t) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v)
        tile.y[v][t].store_unaligned(a.y + (first_token + t) * a.y_stride + row + v * simd::lanes<Arch>);
    }
  } else {
    constexpr std::size_t stride = round_up(Vectors * simd::lanes<Arch>, panel_rows);
    alignas(64) float values[Tokens * stride] = {};
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) tile.y[v][t].store_aligned(values + t * stride + v * simd::lanes<Arch>);
    }
    deliver<Arch>(a, values, stride, row, rows, first_token, tokens);
  }
}

}  // namespace detail

/// y[tokens, rows of panels panel_begin … panel_end) = x Wᵀ. The layout's shape must have the key the function was compiled for. On floats:
/// multiply_exactly.
template <std::uint32_t Key, class Arch, activation_kind Kind>
  requires(Kind != activation_kind::floats)
void multiply(const multiply_args& a) noexcept {
  // Two registers of rows share the broadcasts of activations where there are 32 registers to hold what an integer product holds.
  constexpr std::size_t vectors = simd::includes<Arch, xsimd::avx512f> ? 2 : 1, full = register_tokens<Arch>;
  constexpr std::size_t per_panel = panel_rows / simd::lanes<Arch>;
  const std::size_t end = a.panel_end * per_panel, each = tile_tokens<Arch>(*a.layout, Kind, a.tokens), tiles = ceil_div(a.tokens, each);
  std::size_t done = 0;
  if constexpr (has_matrix_products<Arch>(code_shape::from_key(Key), Kind)) {
    if (each == matrix_rows) {
      done = tiles != 0 && tile_width<Kind>(tiles - 1, a.tokens, each) != each ? tiles - 1 : tiles;  // few last tokens are faster below
      if (done != 0) detail::multiply_in_matrices<Key, Kind, Arch>(a, done);
    }
  }
  for (std::size_t v = a.panel_begin * per_panel; v < end; v += vectors) {
    for (std::size_t i = done; i < tiles; ++i) {
      const std::size_t width = tile_width<Kind>(i, a.tokens, each), first = i * each;
      if (width == full) {
        detail::multiply_tile<Key, Arch, Kind, full, vectors>(a, v, end, first);
      } else if (width <= 2) {  // bound by memory: one stream of whole lines is what it reads fastest
        if (v % per_panel != 0) continue;
        for (std::size_t one = v; one < v + vectors && one < end; one += per_panel)
          if (width == 1) detail::multiply_tile<Key, Arch, Kind, 1, per_panel>(a, one, end, first);
          else if constexpr (Kind == activation_kind::int8) detail::multiply_tile<Key, Arch, Kind, 2, per_panel>(a, one, end, first);
      } else if constexpr (full > 4) {
        detail::multiply_tile<Key, Arch, Kind, 4, vectors>(a, v, end, first);
      }
    }
  }
}

}  // namespace lowbit::kernel
