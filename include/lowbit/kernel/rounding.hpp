// What rounding to nearest does with a block's weights: their range, and their codes on a grid. Shared by every fit and every format.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Weights that share a scale, and where their codes go: level = (x - offset) * inverse, each operation rounded.
struct rounding_args {
  const format_spec* spec;
  const float* x;
  std::size_t count;
  float offset, inverse;
  int zero_point;         ///< that is stored; 0 where none is
  std::uint8_t* codes;
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

/// The codes of the nearest levels: evenly spaced ones with ties to even, a codebook's by its bounds.
template <class Arch>
void round_codes(const rounding_args& a) noexcept {
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  constexpr std::size_t n = floats::size;
  const format_spec& s = *a.spec;
  const floats offset(a.offset), inverse(a.inverse);
  // Codes of n levels, as integers of which the low byte counts.
  const auto all = [&](auto&& code_of) LOWBIT_INLINE_LAMBDA {
    for (std::size_t i = 0; i < a.count; i += n) {
      alignas(64) float rest[n];
      const float* x = a.x + i;
      const bool whole = i + n <= a.count;
      if (!whole) {
        for (std::size_t k = 0; k < n; ++k) rest[k] = i + k < a.count ? x[k] : 0.0f;
        x = rest;
      }
      const ints code = code_of(simd::rounded_product<Arch>(floats::load_unaligned(x) - offset, inverse, Arch{}));
      const ints low_byte = (code << 24) >> 24;
      if (whole) {
        simd::store_narrowed<Arch>(reinterpret_cast<std::int8_t*>(a.codes + i), low_byte, Arch{});
      } else {
        alignas(64) std::int8_t narrow[n];
        simd::store_narrowed<Arch>(narrow, low_byte, Arch{});
        for (std::size_t k = 0; i + k < a.count; ++k) a.codes[i + k] = static_cast<std::uint8_t>(narrow[k]);
      }
    }
  };
  if (s.values.present()) {
    float order[16];
    for (unsigned k = 0; k < 16; ++k) order[k] = s.values.order[k];
    all([&](const floats& level) LOWBIT_INLINE_LAMBDA {
      ints place(0);
      for (unsigned k = 0; k + 1 < s.values.size; ++k)
        place += xsimd::select(xsimd::batch_bool_cast<std::int32_t>(level > floats(s.values.bounds[k])), ints(1), ints(0));
      return xsimd::to_int(simd::lookup16<Arch>(place, order, Arch{}));
    });
    return;
  }
  const floats lowest(static_cast<float>(s.codes.lowest() - a.zero_point)), highest(static_cast<float>(s.codes.highest() - a.zero_point));
  const ints shift(a.zero_point + (s.codes.is_signed ? 0 : s.codes.zero)), mask((1 << s.codes.bits()) - 1);
  const floats magic(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits for a fraction
  all([&](const floats& level) LOWBIT_INLINE_LAMBDA {
    const floats clamped = xsimd::min(xsimd::max(level, lowest), highest);
    return ints((xsimd::to_int(floats((clamped + magic) - magic)) + shift) & mask);
  });
}

}  // namespace lowbit::kernel
