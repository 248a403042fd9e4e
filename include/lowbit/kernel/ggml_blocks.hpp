// ggml's quantisers of whole blocks (ggml-quants.c: quantize_row_*_ref without importance, quantize_row_*_impl with it), for as many
// blocks as V has lanes. Types whose codes follow from their range alone are in kernel/range_fit.hpp.
//
// With importance: weights w = importance * sqrt(sigma² + x²), sigma² the mean of x² over the block (k-quants: doubled but for q2_k) or
// over the row (q4_0 … q5_1); q6_k takes the importance as it is.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/kernel/ggml_search.hpp>

namespace lowbit::kernel::ggml {

/// What is chosen for some blocks: numbers as they are stored (scales rounded to f16), codes and sub-scales as floats.
template <block_format F, class V>
struct lane_blocks {
  static constexpr std::size_t subs = spec_of<F>.sub_blocks();
  V scale{0.0f}, minimum{0.0f};
  V sub_scale[subs], sub_minimum[subs];  ///< the integers that they mean, or the bits of a number that is not one
  V codes[spec_of<F>.block];             ///< as stored
};

/// The weights that some blocks are made from.
template <class V>
struct lane_weights {
  const V* x;
  const V* importance;  ///< null: none given
  V row_mean_square;    ///< used by q4_0 … q5_1 with importance
};

/// w = importance * sqrt(sigma² + x²).
template <class V>
LOWBIT_ALWAYS_INLINE void weigh(std::size_t n, const V* x, const V* importance, const V& sigma2, V* w) noexcept {
  for (std::size_t i = 0; i < n; ++i) w[i] = rounded_product(importance[i], square_root(sigma2 + rounded_product(x[i], x[i])));
}

/// Codes again, for the scales as they are stored; sub-blocks whose scale came out as zero keep the search's.
template <block_format F, class V>
void requantise(const V* x, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  constexpr float lowest = static_cast<float>(s.codes.lowest()), highest = static_cast<float>(s.codes.highest());
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const V scale = rounded_product(b.scale, b.sub_scale[j]);
    const V less = s.minimum.present() ? rounded_product(b.minimum, b.sub_minimum[j]) : V(0.0f);
    const auto kept = scale == V(0.0f);
    for (std::size_t i = j * s.sub; i < (j + 1) * s.sub; ++i)
      b.codes[i] = select(kept, b.codes[i], nearest_between((x[i] + less) / scale, lowest, highest) - V(lowest));
  }
}

/// q2_k, q4_k, q5_k: scale and minimum of each sub-block by search, both rounded to the super-block's.
template <block_format F, class V>
void quantise_k_minimum(const lane_weights<V>& in, lane_blocks<F, V>& b, range_trials trials) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  constexpr std::size_t subs = s.sub_blocks();
  constexpr float top = static_cast<float>(s.levels() - 1), sub_top = static_cast<float>(s.sub_scale.highest());
  constexpr float factor = s.codes.bits() == 2 ? 1.0f : 2.0f;
  const bool given = in.importance != nullptr;
  const V sigma2 = given ? V(factor) * sum_of_squares(in.x, s.block) / V(static_cast<float>(s.block)) : V(0.0f);
  V scales[subs], minima[subs], importance[subs];
  for (std::size_t j = 0; j < subs; ++j) {
    const V* const x = in.x + j * s.sub;
    V w[longest];
    if (given) {
      weigh(s.sub, x, in.importance + j * s.sub, sigma2, w);
      importance[j] = sum_of(w, s.sub);
    } else {
      // The 4- and 5-bit types weigh by the root mean square plus |x|.
      const V mean = trials.absolute ? V(0.0f) : square_root(sum_of_squares(x, s.sub) / V(static_cast<float>(s.sub)));
      for (std::size_t i = 0; i < s.sub; ++i) w[i] = mean + magnitude(x[i]);
    }
    scales[j] = search_with_minimum(s.sub, top, x, w, trials, b.codes + j * s.sub, minima[j]);
  }
  const auto round_to = [&](const V* values, V* out) LOWBIT_INLINE_LAMBDA {
    if (given) return rounded_f16(search_positive(subs, sub_top, values, importance, out));
    V most(0.0f);
    for (std::size_t j = 0; j < subs; ++j) most = greater(values[j], most);
    const V inverse = select(most > V(0.0f), V(sub_top) / most, V(0.0f));
    for (std::size_t j = 0; j < subs; ++j) out[j] = lesser(nearest(rounded_product(inverse, values[j])), V(sub_top));
    return rounded_f16(most / V(sub_top));
  };
  b.scale = round_to(scales, b.sub_scale);
  b.minimum = round_to(minima, b.sub_minimum);
  requantise(in.x, b);
}

