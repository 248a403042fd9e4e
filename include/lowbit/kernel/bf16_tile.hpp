// A tile of a product of bfloat16 weights with activations rounded to bfloat16: two columns at once.
#pragma once

#include <lowbit/kernel/tile.hpp>

namespace lowbit::kernel::detail {

/// Columns 2 * step and 2 * step + 1 of a panel, as pairs of the rows' numbers.
template <class Arch>
LOWBIT_ALWAYS_INLINE ints<Arch> load_pairs(const std::uint8_t* panel, std::size_t step, std::size_t cols) noexcept {
  const std::uint8_t* const from = panel + step * step_bytes;
  if ((step + 1) * pair_weights <= cols) return simd::paired<Arch>(ints<Arch>::load_unaligned(reinterpret_cast<const std::int32_t*>(from)), Arch{});
  alignas(64) std::uint8_t last[step_bytes] = {};
  if (step * pair_weights < cols) std::memcpy(last, from, step_bytes / pair_weights);
  return simd::paired<Arch>(ints<Arch>::load_aligned(reinterpret_cast<const std::int32_t*>(last)), Arch{});
}

/// A register holds the sixteen rows of a panel.
template <class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_bf16(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, const std::int32_t* words) noexcept {
  static_assert(simd::lanes<Arch> == panel_rows);
  // As in exact products: a token alone gets more sums.
  constexpr std::size_t chains = Tokens == 1 ? 4 : 1;
  floats<Arch> acc[chains][Vectors][Tokens];
  LOWBIT_UNROLL
  for (std::size_t i = 0; i < chains * Vectors * Tokens; ++i) acc[i / (Vectors * Tokens)][i / Tokens % Vectors][i % Tokens] = floats<Arch>(0.0f);
  const auto step = [&](auto& sums, std::size_t s) LOWBIT_INLINE_LAMBDA {
    prefetch_after<Arch, Tokens>(tile.panel[0] + s * step_bytes, step_bytes);
    ints<Arch> w[Vectors];
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) w[v] = load_pairs<Arch>(tile.panel[v], s, a.cols);
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      const ints<Arch> x(words[s * Tokens + t]);
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) sums[v][t] = simd::dot2_bf16<Arch>(sums[v][t], w[v], x, Arch{});
    }
  };
  const std::size_t steps = ceil_div(a.cols, pair_weights);
  std::size_t s = 0;
  for (; s + chains <= steps; s += chains) {
    LOWBIT_UNROLL
    for (std::size_t i = 0; i < chains; ++i) step(acc[i], s + i);
  }
  for (; s < steps; ++s) step(acc[0], s);
  LOWBIT_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      if constexpr (chains == 1) tile.y[v][t] = acc[0][v][t];
      else tile.y[v][t] = (acc[0][v][t] + acc[1][v][t]) + (acc[2][v][t] + acc[3][v][t]);
    }
  }
}

}  // namespace lowbit::kernel::detail
