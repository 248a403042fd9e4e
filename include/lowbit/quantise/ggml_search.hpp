// The searches that ggml's reference quantisers make for a sub-block's scale (ggml-quants.c), in exactly their order of evaluation.
//
// Byte-identical files need the same rounding at every step: sums are sequential, and a product that feeds a sum is rounded before it
// (rounded_product), because a compiler that fuses the two would change up to a tenth of the blocks. -ffast-math cannot be defended
// against and is refused.
#pragma once

#include <lowbit/format/codec.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#ifdef __FAST_MATH__
#error "lowbit: ggml's reference quantisers cannot keep their bytes under -ffast-math"
#endif

namespace lowbit::ggml {

/// Below this a block counts as zero (GROUP_MAX_EPS).
inline constexpr float tiny = 1e-15f;

/// Round to nearest even by adding 1.5 * 2^23 (|v| < 2^22).
inline int nearest_int(float v) noexcept {
  return static_cast<int>(std::bit_cast<std::uint32_t>(v + 12582912.0f) & 0x7fffffu) - 0x400000;
}
inline int nearest_int(float v, int low, int high) noexcept { return std::clamp(nearest_int(v), low, high); }

/// Rounding towards zero as x86's conversion does it: what an int cannot hold becomes INT_MIN. (Blocks whose scale is a subnormal
/// number have an infinite inverse; ggml converts the infinity, which C++ leaves undefined.)
inline int truncated(float v) noexcept {
  return std::fabs(v) < 2147483648.0f ? static_cast<int>(v) : std::numeric_limits<int>::min();
}

/// The first element of the largest magnitude, with its sign.
inline float largest(const float* x, std::size_t n) noexcept {
  float most = 0, signed_most = 0;
  for (std::size_t i = 0; i < n; ++i)
    if (std::fabs(x[i]) > most) {
      most = std::fabs(x[i]);
      signed_most = x[i];
    }
  return signed_most;
}

/// Weighted sums of a trial: Σ w x l and Σ w l².
struct trial_sums {
  float xl = 0, l2 = 0;
  void add(float w, float x, float l) noexcept {
    xl += rounded_product(rounded_product(w, x), l);
    l2 += rounded_product(rounded_product(w, l), l);
  }
};

/// make_qx_quants with rmse_type 1: symmetric codes -nmax … nmax-1 (stored + nmax), weights x² or `weights`; returns the scale.
inline float search_symmetric(std::size_t n, int nmax, const float* x, std::uint8_t* codes, const float* weights = nullptr) noexcept {
  const float most = largest(x, n);
  if (std::fabs(most) < tiny) {
    std::fill(codes, codes + n, std::uint8_t{0});
    return 0;
  }
  const auto weight = [&](std::size_t i) { return weights != nullptr ? weights[i] : rounded_product(x[i], x[i]); };
  const auto code = [&](float inverse, std::size_t i) { return nearest_int(rounded_product(inverse, x[i]), -nmax, nmax - 1); };
  const auto store = [&](float inverse) {
    for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(code(inverse, i) + nmax);
  };
  const float inverse = static_cast<float>(-nmax) / most;
  trial_sums sums;
  for (std::size_t i = 0; i < n; ++i) sums.add(weight(i), x[i], static_cast<float>(code(inverse, i)));
  store(inverse);
  float scale = sums.l2 != 0 ? sums.xl / sums.l2 : 0.0f;
  float best = scale * sums.xl;
  for (int is = -9; is <= 9; ++is) {
    if (is == 0) continue;
    const float trial = -(static_cast<float>(nmax) + rounded_product(0.1f, static_cast<float>(is))) / most;
    trial_sums t;
    for (std::size_t i = 0; i < n; ++i) t.add(weight(i), x[i], static_cast<float>(code(trial, i)));
    if (t.l2 > 0 && t.xl * t.xl > best * t.l2) {
      store(trial);
      scale = t.xl / t.l2;
      best = scale * t.xl;
    }
  }
  return scale;
}

/// make_q3_quants: symmetric codes improved one at a time by coordinate descent; returns the scale.
inline float search_by_descent(std::size_t n, int nmax, const float* x, std::uint8_t* codes) noexcept {
  const float most = largest(x, n);
  if (std::fabs(most) < tiny) {
    std::fill(codes, codes + n, std::uint8_t{0});
    return 0;
  }
  int l[256];
  const float inverse = static_cast<float>(-nmax) / most;
  trial_sums sums;
  for (std::size_t i = 0; i < n; ++i) {
    l[i] = nearest_int(rounded_product(inverse, x[i]), -nmax, nmax - 1);
    sums.add(rounded_product(x[i], x[i]), x[i], static_cast<float>(l[i]));
  }
  for (int sweep = 0; sweep < 5; ++sweep) {
    bool changed = false;
    for (std::size_t i = 0; i < n; ++i) {
      const float w = rounded_product(x[i], x[i]);
      trial_sums t = sums;
      t.xl -= rounded_product(rounded_product(w, x[i]), static_cast<float>(l[i]));
      if (!(t.xl > 0)) continue;
      t.l2 -= rounded_product(rounded_product(w, static_cast<float>(l[i])), static_cast<float>(l[i]));
      const int moved = nearest_int(rounded_product(x[i], t.l2) / t.xl, -nmax, nmax - 1);
      if (moved == l[i]) continue;
      t.add(w, x[i], static_cast<float>(moved));
      if (t.l2 > 0 && t.xl * t.xl * sums.l2 > sums.xl * sums.xl * t.l2) {
        l[i] = moved;
        sums = t;
        changed = true;
      }
    }
    if (!changed) break;
  }
  for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(l[i] + nmax);
  return sums.l2 > 0 ? sums.xl / sums.l2 : 0.0f;
}

/// How the search with a minimum tries its ranges: inverse scales (start + step * i + nmax) / range, for i = 0 … steps.
struct range_trials {
  float start, step;
  int steps;
  bool absolute;  ///< error by |e| rather than e²
};

/// make_qkx2_quants: codes 0 … nmax with a scale and a minimum, fitted by weighted least squares over several ranges. Returns the scale;
/// `minimum` gets minus the fitted minimum, >= 0.
inline float search_with_minimum(std::size_t n, int nmax, const float* x, const float* w, std::uint8_t* codes, float& minimum,
                                 range_trials trials) noexcept {
  float low = x[0], high = x[0], sum_w = w[0], sum_x = rounded_product(w[0], x[0]);
  for (std::size_t i = 1; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += w[i];
    sum_x += rounded_product(w[i], x[i]);
  }
  low = std::min(low, 0.0f);
  if (high == low) {
    std::fill(codes, codes + n, std::uint8_t{0});
    minimum = -low;
    return 0;
  }
  const auto error = [&](const std::uint8_t* l, float scale, float offset) {
    float sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      float e = rounded_product(scale, static_cast<float>(l[i])) + offset - x[i];
      e = trials.absolute ? std::fabs(e) : rounded_product(e, e);
      sum += rounded_product(w[i], e);
    }
    return sum;
  };
  const auto code = [&](float inverse, std::size_t i) {
    return static_cast<std::uint8_t>(nearest_int(rounded_product(inverse, x[i] - low), 0, nmax));
  };
  const float inverse = static_cast<float>(nmax) / (high - low);
  float scale = 1 / inverse;
  for (std::size_t i = 0; i < n; ++i) codes[i] = code(inverse, i);
  float best = error(codes, scale, low);
  std::uint8_t trial[256];
  for (int is = 0; is <= trials.steps; ++is) {
    // `low` is the fitted minimum of the last accepted trial from here on: the reference's own behaviour.
    const float inv = (trials.start + rounded_product(trials.step, static_cast<float>(is)) + static_cast<float>(nmax)) / (high - low);
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (std::size_t i = 0; i < n; ++i) {
      trial[i] = code(inv, i);
      const float l = trial[i], wl = rounded_product(w[i], l);
      sum_l += wl;
      sum_l2 += rounded_product(wl, l);
      sum_xl += rounded_product(wl, x[i]);
    }
    const float d = rounded_product(sum_w, sum_l2) - rounded_product(sum_l, sum_l);
    if (!(d > 0)) continue;
    float this_scale = (rounded_product(sum_w, sum_xl) - rounded_product(sum_x, sum_l)) / d;
    float this_low = (rounded_product(sum_l2, sum_x) - rounded_product(sum_l, sum_xl)) / d;
    if (this_low > 0) {
      this_low = 0;
      this_scale = sum_xl / sum_l2;
    }
    const float e = error(trial, this_scale, this_low);
    if (e < best) {
      std::copy(trial, trial + n, codes);
      best = e;
      scale = this_scale;
      low = this_low;
    }
  }
  minimum = -low;
  return scale;
}