/// q3_k, q6_k: signed sub-scales.
template <block_format F, class V>
void quantise_k_symmetric(const lane_weights<V>& in, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  constexpr std::size_t subs = s.sub_blocks();
  constexpr bool three_bits = s.codes.bits() == 3;
  constexpr float top = static_cast<float>(s.codes.zero), sub_low = static_cast<float>(s.sub_scale.lowest());
  const bool given = in.importance != nullptr;
  const V sigma2 = given && three_bits ? V(2.0f) * sum_of_squares(in.x, s.block) / V(static_cast<float>(s.block)) : V(0.0f);
  V scales[subs], importance[subs];
  if (three_bits && !given) {
    // Every step of the descent waits for the one before; four sub-blocks at once hide most of that.
    using four = side_by_side<V, 4>;
    typename four::type x[longest], levels[longest];
    for (std::size_t j = 0; j < subs; j += four::count) {
      for (std::size_t i = 0; i < s.sub; ++i) x[i] = four::join(in.x + j * s.sub + i, s.sub);
      const auto scale = search_by_descent(s.sub, top, x, levels);
      for (std::size_t k = 0; k < four::count; ++k) {
        scales[j + k] = four::part(scale, k);
        for (std::size_t i = 0; i < s.sub; ++i) b.codes[(j + k) * s.sub + i] = four::part(levels[i], k) + V(top);
      }
    }
  } else {
    for (std::size_t j = 0; j < subs; ++j) {
      const V* const x = in.x + j * s.sub;
      V* const levels = b.codes + j * s.sub;
      V w[longest];
      if (given && three_bits) {
        weigh(s.sub, x, in.importance + j * s.sub, sigma2, w);
        importance[j] = sum_of(w, s.sub);
      } else {
        for (std::size_t i = 0; i < s.sub; ++i) w[i] = given ? in.importance[j * s.sub + i] : x[i] * x[i];
      }
      scales[j] = search_symmetric(s.sub, top, x, w, levels);
      for (std::size_t i = 0; i < s.sub; ++i) levels[i] = levels[i] + V(top);
    }
  }
  if (given && three_bits) {
    b.scale = rounded_f16(search_symmetric(subs, -sub_low, scales, importance, b.sub_scale));
    return requantise(in.x, b);
  }
  // The sub-scale of the largest magnitude gets the lowest code.
  const V most = largest(scales, subs), inverse = V(sub_low) / most;
  const auto zero = three_bits ? most == V(0.0f) : magnitude(most) < V(tiny);
  b.scale = select(zero, V(0.0f), rounded_f16(V(1.0f) / inverse));
  const V zero_sub(static_cast<float>(s.sub_scale.value(0)));
  for (std::size_t j = 0; j < subs; ++j) {
    const V rounded = nearest_between(rounded_product(inverse, scales[j]), sub_low, static_cast<float>(s.sub_scale.highest()));
    b.sub_scale[j] = select(zero, zero_sub, rounded);
  }
  requantise(in.x, b);
  if (!three_bits)
    for (V& code : b.codes) code = select(zero, V(0.0f), code);
}

