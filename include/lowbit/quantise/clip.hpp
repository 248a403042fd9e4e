// Fits that clip: the scale covers less than the whole range of the weights.
//
// percentile_clip cuts off a share of the weights, whatever they matter. learnt_clip is AWQ's clip search (Lin et al. 2024, auto_clip.py):
// for each row and group, the bound on |w| that disturbs the layer's output least. The search there averages (x·Q(w) - x·w)² over sampled
// tokens; that sum over all tokens is (Q(w) - w)ᵀ H (Q(w) - w) with the group's diagonal block of H, which is what is computed here.
#pragma once

#include <lowbit/quantise/fit.hpp>

namespace lowbit {

namespace detail {

/// The p-quantile (0 … 1) of n sorted numbers, with linear interpolation between neighbours.
inline float quantile(const std::vector<float>& sorted, double p) noexcept {
  const double at = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return static_cast<float>(sorted[below] + (at - static_cast<double>(below)) * (static_cast<double>(sorted[above]) - sorted[below]));
}

/// eᵀ H e over n weights' errors; the squared error where H is not given. Never negative.
inline double output_error(const std::vector<double>& e, const input_statistics& about) noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < e.size(); ++i) {
    if (about.hessian == nullptr) {
      sum += e[i] * e[i];
      continue;
    }
    // H is symmetric: what lies left of the diagonal counts twice. Four sums, for a sum's next term need not wait for the one before.
    const float* const h = about.hessian + i * about.hessian_stride;
    double left[4] = {};
    std::size_t j = 0;
    for (; j + 4 <= i; j += 4)
      for (std::size_t k = 0; k < 4; ++k) left[k] += static_cast<double>(h[j + k]) * e[j + k];
    for (; j < i; ++j) left[0] += static_cast<double>(h[j]) * e[j];
    sum += (2 * ((left[0] + left[1]) + (left[2] + left[3])) + static_cast<double>(h[i]) * e[i]) * e[i];
  }
  return std::max(sum, 0.0);
}

}  // namespace detail

/// The range between two quantiles: `TenThousandths` / 10000 of the weights lie below the upper one, and as many above the lower. Formats
/// without an offset take that quantile of |w|, with the larger end's sign.
template <unsigned TenThousandths = 9990>
struct percentile_clip {
  static_assert(TenThousandths > 5000 && TenThousandths <= 10000, "lowbit: a percentile between 50 and 100 % is wanted");
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    constexpr double share = TenThousandths / 10000.0;
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics&) -> weight_range {
      std::vector<float> sorted(v, v + count);
      if (detail::has_offset(s)) {
        std::sort(sorted.begin(), sorted.end());
        return {detail::quantile(sorted, 1 - share), detail::quantile(sorted, share)};
      }
      const weight_range whole = detail::range_of(v, count);
      for (float& w : sorted) w = std::fabs(w);
      std::sort(sorted.begin(), sorted.end());
      const float bound = detail::quantile(sorted, share);
      return {std::max(whole.low, -bound), std::min(whole.high, bound)};
    });
    return false;
  }
};

/// AWQ's clip search. Of `Steps` bounds max|w| * (1 - i / Grid), i = 0 …, the one whose rounded weights change the layer's outputs least on the
/// calibration data, where weights beyond the bound take the nearest value; the widest of equals. Channels that no token excited leave H zero there, and the widest range; an H with an
/// infinity or a NaN counts as not given.
template <unsigned Grid = 20, unsigned Steps = 10>
struct learnt_clip {
  static_assert(Steps >= 1 && Steps <= Grid);
  using needs = needs_statistics<hessian>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    detail::sub_block_trial trial(s);
    std::vector<double> e;
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics& inputs) -> weight_range {
      const weight_range whole = detail::range_of(v, count);
      const float most = std::max(-whole.low, whole.high);
      weight_range best = whole;
      double least = -1;
      e.resize(count);
      for (unsigned i = 0; i < Steps; ++i) {
        const float bound = most * (1.0f - static_cast<float>(i) / static_cast<float>(Grid));
        const weight_range r{std::max(whole.low, -bound), std::min(whole.high, bound)};
        const grid g = trial.grid_of(trial.scale_of(r));
        detail::for_rounded(g, v, count, [&](std::size_t k, double left) { e[k] = -left; });
        double error = detail::output_error(e, inputs);
        if (!std::isfinite(error)) error = detail::output_error(e, {});
        if (least < 0 || error < least) {
          least = error;
          best = r;
        }
      }
      return best;
    });
    return false;
  }
};

}  // namespace lowbit
