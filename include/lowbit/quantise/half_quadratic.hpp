// Half-quadratic quantisation (HQQ: Badri and Shaji 2023; hqq/core/optimize.py): a block's offset for the least |error|^p, without data.
//
// The p-norm with p < 1 forgives outliers. Split W = s q + o + E; in turn E is shrunk (the proximal step of the norm) and the offset solved
// for, with the scale of the whole range left alone. What moves is the offset that the format has: a zero-point (o = -s z), a
// float minimum, or a sub-block's minimum. Formats without one have the same problem in their only free number, the scale, whose
// solution with E and the codes held is its least-squares value.
#pragma once

#include <lowbit/quantise/fit.hpp>

namespace lowbit {

/// At most `Iterations` steps with p = 0.7 and beta = 10, as the authors' code; ends when mean |error| no longer falls. Of all iterates the
/// one that is best as it will be stored is kept, so that mean |error| of a one-level format is never above the whole range's.
template <unsigned Iterations = 20>
struct half_quadratic {
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    detail::sub_block_trial trial(s);
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics&) {
      const detail::real_scale start = trial.scale_of(detail::range_of(v, count));
      detail::real_scale best = start, now = start;
      double least = stored_error(trial.grid_of(start), v, count), last = -1;
      if (start.scale == 0.0f) return start;
      for (unsigned i = 0; i < Iterations; ++i) {
        const double error = step(s, v, count, now);
        if (last >= 0 && !(error < last)) break;
        last = error;
        const double stored = stored_error(trial.grid_of(now), v, count);
        if (stored < least) {
          least = stored;
          best = now;
        }
      }
      return best;
    });
    return false;
  }

 private:
  /// Moves the offset or the scale; returns the mean |error| before.
  static double step(const format_spec& s, const float* x, std::size_t n, detail::real_scale& r) noexcept {
    const level_range levels = levels_of(s);
    const double scale = r.scale, offset = r.minimum;
    double error = 0, sum = 0, sum_xl = 0, sum_l2 = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double w = x[i], at = (w - offset) / scale;
      const double level = s.values.present() ? static_cast<double>(s.values.values[s.values.nearest(static_cast<float>(at))])
                                              : std::nearbyint(std::clamp<double>(at, levels.lowest, levels.highest));
      const double e = w - (scale * level + offset), size = std::fabs(e);
      const double shrunk = size > 0 ? std::copysign(std::max(0.0, size - std::pow(size, norm - 1) / beta), e) : 0.0;
      error += size;
      sum += w - shrunk - scale * level;
      sum_xl += (w - shrunk) * level;
      sum_l2 += level * level;
    }
    const double count = static_cast<double>(n);
    if (!detail::has_offset(s)) {
      if (sum_l2 > 0 && sum_xl != 0) r.scale = static_cast<float>(sum_xl / sum_l2);
      return error / count;
    }
    r.minimum = static_cast<float>(sum / count);
    if (s.zero_point.present()) r.minimum = std::clamp(r.minimum, -r.scale * levels.highest, 0.0f);
    if (s.sub_minimum.present()) r.minimum = std::min(r.minimum, 0.0f);
    return error / count;
  }
  static double stored_error(const grid& g, const float* x, std::size_t n) noexcept {
    double sum = 0;
    detail::for_rounded(g, x, n, [&](std::size_t, double e) { sum += std::fabs(e); });
    return sum;
  }
  static constexpr double norm = 0.7, beta = 10;
};

}  // namespace lowbit