/// iq4_nl, iq4_xs: codes by the scale before it is rounded to f16.
template <block_format F, class V>
void quantise_table(const lane_weights<V>& in, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  constexpr std::size_t subs = s.sub_blocks(), n = s.sub_block();
  constexpr table16 table(s.values);
  const V sigma2 = in.importance != nullptr ? sum_of_squares(in.x, s.block) * V(2.0f / static_cast<float>(s.block)) : V(0.0f);
  V scales[subs];
  for (std::size_t j = 0; j < subs; ++j) {
    const V* const x = in.x + j * n;
    V w[longest];
    if (in.importance != nullptr) weigh(n, x, in.importance + j * n, sigma2, w);
    else
      for (std::size_t i = 0; i < n; ++i) w[i] = x[i] * x[i];
    scales[j] = search_table(n, table, x, w);
  }
  const auto inverse_of = [](const V& v) LOWBIT_INLINE_LAMBDA { return select(v == V(0.0f), V(0.0f), V(1.0f) / v); };
  const auto set_codes = [&](std::size_t j, const V& scale) LOWBIT_INLINE_LAMBDA {
    const V inverse = inverse_of(scale);
    for (std::size_t i = j * n; i < (j + 1) * n; ++i) b.codes[i] = nearest_index(table, rounded_product(inverse, in.x[i]));
  };
  if constexpr (s.sub == 0) {
    b.scale = rounded_f16(scales[0]);
    set_codes(0, scales[0]);
  } else {
    const V d = negated(largest(scales, subs)) / V(static_cast<float>(-s.sub_scale.lowest())), inverse = inverse_of(d);
    b.scale = rounded_f16(d);
    for (std::size_t j = 0; j < subs; ++j) {
      b.sub_scale[j] = nearest_between(rounded_product(inverse, scales[j]), static_cast<float>(s.sub_scale.lowest()), static_cast<float>(s.sub_scale.highest()));
      set_codes(j, rounded_product(d, b.sub_scale[j]));
    }
  }
}

/// q4_0, q5_0, q4_1, q5_1 with importance.
template <block_format F, class V>
void quantise_weighted(const lane_weights<V>& in, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  V w[longest];
  weigh(s.block, in.x, in.importance, in.row_mean_square, w);
  if constexpr (s.minimum.present()) {
    constexpr float top = static_cast<float>(s.levels() - 1);
    V minimum;
    b.scale = rounded_f16(search_with_minimum(s.block, top, in.x, w, {-0.9f, 0.05f, 36, false}, b.codes, minimum));
    b.minimum = rounded_f16(negated(minimum));
  } else {
    constexpr float zero = static_cast<float>(s.codes.zero);
    b.scale = rounded_f16(search_symmetric(s.block, zero, in.x, w, b.codes));
    for (V& code : b.codes) code = code + V(zero);
  }
}

/// The code of a table whose value, times d, is nearest to x: the first of equals.
template <class V>
LOWBIT_ALWAYS_INLINE V nearest_by_scan(const codebook& table, const V& d, const V& x) noexcept {
  V best(0.0f), least = magnitude(rounded_product(V(table.values[0]), d) - x);
  for (unsigned c = 1; c < table.size; ++c) {
    const V e = magnitude(rounded_product(V(table.values[c]), d) - x);
    const auto better = e < least;
    least = select(better, e, least);
    best = select(better, V(static_cast<float>(c)), best);
  }
  return best;
}

/// The codes of E2M1 (four bits: a sign over eight magnitudes) whose values times d are nearest to x[0, n), none larger than `most`: what
/// ggml's scan over all codes finds. Comparing with what lies midway gives the same (of two the lesser magnitude, and zero without a sign)
/// as long as products with d, and differences near them, are exact. Where d is zero, saturated, or near the largest float, the scan decides.
template <class V>
LOWBIT_ALWAYS_INLINE void nearest_e2m1(std::size_t n, const V& d, const V& most, const V* x, V* codes) noexcept {
  constexpr const codebook& table = e2m1_doubled;
  if (any((most > d * V(24.0f)) | !(d < V(0x1p124f)))) {
    for (std::size_t i = 0; i < n; ++i) codes[i] = nearest_by_scan(table, d, x[i]);
    return;
  }
  V bound[7];
  for (unsigned k = 0; k < 7; ++k) bound[k] = d * V((table.values[k] + table.values[k + 1]) / 2);
  for (std::size_t i = 0; i < n; ++i) {
    const V size = magnitude(x[i]);
    V code(0.0f);
    for (const V& b : bound) code = code + select(size > b, V(1.0f), V(0.0f));
    codes[i] = select((x[i] < V(0.0f)) & (code > V(0.0f)), code + V(8.0f), code);
  }
}

