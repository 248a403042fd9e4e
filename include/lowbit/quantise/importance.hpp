// Importance-weighted least squares: the scale for the least Σ importance (w - Q(w))², importance the mean x² of a weight's input.
//
// GGUF's types: what ggml does with an importance matrix, byte for byte. Every other format: over the ranges of mse_search, codes and
// then the least-squares scale (and minimum) for these codes. An importance that is zero all over a sub-block, negative or not a number
// says nothing: such a sub-block's weights count alike (ggml makes scales of NaN or zero of some of them).
#pragma once

#include <lowbit/quantise/standard.hpp>

#include <optional>

namespace lowbit {

/// Importance from elsewhere, an importance matrix's file for instance, in the place of a calibration: mean x² of each channel.
inline calibrated<channel_importance> given_importance(std::span<const float> means) {
  return calibrated<channel_importance>(channel_importance::of_means(means));
}

/// Whether n numbers can be weights: finite, none negative, not all zero.
inline bool usable_importance(const float* importance, std::size_t n) noexcept {
  bool some = false;
  for (std::size_t i = 0; i < n; ++i) {
    if (!(importance[i] >= 0) || !std::isfinite(importance[i])) return false;
    some |= importance[i] > 0;
  }
  return some;
}

/// Importance that a search can work with, of `n` consecutive channels in sub-blocks of `sub`: where a sub-block's is not usable, its channels
/// count alike, as little as the least that counts elsewhere (1 where nothing does). Numbers too large or small to be squared and
/// summed with a weight are scaled by a power of two, which changes no choice. Returns whether `out` differs from the input.
inline bool mend_importance(const float* importance, std::size_t n, std::size_t sub, float* out) noexcept {
  float most = 0, least = 0;
  bool whole = true;
  const auto each_sub_block = [&](auto&& f) {
    for (std::size_t begin = 0; begin < n; begin += sub) f(begin, std::min(sub, n - begin));
  };
  each_sub_block([&](std::size_t begin, std::size_t count) {
    if (!usable_importance(importance + begin, count)) {
      whole = false;
      return;
    }
    for (std::size_t i = begin; i < begin + count; ++i) most = std::max(most, importance[i]);
  });
  const int exponent = most > 0 && (most > 0x1p60f || most < 0x1p-60f) ? -std::ilogb(most) : 0;
  if (whole && exponent == 0) {
    std::copy(importance, importance + n, out);
    return false;
  }
  each_sub_block([&](std::size_t begin, std::size_t count) {
    const bool usable = usable_importance(importance + begin, count);
    for (std::size_t i = begin; i < begin + count; ++i) {
      out[i] = usable ? std::scalbn(importance[i], exponent) : 0.0f;
      if (out[i] > 0 && (least == 0 || out[i] < least)) least = out[i];
    }
  });
  each_sub_block([&](std::size_t begin, std::size_t count) {
    if (!usable_importance(out + begin, count)) std::fill(out + begin, out + begin + count, least > 0 ? least : 1.0f);
  });
  return true;
}

/// ggml's quantisers with importance. Where that leaves a scale that is not a number (weights too large to be squared), without.
template <block_format... F>
struct ggml_weighted_of {
  using needs = needs_statistics<channel_importance>;
  /// Whether `s` is one of these formats, in which case scales and codes are chosen.
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    return (fit_one<F>(s, x, n, about, f) || ...);
  }

 private:
  template <block_format G>
  static bool fit_one(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    constexpr const format_spec& spec = spec_of<G>;
    if (&s != &spec) return false;
    if constexpr (kernel::ggml::weighted<G>) {
      // (A row whose mean square overflows would get scales of zero.)
      if (about.importance != nullptr && (kernel::ggml::searched<G> || std::isfinite(about.row_mean_square))) {
        float padded[spec.block] = {}, importance[spec.block] = {};
        std::copy(x, x + n, padded);
        mend_importance(about.importance, n, spec.sub_block(), importance);
        block_parts<G> p;
        ggml_quantise_block<G>(padded, p, importance, about.row_mean_square);
        if (!std::isnan(number_value(s.scale.type, p.scale)) && !std::isnan(number_value(s.minimum.type, p.minimum))) {
          copy_fields(p, f);
          return true;
        }
      }
    }
    return ggml_reference_of<G>::fit(s, x, n, about, f);
  }
};

