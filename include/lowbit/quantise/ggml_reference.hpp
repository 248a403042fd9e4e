// ggml's reference quantisers for GGUF's block types, byte for byte, without importance (ggml-quants.c: quantize_row_*_ref, and for the
// IQ4 types what quantize_iq4_* does without an importance matrix).
//
// Scales here and codes there are rounded by different rules in each family; the comments name them. What is stored is what ggml stores.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/quantise/ggml_search.hpp>

namespace lowbit {

namespace ggml {

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
    p.sub_scale[j] = to_e4m3(std::fabs(largest(x + j * s.sub, s.sub)) / 6.0f);
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

/// Codes again, for the scales as they are stored; sub-blocks whose scale came out as zero keep the search's codes.
template <class F>
void requantise(const float* x, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  const float d = number_value(s.scale.type, p.scale), dmin = s.minimum.present() ? number_value(s.minimum.type, p.minimum) : 0.0f;
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const float scale = rounded_product(d, static_cast<float>(s.sub_scale.value(p.sub_scale[j])));
    if (scale == 0) continue;
    const float less = s.minimum.present() ? rounded_product(dmin, static_cast<float>(s.sub_minimum.value(p.sub_minimum[j]))) : 0.0f;
    for (std::size_t i = j * s.sub; i < (j + 1) * s.sub; ++i)
      p.codes[i] = static_cast<std::uint8_t>(s.codes.stored(nearest_int((x[i] + less) / scale, s.codes.lowest(), s.codes.highest())));
  }
}

/// q2_k, q4_k, q5_k: scale and minimum of each sub-block by search, both rounded to the super-block's.
template <class F>
void quantise_k_minimum(const float* x, block_parts<F>& p, range_trials trials) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  constexpr int top = static_cast<int>(s.levels()) - 1;
  const int sub_top = s.sub_scale.highest();
  float scales[s.sub_blocks()], minima[s.sub_blocks()], max_scale = 0, max_minimum = 0;
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const float* const v = x + j * s.sub;
    float weights[s.sub], mean = 0;
    if (!trials.absolute) {  // the 4- and 5-bit types weigh by the root mean square plus |x|
      for (std::size_t i = 0; i < s.sub; ++i) mean += rounded_product(v[i], v[i]);
      mean = std::sqrt(mean / static_cast<float>(s.sub));
    }
    for (std::size_t i = 0; i < s.sub; ++i) weights[i] = mean + std::fabs(v[i]);
    scales[j] = search_with_minimum(s.sub, top, v, weights, p.codes.data() + j * s.sub, minima[j], trials);
    max_scale = std::max(max_scale, scales[j]);
    max_minimum = std::max(max_minimum, minima[j]);
  }
  const auto round_to = [&](const float* values, float most, auto& out) {
    const float inverse = most > 0 ? static_cast<float>(sub_top) / most : 0.0f;
    for (std::size_t j = 0; j < s.sub_blocks(); ++j)
      out[j] = static_cast<std::uint8_t>(std::min(sub_top, nearest_int(rounded_product(inverse, values[j]))));
    return number_bits(number::f16, most / static_cast<float>(sub_top));
  };
  p.scale = round_to(scales, max_scale, p.sub_scale);
  p.minimum = round_to(minima, max_minimum, p.sub_minimum);
  requantise(x, p);
}

/// q3_k, q6_k: signed sub-scales; the one of the largest magnitude gets the lowest code.
template <class F, class Search>
void quantise_k_symmetric(const float* x, block_parts<F>& p, float zero_below, Search search) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  float scales[s.sub_blocks()];
  for (std::size_t j = 0; j < s.sub_blocks(); ++j)
    scales[j] = search(s.sub, s.codes.zero, x + j * s.sub, p.codes.data() + j * s.sub);
  const float most = largest(scales, s.sub_blocks());
  if (most == 0 || std::fabs(most) < zero_below) {
    p.scale = 0;
    p.sub_scale.fill(0);
    if (zero_below > 0) p.codes.fill(0);
    return;
  }
  const float inverse = static_cast<float>(s.sub_scale.lowest()) / most;
  p.scale = number_bits(number::f16, 1 / inverse);
  for (std::size_t j = 0; j < s.sub_blocks(); ++j)
    p.sub_scale[j] = static_cast<std::uint8_t>(
        s.sub_scale.stored(nearest_int(rounded_product(inverse, scales[j]), s.sub_scale.lowest(), s.sub_scale.highest())));
  requantise(x, p);
}

/// iq4_nl, iq4_xs: codes by the scale before it is rounded to f16.
template <class F>
void quantise_table(const float* x, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  const auto codes = [&](std::size_t j, float scale) {
    const float inverse = scale != 0 ? 1 / scale : 0.0f;
    for (std::size_t i = j * s.sub_block(); i < (j + 1) * s.sub_block(); ++i)
      p.codes[i] = nearest_in_table(s.values, rounded_product(inverse, x[i]));
  };
  if constexpr (s.sub == 0) {
    const float d = search_table(s.block, s.values, x);
    p.scale = number_bits(number::f16, d);
    codes(0, d);
  } else {
    float scales[s.sub_blocks()];
    for (std::size_t j = 0; j < s.sub_blocks(); ++j) scales[j] = search_table(s.sub, s.values, x + j * s.sub);
    const float d = -largest(scales, s.sub_blocks()) / static_cast<float>(-s.sub_scale.lowest());
    p.scale = number_bits(number::f16, d);
    const float inverse = d != 0 ? 1 / d : 0.0f;
    for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
      const int sub = nearest_int(rounded_product(inverse, scales[j]), s.sub_scale.lowest(), s.sub_scale.highest());
      p.sub_scale[j] = static_cast<std::uint8_t>(s.sub_scale.stored(sub));
      codes(j, rounded_product(d, static_cast<float>(sub)));
    }
  }
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
inline void quantise(const float* x, block_parts<iq4_nl>& p) noexcept { quantise_table(x, p); }
inline void quantise(const float* x, block_parts<iq4_xs>& p) noexcept { quantise_table(x, p); }
inline void quantise(const float* x, block_parts<q2_k>& p) noexcept { quantise_k_minimum(x, p, {-0.5f, 0.1f, 15, true}); }
inline void quantise(const float* x, block_parts<q4_k>& p) noexcept { quantise_k_minimum(x, p, {-1.0f, 0.1f, 20, false}); }
inline void quantise(const float* x, block_parts<q5_k>& p) noexcept { quantise_k_minimum(x, p, {-0.5f, 0.1f, 15, false}); }
inline void quantise(const float* x, block_parts<q3_k>& p) noexcept { quantise_k_symmetric(x, p, 0.0f, search_by_descent); }
inline void quantise(const float* x, block_parts<q6_k>& p) noexcept {
  quantise_k_symmetric(x, p, tiny, [](std::size_t n, int nmax, const float* v, std::uint8_t* codes) { return search_symmetric(n, nmax, v, codes); });
}

}  // namespace ggml

/// Whether ggml has a reference quantiser for this format.
template <class F>
concept has_ggml_reference = requires(const float* x, block_parts<F>& p) { ggml::quantise(x, p); };

/// Chooses scales and codes of one block of finite weights as ggml does.
template <block_format F>
  requires has_ggml_reference<F>
void ggml_quantise_block(const float* x, block_parts<F>& p) noexcept {
  ggml::quantise(x, p);
}

}  // namespace lowbit