/// mxfp4: exponent floor(log2(max)) - 2 (with log2f's own rounding).
template <block_format F, class V>
void quantise_power(const V* x, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  const V most = magnitude(largest(x, s.block));
  b.scale = map_lanes(most, [](float m) LOWBIT_INLINE_LAMBDA {
    return e8m0_half_to_float(m > 0 ? static_cast<std::uint8_t>(static_cast<int>(std::floor(std::log2(m))) - 2 + 127) : std::uint8_t{0});
  });
  nearest_e2m1(s.block, b.scale, most, x, b.codes);
}

/// nvfp4: the largest magnitude of 16 on the value 6.
template <block_format F, class V>
void quantise_e4m3(const V* x, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const V most = magnitude(largest(x + j * s.sub, s.sub));
    b.sub_scale[j] = map_lanes(most / V(6.0f), [](float wanted) LOWBIT_INLINE_LAMBDA {
      const std::uint8_t nearest = to_e4m3(wanted);
      // ggml's conversion knows neither the step from the subnormals up to the first normal number nor numbers between 240 and 448.
      return static_cast<float>(nearest >= 0x78 ? 0x7e : nearest == 8 && wanted < 0x1p-6f ? 7 : nearest);
    });
    const V d = map_lanes(b.sub_scale[j], [](float bits) LOWBIT_INLINE_LAMBDA { return e4m3_half_to_float(static_cast<std::uint8_t>(bits)); });
    nearest_e2m1(s.sub, d, most, x + j * s.sub, b.codes + j * s.sub);
  }
}

/// q1_0: signs, and the mean magnitude.
template <block_format F, class V>
void quantise_signs(const V* x, lane_blocks<F, V>& b) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  V sum(0.0f);
  for (std::size_t i = 0; i < s.block; ++i) {
    sum = sum + magnitude(x[i]);
    b.codes[i] = select(x[i] < V(0.0f), V(0.0f), V(1.0f));
  }
  b.scale = rounded_f16(sum / V(static_cast<float>(s.block)));
}

template <class F, class... G>
inline constexpr bool one_of = (std::is_same_v<F, G> || ...);

/// Whether importance changes how ggml quantises a type.
template <block_format F>
inline constexpr bool weighted = one_of<F, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs>;
/// Whether it searches without importance, too.
template <block_format F>
inline constexpr bool searched = weighted<F> && !one_of<F, q4_0, q4_1, q5_0, q5_1>;

/// Whether blocks of a type are quantised here, with importance or without. (The others' codes follow from their range alone:
/// kernel/range_fit.hpp.)
template <block_format F>
inline constexpr bool in_lanes = weighted<F> || one_of<F, mxfp4, nvfp4, q1_0>;

/// Quantises blocks. Expects importance for the types of weighted that are not searched.
template <block_format F, class V>
  requires in_lanes<F>
void quantise_lanes(const lane_weights<V>& in, lane_blocks<F, V>& b) noexcept {
  if constexpr (one_of<F, mxfp4>) quantise_power(in.x, b);
  else if constexpr (one_of<F, nvfp4>) quantise_e4m3(in.x, b);
  else if constexpr (one_of<F, q1_0>) quantise_signs(in.x, b);
  else if constexpr (!searched<F>) quantise_weighted(in, b);
  else if constexpr (one_of<F, iq4_nl, iq4_xs>) quantise_table(in, b);
  else if constexpr (one_of<F, q3_k, q6_k>) quantise_k_symmetric(in, b);
  else if (in.importance != nullptr) quantise_k_minimum(in, b, {-0.9f, 0.05f, 36, false});
  else quantise_k_minimum(in, b, {one_of<F, q4_k> ? -1.0f : -0.5f, 0.1f, one_of<F, q4_k> ? 20 : 15, one_of<F, q2_k>});
}

}  // namespace lowbit::kernel::ggml