/// The code of a sorted table of integers that is nearest; midway goes up (best_index_int8).
inline std::uint8_t nearest_in_table(const codebook& t, float v) noexcept {
  if (v <= t.values[0]) return 0;
  if (v >= t.values[t.size - 1]) return static_cast<std::uint8_t>(t.size - 1);
  unsigned low = 0, high = t.size - 1;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    if (v < t.values[middle]) high = middle;
    else low = middle;
  }
  return static_cast<std::uint8_t>(v - t.values[high - 1] < t.values[high] - v ? high - 1 : high);
}

/// The scale search of quantize_row_iq4_nl_impl with 7 trials on each side and weights x².
inline float search_table(std::size_t n, const codebook& table, const float* x) noexcept {
  constexpr int trials = 7;
  const float most = largest(x, n);
  if (std::fabs(most) < tiny) return 0;
  // Σ (w q) x and Σ (w q) q: the reference multiplies the weight by the level first.
  const auto sums_at = [&](float inverse) {
    trial_sums t;
    for (std::size_t i = 0; i < n; ++i) {
      const float q = table.values[nearest_in_table(table, rounded_product(inverse, x[i]))];
      const float wq = rounded_product(rounded_product(x[i], x[i]), q);
      t.xl += rounded_product(wq, x[i]);
      t.l2 += rounded_product(wq, q);
    }
    return t;
  };
  trial_sums t = sums_at(1 / (-most / table.values[0]));
  float scale = t.xl / t.l2;
  float best = scale * t.xl;
  for (int i = -trials; i <= trials; ++i) {
    t = sums_at((static_cast<float>(i) + table.values[0]) / most);
    if (t.l2 > 0 && t.xl * t.xl > best * t.l2) {
      scale = t.xl / t.l2;
      best = scale * t.xl;
    }
  }
  return scale;
}

}  // namespace lowbit::ggml
