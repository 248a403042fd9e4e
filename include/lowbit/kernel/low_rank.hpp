// The second factor of a product of low rank, added to results that are still in the first-level cache: y += B inner.
//
// B is stored as strips of a panel's 16 rows: [16] float scales, then [rank][16] signed bytes, so that one register holds rows side by side; or
// [rank][16] floats.
#pragma once

#include <lowbit/kernel/panel.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Bytes of a strip of B; its codes begin after the scales.
inline constexpr std::size_t strip_scale_bytes = panel_rows * sizeof(float);
constexpr std::size_t strip_bytes(std::size_t rank, bool floats) noexcept {
  return floats ? rank * panel_rows * sizeof(float) : strip_scale_bytes + rank * panel_rows;
}

struct low_rank_args {
  const std::uint8_t* b;    ///< strips of all rows
  std::size_t rank;
  bool floats;              ///< B is floats
  const float* inner;       ///< [rank]
  float* values;            ///< [rows], with room up to a multiple of 16
  std::size_t row, rows;    ///< the first of B's rows that values belong to, a multiple of the unit's lanes, and how many
};

namespace detail {

/// Some registers of rows, which share what is read of `inner`.
template <class Arch, std::size_t Vectors, bool Floats>
LOWBIT_ALWAYS_INLINE void add_rows(const low_rank_args& a, std::size_t done) noexcept {
  using floats = simd::batch<float, Arch>;
  constexpr std::size_t n = simd::lanes<Arch>;
  const std::size_t row = a.row + done, at = row % panel_rows;
  const std::uint8_t* const strip = a.b + row / panel_rows * strip_bytes(a.rank, Floats);
  const auto factors = [&](std::size_t k, std::size_t v) LOWBIT_INLINE_LAMBDA {
    const std::size_t i = k * panel_rows + at + v * n;
    if constexpr (Floats) return floats(floats::load_unaligned(reinterpret_cast<const float*>(strip) + i));
    else return xsimd::to_float(simd::load_widened<Arch>(reinterpret_cast<const std::int8_t*>(strip + strip_scale_bytes) + i, Arch{}));
  };
  floats sum[Vectors];
  LOWBIT_UNROLL
  for (auto& s : sum) s = floats(0.0f);
  for (std::size_t k = 0; k < a.rank; ++k) {
    const floats factor(a.inner[k]);
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) sum[v] = xsimd::fma(factor, factors(k, v), sum[v]);
  }
  LOWBIT_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    float* const y = a.values + done + v * n;
    if constexpr (Floats) (floats::load_unaligned(y) + sum[v]).store_unaligned(y);
    else (floats::load_unaligned(y) + sum[v] * floats::load_unaligned(reinterpret_cast<const float*>(strip) + at + v * n)).store_unaligned(y);
  }
}

template <class Arch, bool Floats>
LOWBIT_ALWAYS_INLINE void add_all_rows(const low_rank_args& a) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>, whole = panel_rows / n;
  static_assert(panel_rows % n == 0);
  for (std::size_t done = 0; done < a.rows;) {
    if ((a.row + done) % panel_rows == 0 && done + panel_rows <= a.rows) {
      add_rows<Arch, whole, Floats>(a, done);
      done += panel_rows;
    } else {
      add_rows<Arch, 1, Floats>(a, done);
      done += n;
    }
  }
}

}  // namespace detail

template <class Arch>
void add_low_rank(const low_rank_args& a) noexcept {
  if (a.floats) detail::add_all_rows<Arch, true>(a);
  else detail::add_all_rows<Arch, false>(a);
}

}  // namespace lowbit::kernel
