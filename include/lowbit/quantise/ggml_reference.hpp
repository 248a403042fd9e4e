// ggml's quantisers for GGUF's block types, byte for byte (ggml-quants.c), one block at a time. The types that search for their scales are
// in kernel/ggml_blocks.hpp; here are those that do not, as long as no importance is given.
//
// Scales here and codes there are rounded by different rules in each family; the comments name them. What is stored is what ggml stores.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/kernel/ggml_blocks.hpp>

#include <algorithm>
#include <limits>

namespace lowbit {

namespace ggml {

/// Rounding towards zero as x86's conversion does it: what an int cannot hold becomes INT_MIN. (Blocks whose scale is a subnormal
/// number have an infinite inverse; ggml converts the infinity, which C++ leaves undefined.)
inline int truncated(float v) noexcept {
  return std::fabs(v) < 2147483648.0f ? static_cast<int>(v) : std::numeric_limits<int>::min();
}

using kernel::ggml::largest;

/// q4_0, q5_0: the largest value on the lowest code; codes by truncation of x / d + half the range + 0.5, d as yet unrounded.
template <class F>
void quantise_symmetric(const float* x, block_parts<F>& p) noexcept {
  constexpr int zero = spec_of<F>.codes.zero;
  const float d = largest(x, spec_of<F>.block) / static_cast<float>(-zero), inverse = d != 0 ? 1.0f / d : 0.0f;
  p.scale = number_bits(number::f16, d);
  for (std::size_t i = 0; i < spec_of<F>.block; ++i) {
    const int code = static_cast<std::int8_t>(truncated(rounded_product(x[i], inverse) + (static_cast<float>(zero) + 0.5f)));
    p.codes[i] = static_cast<std::uint8_t>(std::min(2 * zero - 1, code));
  }
}

/// q4_1, q5_1: the whole range.
template <class F>
void quantise_range(const float* x, block_parts<F>& p) noexcept {
  constexpr unsigned top = spec_of<F>.levels() - 1;
  const auto [low, high] = std::minmax_element(x, x + spec_of<F>.block);
  const float d = (*high - *low) / static_cast<float>(top), inverse = d != 0 ? 1.0f / d : 0.0f;
  p.scale = number_bits(number::f16, d);
  p.minimum = number_bits(number::f16, *low);
  for (std::size_t i = 0; i < spec_of<F>.block; ++i)
    p.codes[i] = static_cast<std::uint8_t>(std::min(static_cast<int>(top), truncated(rounded_product(x[i] - *low, inverse) + 0.5f)));
}

/// q8_0, tq2_0 and q2_0: the largest magnitude on the highest code, halves away from zero.
template <class F>
void quantise_absmax(const float* x, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  const float d = std::fabs(largest(x, s.block)) / static_cast<float>(s.codes.is_signed ? s.codes.highest() : 1);
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  p.scale = number_bits(number::f16, d);
  for (std::size_t i = 0; i < s.block; ++i)
    p.codes[i] = static_cast<std::uint8_t>(s.codes.stored(truncated(std::round(rounded_product(x[i], inverse)))));
}

/// The code of the least error, the first of equals.
inline std::uint8_t nearest_by_scan(const codebook& values, float d, float x) noexcept {
  unsigned best = 0;
  float least = std::fabs(rounded_product(values.values[0], d) - x);
  for (unsigned c = 1; c < values.size; ++c) {
    const float e = std::fabs(rounded_product(values.values[c], d) - x);
    if (e < least) {
      least = e;
      best = c;
    }
  }
  return static_cast<std::uint8_t>(best);
}

/// mxfp4: exponent floor(log2(max)) - 2 (with log2f's own rounding), codes by a scan.
inline void quantise_mxfp4(const float* x, block_parts<mxfp4>& p) noexcept {
  constexpr const format_spec& s = spec_of<mxfp4>;
  const float most = std::fabs(largest(x, s.block));
  p.scale = most > 0 ? static_cast<std::uint8_t>(static_cast<int>(std::floor(std::log2(most))) - 2 + 127) : 0u;
  const float d = e8m0_half_to_float(static_cast<std::uint8_t>(p.scale));
  for (std::size_t i = 0; i < s.block; ++i) p.codes[i] = nearest_by_scan(s.values, d, x[i]);
}

/// nvfp4: the largest magnitude of 16 on the value 6, codes by a scan.
inline void quantise_nvfp4(const float* x, block_parts<nvfp4>& p) noexcept {
  constexpr const format_spec& s = spec_of<nvfp4>;
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const float wanted = std::fabs(largest(x + j * s.sub, s.sub)) / 6.0f;
    const std::uint8_t nearest = to_e4m3(wanted);
    // ggml's conversion knows neither the step from the subnormals up to the first normal number nor numbers between 240 and 448.
    p.sub_scale[j] = nearest >= 0x78 ? std::uint8_t{0x7e} : nearest == 8 && wanted < 0x1p-6f ? std::uint8_t{7} : nearest;
    const float d = e4m3_half_to_float(p.sub_scale[j]);
    for (std::size_t i = j * s.sub; i < (j + 1) * s.sub; ++i) p.codes[i] = nearest_by_scan(s.values, d, x[i]);
  }
}

/// q1_0: signs, and the mean magnitude.
inline void quantise_q1_0(const float* x, block_parts<q1_0>& p) noexcept {
  constexpr const format_spec& s = spec_of<q1_0>;
  float sum = 0;
  for (std::size_t i = 0; i < s.block; ++i) {
    sum += std::fabs(x[i]);
    p.codes[i] = x[i] >= 0;
  }
  p.scale = number_bits(number::f16, sum / static_cast<float>(s.block));
}

/// A type that ggml quantises by search: one block, in a lane of its own.
template <block_format F>
void quantise_by_search(const float* x, const float* importance, float row_mean_square, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  kernel::ggml::lane_blocks<F, float> b;
  kernel::ggml::quantise_lanes(kernel::ggml::lane_weights<float>{x, importance, row_mean_square}, b);
  p.scale = number_bits(s.scale.type, b.scale);
  p.minimum = number_bits(s.minimum.type, b.minimum);
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    if (s.sub_scale.present()) p.sub_scale[j] = static_cast<std::uint8_t>(s.sub_scale.stored(static_cast<int>(b.sub_scale[j])));
    if (s.sub_minimum.present()) p.sub_minimum[j] = static_cast<std::uint8_t>(s.sub_minimum.stored(static_cast<int>(b.sub_minimum[j])));
  }
  for (std::size_t i = 0; i < s.block; ++i) p.codes[i] = static_cast<std::uint8_t>(b.codes[i]);
}

