// What rounding to nearest does with a block's weights: their range, and their codes on a grid. Shared by every fit and every format.
#pragma once

#include <lowbit/kernel/lanes.hpp>

namespace lowbit::kernel {

/// How weights meet a grid: level = (x - offset) * inverse, each operation rounded, and back value = scale * level + offset.
struct grid_map {
  float scale, offset, inverse;
  int zero_point;         ///< that is stored; 0 where none is
  float bias = 0;         ///< rounding_rule::half_up adds it to the level
};

/// How a level becomes a code.
enum class rounding_rule : std::uint8_t {
  nearest,  ///< the nearest level, of two the even one; a codebook's by its bounds
  half_up,  ///< level + bias towards zero, at most the highest code (ggml's q4_0 … q5_1)
  away      ///< the nearest level, of two the one away from zero (ggml's q8_0 and its two-bit types)
};

/// Weights to be rounded. Codes and values are written where their pointers are not null.
struct rounding_args {
  const format_spec* spec;
  const float* x;
  std::size_t count;
  const grid_map* maps;   ///< one for all weights, or with `each` one for each
  bool each;
  std::uint8_t* codes;
  float* values;          ///< what a reader will see; null for rules other than nearest
  rounding_rule rule = rounding_rule::nearest;
};

namespace detail {

/// The first `count` lanes of a register, and in the others `beyond`: what is left of a block.
template <class Arch>
LOWBIT_ALWAYS_INLINE simd::batch<float, Arch> load_last(const float* x, std::size_t count, float beyond) noexcept {
  using floats = simd::batch<float, Arch>;
  alignas(64) float lane[floats::size];
  for (std::size_t i = 0; i < floats::size; ++i) lane[i] = i < count ? x[i] : beyond;
  return floats::load_aligned(lane);
}

/// The least and the largest of n > 0 weights, lane by lane.
template <class Arch>
LOWBIT_ALWAYS_INLINE void range_lanes(const float* x, std::size_t n, simd::batch<float, Arch>& lows, simd::batch<float, Arch>& highs) noexcept {
  using floats = simd::batch<float, Arch>;
  lows = highs = floats(*x);
  const auto take = [&](const floats& v) LOWBIT_INLINE_LAMBDA {
    lows = xsimd::min(lows, v);
    highs = xsimd::max(highs, v);
  };
  std::size_t i = 0;
  for (; i + floats::size <= n; i += floats::size) take(floats::load_unaligned(x + i));
  if (i < n) take(load_last<Arch>(x + i, n - i, *x));
}

}  // namespace detail

/// The least and the largest of n > 0 finite weights; a zero without its sign.
template <class Arch>
void find_range(const float* x, std::size_t n, float* low, float* high) noexcept {
  simd::batch<float, Arch> lows, highs;
  detail::range_lanes<Arch>(x, n, lows, highs);
  *low = xsimd::reduce_min(lows) + 0.0f;
  *high = xsimd::reduce_max(highs) + 0.0f;
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
  floats scale, offset, inverse, zero_point, bias;

  LOWBIT_ALWAYS_INLINE explicit grid_lanes(const grid_map& m) noexcept
      : scale(m.scale), offset(m.offset), inverse(m.inverse), zero_point(static_cast<float>(m.zero_point)), bias(m.bias) {}
  LOWBIT_ALWAYS_INLINE grid_lanes(const grid_map* m, std::size_t count) noexcept
      : scale(0.0f), offset(0.0f), inverse(0.0f), zero_point(0.0f), bias(0.0f) {
    alignas(64) float lane[5][floats::size] = {};
    for (std::size_t i = 0; i < floats::size && i < count; ++i) {
      lane[0][i] = m[i].scale;
      lane[1][i] = m[i].offset;
      lane[2][i] = m[i].inverse;
      lane[3][i] = static_cast<float>(m[i].zero_point);
      lane[4][i] = m[i].bias;
    }
    scale = floats::load_aligned(lane[0]);
    offset = floats::load_aligned(lane[1]);
    inverse = floats::load_aligned(lane[2]);
    zero_point = floats::load_aligned(lane[3]);
    bias = floats::load_aligned(lane[4]);
  }
};

/// The rules as kernels are compiled for them: rounding_rule::nearest is one of two.
enum class code_rule : std::uint8_t { even, table, half_up, away };

/// Calls f with the rule as a constant.
template <class F>
LOWBIT_ALWAYS_INLINE void with_rule(const format_spec& s, rounding_rule rule, F&& f) noexcept {
  switch (rule) {
    case rounding_rule::half_up: return f(std::integral_constant<code_rule, code_rule::half_up>{});
    case rounding_rule::away: return f(std::integral_constant<code_rule, code_rule::away>{});
    case rounding_rule::nearest: break;
  }
  if (s.values.present()) f(std::integral_constant<code_rule, code_rule::table>{});
  else f(std::integral_constant<code_rule, code_rule::even>{});
}

/// Registers of weights to codes as they are stored, and for the nearest rules the levels that they stand for. Without `Offset`, all
/// offsets are 0.
template <code_rule Rule, bool Offset, class Arch>
class code_lanes {
 public:
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  struct result {
    ints code;
    floats level;
  };