namespace detail {
template <block_format... F>
constexpr auto ggml_weighted_for(format_list<F...>) -> ggml_weighted_of<F...>;

/// The least-squares scale for the codes that a grid rounds to, or nothing where it is not determined.
inline std::optional<real_scale> refitted(const format_spec& s, const grid& g, int zero_point, const float* x, std::size_t n,
                                          const input_statistics& about) noexcept {
  double w_sum = 0, l_sum = 0, l2 = 0, x_sum = 0, xl = 0;
  std::uint8_t codes[256];
  for (std::size_t first = 0; first < n; first += std::size(codes)) {
    const std::size_t count = std::min(std::size(codes), n - first);
    g.round(first, x + first, count, codes);
    for (std::size_t i = 0; i < count; ++i) {
      const double w = importance_of(about, first + i), l = static_cast<double>(level_of(g.spec(), codes[i], zero_point)), v = x[first + i];
      w_sum += w;
      l_sum += w * l;
      l2 += w * l * l;
      x_sum += w * v;
      xl += w * v * l;
    }
  }
  double scale = xl / l2, minimum = 0;
  const double d = w_sum * l2 - l_sum * l_sum;
  if (s.minimum.present() && d > 0) {
    minimum = (l2 * x_sum - l_sum * xl) / d;
    if (s.sub_minimum.present() && minimum > 0) minimum = 0;
    else scale = (w_sum * xl - x_sum * l_sum) / d;
  }
  const real_scale r{static_cast<float>(scale), static_cast<float>(s.zero_point.present() ? -scale * zero_point : minimum)};
  const bool sensible = std::isfinite(r.scale) && std::isfinite(r.minimum) && (has_offset(s) ? r.scale > 0 : r.scale != 0);
  return sensible ? std::optional<real_scale>(r) : std::nullopt;
}
}  // namespace detail

/// ggml's importance-weighted quantisers for all of GGUF's block types.
using ggml_weighted = decltype(detail::ggml_weighted_for(gguf_formats{}));

/// Importance-weighted least squares for any format. On one-level formats that ggml does not have, Σ importance e² is never above minmax's.
struct importance_weighted {
  using needs = needs_statistics<channel_importance>;
  static constexpr row_kernels rows{.as_ggml = true, .weighted = true};
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    if (ggml_weighted::fit(s, x, n, about, f)) return true;
    constexpr unsigned ranges = 20, refits = 2;
    detail::sub_block_trial trial(s);
    const float levels = static_cast<float>(s.levels()), narrowest = levels / (levels + 6.0f);
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, input_statistics inputs) {
      if (inputs.importance != nullptr && !usable_importance(inputs.importance, count)) inputs.importance = nullptr;
      const weight_range whole = detail::range_of(v, count);
      detail::real_scale best = trial.scale_of(whole);
      double least = -1;
      for (unsigned i = 0; i < ranges; ++i) {
        const float keep = 1.0f - (1.0f - narrowest) * static_cast<float>(i) / static_cast<float>(ranges - 1);
        detail::real_scale r = trial.scale_of({whole.low * keep, whole.high * keep});
        for (unsigned k = 0; k <= refits; ++k) {
          const grid g = trial.grid_of(r);
          const double error = detail::squared_error(g, v, count, inputs);
          if (least < 0 || error < least) {
            least = error;
            best = r;
          }
          const auto better = detail::refitted(s, g, trial.zero_point(), v, count, inputs);
          if (!better) break;
          r = *better;
        }
      }
      return best;
    });
    return false;
  }
};

}  // namespace lowbit