inline void quantise(const float* x, block_parts<q4_0>& p) noexcept { quantise_symmetric(x, p); }
inline void quantise(const float* x, block_parts<q5_0>& p) noexcept { quantise_symmetric(x, p); }
inline void quantise(const float* x, block_parts<q4_1>& p) noexcept { quantise_range(x, p); }
inline void quantise(const float* x, block_parts<q5_1>& p) noexcept { quantise_range(x, p); }
inline void quantise(const float* x, block_parts<q8_0>& p) noexcept { quantise_absmax(x, p); }
inline void quantise(const float* x, block_parts<tq2_0>& p) noexcept { quantise_absmax(x, p); }
inline void quantise(const float* x, block_parts<mxfp4>& p) noexcept { quantise_mxfp4(x, p); }
inline void quantise(const float* x, block_parts<nvfp4>& p) noexcept { quantise_nvfp4(x, p); }
inline void quantise(const float* x, block_parts<q1_0>& p) noexcept { quantise_q1_0(x, p); }
inline void quantise(const float* x, block_parts<q2_0>& p) noexcept { quantise_absmax(x, p); }

}  // namespace ggml

/// Whether ggml has a reference quantiser for this format.
template <class F>
concept has_ggml_reference = kernel::ggml::weighted<F> || requires(const float* x, block_parts<F>& p) { ggml::quantise(x, p); };

/// Chooses scales and codes of one block of finite weights as ggml does: with importance (one number for each weight, >= 0, some above 0 in
/// every sub-block) where it is given and the type heeds it. `row_mean_square` is the mean of x² over the whole row, summed from
/// its first weight on, which q4_0 … q5_1 use with importance.
template <block_format F>
  requires has_ggml_reference<F>
void ggml_quantise_block(const float* x, block_parts<F>& p, const float* importance = nullptr, float row_mean_square = 0) noexcept {
  if constexpr (kernel::ggml::searched<F>) {
    ggml::quantise_by_search<F>(x, importance, row_mean_square, p);
  } else {
    if constexpr (kernel::ggml::weighted<F>)
      if (importance != nullptr) return ggml::quantise_by_search<F>(x, importance, row_mean_square, p);
    ggml::quantise(x, p);
  }
}

}  // namespace lowbit