  LOWBIT_ALWAYS_INLINE explicit code_lanes(const format_spec& s) noexcept
      : values_(s.values), halves_(s.values), lowest_(static_cast<float>(s.codes.lowest())), highest_(static_cast<float>(s.codes.highest())),
        most_(static_cast<std::uint8_t>((1 << s.codes.bits()) - 1)), flip_(s.codes.is_signed ? static_cast<std::uint8_t>(1 << (s.codes.bits() - 1)) : 0),
        zero_(s.codes.is_signed ? flip_ : s.codes.zero) {
    for (unsigned k = 0; Rule == code_rule::table && k < 16; ++k) {
      order_as_floats_[k] = order_[k] = values_.order[k];
      sorted_[k] = values_.values[values_.order[k]];
      ascending_ = ascending_ && (k >= values_.size || values_.order[k] == k);
    }
  }

  LOWBIT_ALWAYS_INLINE result operator()(const floats& x, const grid_lanes<Arch>& map) const noexcept {
    const floats level = level_of(x, map);
    if constexpr (Rule == code_rule::even) {
      // 1.5 * 2^23: adding it leaves no bits for a fraction, and the integer in the lowest.
      const floats magic(12582912.0f);
      const floats above = simd::greater<Arch>(level, lowest_ - map.zero_point, Arch{});
      const floats sum = simd::lesser<Arch>(above, highest_ - map.zero_point, Arch{}) + magic;
      return {stored(xsimd::bitwise_cast<std::int32_t>(sum) + xsimd::to_int(map.zero_point)), sum - magic};
    } else if constexpr (Rule == code_rule::table) {
      const ints place = place_of(level);
      return {ascending_ ? place : xsimd::to_int(simd::lookup16<Arch>(place, order_as_floats_, Arch{})), simd::lookup16<Arch>(place, sorted_, Arch{})};
    } else if constexpr (Rule == code_rule::half_up) {
      // In this order a NaN stays one (a range that overflows), whose integer has low bits of zero, as ggml's has.
      return {xsimd::to_int(simd::lesser<Arch>(floats(static_cast<float>(most_) + 0.5f), level + map.bias, Arch{})), level};
    } else {
      return {stored(away(level)), level};
    }
  }

  /// Whether the sums of `store` fit its lanes of 16 bits: all but formats with a `zero` that is far from their codes.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE bool fits() const noexcept { return zero_ >= -16384 && zero_ <= 16384; }
  /// The codes of four registers, a byte each. `zero_point` is the map's, as an integer. Levels are those of maps that fit their weights:
  /// numbers, and for the rules other than nearest within the codes.
  LOWBIT_ALWAYS_INLINE void store(const float* x, const grid_lanes<Arch>& map, int zero_point, std::uint8_t* codes) const noexcept {
    ints code[4];
    LOWBIT_UNROLL
    for (std::size_t k = 0; k < 4; ++k) {
      const floats v = floats::load_unaligned(x + k * floats::size);
      if constexpr (Rule == code_rule::even) code[k] = simd::nearest_int<Arch>(simd::lesser<Arch>(level_of(v, map), floats(32767.0f), Arch{}), Arch{});
      else if constexpr (Rule == code_rule::table) code[k] = place_of(level_of(v, map));
      else if constexpr (Rule == code_rule::half_up) code[k] = xsimd::to_int(level_of(v, map) + map.bias);
      else code[k] = away(level_of(v, map));
    }
    constexpr bool as_stored = Rule == code_rule::table || Rule == code_rule::half_up;
    simd::store_held<Arch>(codes, code, as_stored ? 0 : zero_ + zero_point, most_, as_stored ? 0 : flip_, Arch{});
    if (Rule == code_rule::table && !ascending_) {
      using bytes = simd::batch<std::uint8_t, Arch>;
      simd::lookup16<Arch>(bytes::load_unaligned(codes), order_, Arch{}).store_unaligned(codes);
    }
  }

