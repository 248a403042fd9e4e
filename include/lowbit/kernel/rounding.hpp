// What rounding to nearest does with a block's weights: their range, and their codes on a grid. Shared by every fit and every format.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// How weights meet a grid: level = (x - offset) * inverse, each operation rounded, and back value = scale * level + offset.
struct grid_map {
  float scale, offset, inverse;
  int zero_point;         ///< that is stored; 0 where none is
};

/// Weights to be rounded. Codes and values are written where their pointers are not null.
struct rounding_args {
  const format_spec* spec;
  const float* x;
  std::size_t count;
  const grid_map* maps;   ///< one for all weights, or with `each` one for each
  bool each;
  std::uint8_t* codes;
  float* values;          ///< what a reader will see
};

/// The least and the largest of n > 0 finite weights; a zero without its sign.
template <class Arch>
void find_range(const float* x, std::size_t n, float* low, float* high) noexcept {
  using floats = simd::batch<float, Arch>;
  float least = x[0], most = x[0];
  std::size_t i = 0;
  if (n >= floats::size) {
    floats lows = floats::load_unaligned(x), highs = lows;
    for (i = floats::size; i + floats::size <= n; i += floats::size) {
      const auto v = floats::load_unaligned(x + i);
      lows = xsimd::min(lows, v);
      highs = xsimd::max(highs, v);
    }
    least = xsimd::reduce_min(lows);
    most = xsimd::reduce_max(highs);
  }
  for (; i < n; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  *low = least + 0.0f;
  *high = most + 0.0f;
}

/// Whether all of n numbers are finite.
template <class Arch>
bool all_finite(const float* x, std::size_t n) noexcept {
  using floats = simd::batch<float, Arch>;
  // x * 0 is NaN for NaN and infinity, and a sum that a NaN entered stays one.
  floats sums[4] = {floats(0.0f), floats(0.0f), floats(0.0f), floats(0.0f)};
  std::size_t i = 0;
  for (; i + 4 * floats::size <= n; i += 4 * floats::size)
    for (std::size_t k = 0; k < 4; ++k) sums[k] += floats::load_unaligned(x + i + k * floats::size) * floats(0.0f);
  float sum = xsimd::reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += x[i] * 0.0f;
  return sum == 0.0f;
}

namespace detail {

/// Some weights' maps, a register each.
template <class Arch>
struct grid_lanes {
  using floats = simd::batch<float, Arch>;
  floats scale, offset, inverse, zero_point;

  LOWBIT_ALWAYS_INLINE explicit grid_lanes(const grid_map& m) noexcept
      : scale(m.scale), offset(m.offset), inverse(m.inverse), zero_point(static_cast<float>(m.zero_point)) {}
  LOWBIT_ALWAYS_INLINE grid_lanes(const grid_map* m, std::size_t count) noexcept : scale(0.0f), offset(0.0f), inverse(0.0f), zero_point(0.0f) {
    alignas(64) float lane[4][floats::size] = {};
    for (std::size_t i = 0; i < floats::size && i < count; ++i) {
      lane[0][i] = m[i].scale;
      lane[1][i] = m[i].offset;
      lane[2][i] = m[i].inverse;
      lane[3][i] = static_cast<float>(m[i].zero_point);
    }
    scale = floats::load_aligned(lane[0]);
    offset = floats::load_aligned(lane[1]);
    inverse = floats::load_aligned(lane[2]);
    zero_point = floats::load_aligned(lane[3]);
  }
};

}  // namespace detail

/// Rounds to the nearest levels: evenly spaced ones with ties to even, a codebook's by its bounds.
template <class Arch>
void round_weights(const rounding_args& a) noexcept {
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  constexpr std::size_t n = floats::size;
  const format_spec& s = *a.spec;
  const bool offset = s.minimum.present();
  const floats magic(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits for a fraction
  const floats lowest(static_cast<float>(s.codes.lowest())), highest(static_cast<float>(s.codes.highest()));
  const ints shift(s.codes.is_signed ? 0 : s.codes.zero), mask((1 << s.codes.bits()) - 1);
  float order[16], sorted[16];
  for (unsigned k = 0; s.values.present() && k < 16; ++k) {
    order[k] = s.values.order[k];
    sorted[k] = s.values.values[s.values.order[k]];
  }
  detail::grid_lanes<Arch> map(*a.maps);
  for (std::size_t i = 0; i < a.count; i += n) {
    const bool whole = i + n <= a.count;
    alignas(64) float rest[n];
    const float* x = a.x + i;
    if (!whole) {
      for (std::size_t k = 0; k < n; ++k) rest[k] = i + k < a.count ? x[k] : 0.0f;
      x = rest;
    }
    if (a.each) map = detail::grid_lanes<Arch>(a.maps + i, a.count - i);
    floats level = simd::rounded_product<Arch>(floats::load_unaligned(x) - map.offset, map.inverse, Arch{});
    ints code(0);
    if (s.values.present()) {
      ints place(0);
      for (unsigned k = 0; k + 1 < s.values.size; ++k)
        place += xsimd::select(xsimd::batch_bool_cast<std::int32_t>(level > floats(s.values.bounds[k])), ints(1), ints(0));
      code = xsimd::to_int(simd::lookup16<Arch>(place, order, Arch{}));
      level = simd::lookup16<Arch>(place, sorted, Arch{});
    } else {
      level = xsimd::min(xsimd::max(level, lowest - map.zero_point), highest - map.zero_point);
      level = (level + magic) - magic;
      code = (xsimd::to_int(floats(level + map.zero_point)) + shift) & mask;
    }
    if (a.codes != nullptr) {
      const ints low_byte = (code << 24) >> 24;
      alignas(64) std::int8_t narrow[n];
      simd::store_narrowed<Arch>(whole ? reinterpret_cast<std::int8_t*>(a.codes + i) : narrow, low_byte, Arch{});
      for (std::size_t k = 0; !whole && i + k < a.count; ++k) a.codes[i + k] = static_cast<std::uint8_t>(narrow[k]);
    }
    if (a.values != nullptr) {
      floats value = simd::rounded_product<Arch>(map.scale, level, Arch{});
      if (offset) value += map.offset;
      if (whole) {
        value.store_unaligned(a.values + i);
      } else {
        value.store_aligned(rest);
        for (std::size_t k = 0; i + k < a.count; ++k) a.values[i + k] = rest[k];
      }
    }
  }
}

}  // namespace lowbit::kernel
