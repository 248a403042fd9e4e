// From the range of a block's weights to its scale: for one block, or for as many as V has lanes.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/kernel/lanes.hpp>
#include <lowbit/kernel/rounding.hpp>

#include <limits>

namespace lowbit {

/// The values that a format's levels reach: code - zero, or the codebook's; from 0 up where the block stores an offset.
struct level_range {
  float lowest, highest;
};
LOWBIT_ALWAYS_INLINE constexpr level_range levels_of(const format_spec& s) noexcept {
  if (s.values.present()) return {s.values.values[s.values.order[0]], s.values.values[s.values.order[s.values.size - 1]]};
  return {static_cast<float>(s.codes.lowest()), static_cast<float>(s.codes.highest())};
}

}  // namespace lowbit

namespace lowbit::kernel {

LOWBIT_ALWAYS_INLINE constexpr bool has_offset(const format_spec& s) noexcept { return s.minimum.present() || s.zero_point.present(); }

/// Whether a block's scale, or its sub-scales, are numbers without a sign.
LOWBIT_ALWAYS_INLINE constexpr bool has_unsigned_scale(const format_spec& s) noexcept {
  const number type = s.sub_number != number::none ? s.sub_number : s.scale.type;
  return type == number::e8m0_half || type == number::e4m3_half;
}

/// An unrounded scale and the value of the lowest code (offset formats only).
template <class V>
struct real_scale {
  V scale{0.0f}, minimum{0.0f};
};

/// v where it is finite, else 0.
template <class V>
LOWBIT_ALWAYS_INLINE V finite_or_zero(const V& v) noexcept {
  return select(magnitude(v) < V(std::numeric_limits<float>::infinity()), v, V(0.0f));
}

/// The scale that spreads the codes over a range. Symmetric formats put the larger end on the level of the larger magnitude,
/// with its sign, so that all codes are used (as GGUF's Q4_0 does); where a scale has no sign, both ends lie within the levels.
template <class V>
LOWBIT_ALWAYS_INLINE real_scale<V> scale_for(const format_spec& s, V low, V high) noexcept {
  const level_range levels = levels_of(s);
  if (has_offset(s)) {
    // Only a free float minimum may leave zero outside the range.
    if (s.zero_point.present() || s.sub_minimum.present()) {
      low = lesser(low, V(0.0f));
      high = greater(high, V(0.0f));
    }
    return {(high - low) / V(levels.highest - levels.lowest), low};
  }
  if (has_unsigned_scale(s)) return {greater(low / V(levels.lowest), levels.highest > 0 ? high / V(levels.highest) : V(0.0f)), V(0.0f)};
  const V extreme = select(negated(low) > high, low, high);
  if (-levels.lowest == levels.highest) return {magnitude(extreme) / V(levels.highest), V(0.0f)};
  return {extreme / V(-levels.lowest > levels.highest ? levels.lowest : levels.highest), V(0.0f)};
}

/// The zero-point of a block whose scale is stored already.
template <class V>
LOWBIT_ALWAYS_INLINE V zero_point_for(const format_spec& s, const V& minimum, const V& scale) noexcept {
  const V ratio = finite_or_zero(negated(minimum) / scale);
  return nearest_small(lesser(greater(ratio, V(0.0f)), V(static_cast<float>(s.codes.highest()))));
}

/// A scale held within its type's range: one that rounded to infinity would lose the whole block.
template <class V>
LOWBIT_ALWAYS_INLINE V clamped_scale(number type, const V& value) noexcept {
  const float most = type == number::f16 ? 65504.0f : type == number::bf16 ? 0x1.fep127f : std::numeric_limits<float>::max();
  return lesser(greater(value, V(-most)), V(most));
}

namespace ggml {

/// ggml's types whose codes are rounded to nearest: level by truncation of a sum, or halves away from zero.
LOWBIT_ALWAYS_INLINE constexpr rounding_rule rule_of(const format_spec& s) noexcept {
  for (const int type : {q8_0::spec.gguf, tq2_0::spec.gguf, q2_0::spec.gguf})
    if (s.gguf == type) return rounding_rule::away;
  for (const int type : {q4_0::spec.gguf, q4_1::spec.gguf, q5_0::spec.gguf, q5_1::spec.gguf})
    if (s.gguf == type) return rounding_rule::half_up;
  return rounding_rule::nearest;
}
/// Whether ggml rounds a type without a search when no importance is given.
LOWBIT_ALWAYS_INLINE constexpr bool unsearched(const format_spec& s) noexcept { return rule_of(s) != rounding_rule::nearest; }

/// A block's scale before it is rounded to f16, and how its weights become codes: by that scale, not by the one that is stored.
template <class V>
struct unsearched_fit {
  V scale, offset, inverse, bias;
};

/// Which of several weights ggml means where the range alone does not say: the sign of a zero that is the least, and the first of the
/// largest magnitude (zero has no sign there).
LOWBIT_ALWAYS_INLINE void find_first(const float* x, std::size_t n, float* low, float* extreme) noexcept {
  for (std::size_t i = 0; *low == 0.0f && i < n; ++i)
    if (x[i] == 0.0f) {
      *low = x[i];
      break;
    }
  const float most = std::fabs(*extreme);
  for (std::size_t i = 0; most != 0.0f && i < n; ++i)
    if (std::fabs(x[i]) == most) {
      *extreme = x[i];
      return;
    }
}

/// `extreme` is the first weight of the largest magnitude.
template <class V>
LOWBIT_ALWAYS_INLINE unsearched_fit<V> fit_unsearched(const format_spec& s, const V& low, const V& high, const V& extreme) noexcept {
  unsearched_fit<V> f{V(0.0f), V(0.0f), V(0.0f), V(0.5f)};
  if (s.minimum.present()) {
    f.scale = (high - low) / V(static_cast<float>(s.levels() - 1));
    f.offset = low;
  } else if (rule_of(s) == rounding_rule::half_up) {
    f.scale = extreme / V(static_cast<float>(-s.codes.zero));
  } else {
    f.scale = magnitude(extreme) / V(static_cast<float>(s.codes.is_signed ? s.codes.highest() : 1));
  }
  const V inverse = V(1.0f) / f.scale;
  f.inverse = finite_or_zero(inverse);
  // The inverse of a subnormal scale is infinite; what that makes of a weight fits in no int, and converts to one whose low bits are zero.
  if (!s.minimum.present())
    f.bias = select((f.scale == V(0.0f)) | (magnitude(inverse) < V(std::numeric_limits<float>::infinity())), V(static_cast<float>(s.codes.zero) + 0.5f), V(0.0f));
  return f;
}

}  // namespace ggml

}  // namespace lowbit::kernel