 private:
  LOWBIT_ALWAYS_INLINE static floats level_of(const floats& x, const grid_lanes<Arch>& map) noexcept {
    return simd::rounded_product<Arch>(Offset ? x - map.offset : x, map.inverse, Arch{});
  }
  LOWBIT_ALWAYS_INLINE static ints away(const floats& level) noexcept {
    // The number below one half: halves reach the next integer by the sum's own rounding, and nothing below them does.
    return xsimd::to_int(level + (xsimd::bitofsign(level) | floats(0x1.fffffep-2f)));
  }
  /// How many of a codebook's bounds lie below a level: the place of the nearest value.
  LOWBIT_ALWAYS_INLINE ints place_of(const floats& level) const noexcept {
    if (values_.size == 16)
      return table_index<Arch>(halves_, level, [](const floats& v, const floats& bound) LOWBIT_INLINE_LAMBDA { return v > bound; });
    ints place(0);
    for (unsigned k = 0; k + 1 < values_.size; ++k)
      place += xsimd::select(xsimd::batch_bool_cast<std::int32_t>(level > floats(values_.bounds[k])), ints(1), ints(0));
    return place;
  }
  /// An integer within the levels as its code's bits.
  LOWBIT_ALWAYS_INLINE ints stored(const ints& level) const noexcept { return ((level + ints(zero_)) & ints(most_)) ^ ints(flip_); }

  const codebook& values_;
  table16 halves_;  ///< the bounds of a codebook of 16
  floats lowest_, highest_;
  std::uint8_t most_, flip_;
  int zero_;
  std::uint8_t order_[16];  ///< the codes of the values, least first
  float order_as_floats_[16], sorted_[16];
  bool ascending_ = true;  ///< a value's place among the others is its code
};

}  // namespace detail

/// Rounds weights by a rule.
template <class Arch>
void round_weights(const rounding_args& a) noexcept {
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  constexpr std::size_t n = floats::size;
  const format_spec& s = *a.spec;
  const bool offset = s.minimum.present();
  detail::with_rule(s, a.rule, [&](auto rule) LOWBIT_INLINE_LAMBDA {
    const detail::code_lanes<rule(), true, Arch> round(s);
    detail::grid_lanes<Arch> map(*a.maps);
    for (std::size_t i = 0; i < a.count; i += n) {
      const bool whole = i + n <= a.count;
      if (a.each) map = detail::grid_lanes<Arch>(a.maps + i, a.count - i);
      const auto rounded = round(whole ? floats::load_unaligned(a.x + i) : detail::load_last<Arch>(a.x + i, a.count - i, 0.0f), map);
      if (a.codes != nullptr) {
        const ints low_byte = (rounded.code << 24) >> 24;
        alignas(64) std::int8_t narrow[n];
        simd::store_narrowed<Arch>(whole ? reinterpret_cast<std::int8_t*>(a.codes + i) : narrow, low_byte, Arch{});
        for (std::size_t k = 0; !whole && i + k < a.count; ++k) a.codes[i + k] = static_cast<std::uint8_t>(narrow[k]);
      }
      if (a.values != nullptr) {
        floats value = simd::rounded_product<Arch>(map.scale, rounded.level, Arch{});
        if (offset) value += map.offset;
        if (whole) {
          value.store_unaligned(a.values + i);
        } else {
          alignas(64) float lane[n];
          value.store_aligned(lane);
          for (std::size_t k = 0; i + k < a.count; ++k) a.values[i + k] = lane[k];
        }
      }
    }
  });
}

}  // namespace lowbit::kernel
