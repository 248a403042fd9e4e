// The searches that ggml's quantisers make for a sub-block's scale (ggml-quants.c), in exactly their order of evaluation, for one block or
// for as many as V has lanes (kernel/lanes.hpp). Codes are kept as floats, levels from their lowest up.
//
// Byte-identical files need the same rounding at every step: sums are sequential, and a product that feeds a sum is rounded before it
// (rounded_product), because a compiler that fuses the two would change up to a tenth of the blocks. -ffast-math and its parts cannot be
// defended against and are refused (clang says nothing of -funsafe-math-optimizations, -fassociative-math or -freciprocal-math alone, which
// change bytes unseen). A search that a lane has left early goes on for the others; what it finds is not selected.
#pragma once

#include <lowbit/kernel/lanes.hpp>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "lowbit: ggml's reference quantisers cannot keep their bytes under -ffast-math, -fassociative-math, -freciprocal-math or -ffinite-math-only"
#endif

namespace lowbit::kernel::ggml {

/// Below this a block counts as zero (GROUP_MAX_EPS).
inline constexpr float tiny = 1e-15f;
/// The longest sub-block of a search.
inline constexpr std::size_t longest = 32;

/// Round to nearest even, at least `low`, at most `high`.
template <class V>
LOWBIT_ALWAYS_INLINE V nearest_between(const V& v, float low, float high) noexcept {
  return lesser(greater(nearest(v), V(low)), V(high));
}

/// The first element of the largest magnitude, with its sign.
template <class V>
LOWBIT_ALWAYS_INLINE V largest(const V* x, std::size_t n) noexcept {
  V most(0.0f), signed_most(0.0f);
  for (std::size_t i = 0; i < n; ++i) {
    const V size = magnitude(x[i]);
    signed_most = select(size > most, x[i], signed_most);
    most = greater(size, most);
  }
  return signed_most;
}

/// Σ x², from the first on.
template <class V>
LOWBIT_ALWAYS_INLINE V sum_of_squares(const V* x, std::size_t n) noexcept {
  V sum(0.0f);
  for (std::size_t i = 0; i < n; ++i) sum = sum + rounded_product(x[i], x[i]);
  return sum;
}
template <class V>
LOWBIT_ALWAYS_INLINE V sum_of(const V* x, std::size_t n) noexcept {
  V sum(0.0f);
  for (std::size_t i = 0; i < n; ++i) sum = sum + x[i];
  return sum;
}

/// Weighted sums of a trial: Σ w x l and Σ w l².
template <class V>
struct trial_sums {
  V xl{0.0f}, l2{0.0f};
  LOWBIT_ALWAYS_INLINE void add(const V& w, const V& wx, const V& l) noexcept {
    xl = xl + rounded_product(wx, l);
    l2 = l2 + rounded_product(rounded_product(w, l), l);
  }
  LOWBIT_ALWAYS_INLINE void choose(const auto& mask, const trial_sums& other) noexcept {
    xl = select(mask, other.xl, xl);
    l2 = select(mask, other.l2, l2);
  }
};

/// make_qx_quants with rmse_type 1: symmetric levels -nmax … nmax - 1 with weights w; returns the scale. Levels of a zero block: the lowest.
template <class V>
V search_symmetric(std::size_t n, float nmax, const V* x, const V* w, V* levels) noexcept {
  const V most = largest(x, n);
  V wx[longest];
  for (std::size_t i = 0; i < n; ++i) wx[i] = w[i] * x[i];
  // |inverse x| is below nmax + 1 but for zero blocks, so that rounding needs no more than the sum and the difference.
  const auto level = [&](const V& inverse, std::size_t i) LOWBIT_INLINE_LAMBDA {
    return lesser(greater(nearest_small(rounded_product(inverse, x[i])), V(-nmax)), V(nmax - 1));
  };
  // -nmax / most first, then -(nmax + is / 10) / most for is = -9 … 9 but 0. Two at a time share their loads; the last comes twice,
  // which changes nothing.
  const auto inverse_of = [&](int trial) LOWBIT_INLINE_LAMBDA {
    const int is = trial == 0 ? 0 : trial < 10 ? trial - 10 : trial < 19 ? trial - 9 : 9;
    return V(-(nmax + rounded_product(0.1f, static_cast<float>(is)))) / most;
  };
  V best_inverse(0.0f), scale(0.0f), best(0.0f);
  const auto compare = [&](const V& inverse, const trial_sums<V>& t, bool is_first) LOWBIT_INLINE_LAMBDA {
    auto better = (t.l2 > V(0.0f)) & (t.xl * t.xl > best * t.l2);
    if (is_first) better = t.l2 == t.l2;
    best_inverse = select(better, inverse, best_inverse);
    scale = select(better, select(t.l2 == V(0.0f), V(0.0f), t.xl / t.l2), scale);
    best = select(better, scale * t.xl, best);
  };
  for (int trial = 0; trial < 20; trial += 2) {
    const V first = inverse_of(trial), second = inverse_of(trial + 1);
    trial_sums<V> t, u;
    for (std::size_t i = 0; i < n; ++i) {
      t.add(w[i], wx[i], level(first, i));
      u.add(w[i], wx[i], level(second, i));
    }
    compare(first, t, trial == 0);
    compare(second, u, false);
  }
  const auto zero = magnitude(most) < V(tiny);
  for (std::size_t i = 0; i < n; ++i) levels[i] = select(zero, V(-nmax), level(best_inverse, i));
  return select(zero, V(0.0f), scale);
}

/// make_q3_quants: symmetric levels with weights x², improved one at a time by coordinate descent; returns the scale.
template <class V>
V search_by_descent(std::size_t n, float nmax, const V* x, V* levels) noexcept {
  const V most = largest(x, n), inverse = V(-nmax) / most;
  V w[longest], wx[longest];
  trial_sums<V> sums;
  for (std::size_t i = 0; i < n; ++i) {
    w[i] = x[i] * x[i];
    wx[i] = w[i] * x[i];
    levels[i] = nearest_between(rounded_product(inverse, x[i]), -nmax, nmax - 1);
    sums.add(w[i], wx[i], levels[i]);
  }
  for (int sweep = 0; sweep < 5; ++sweep) {
    auto changed = V(0.0f) > V(0.0f);
    for (std::size_t i = 0; i < n; ++i) {
      const V l = levels[i];
      trial_sums<V> t{sums.xl - rounded_product(wx[i], l), sums.l2 - rounded_product(rounded_product(w[i], l), l)};
      const V moved = nearest_between(rounded_product(x[i], t.l2) / t.xl, -nmax, nmax - 1);
      auto better = (t.xl > V(0.0f)) & !(moved == l);
      t.add(w[i], wx[i], moved);
      better = better & (t.l2 > V(0.0f)) & (t.xl * t.xl * sums.l2 > sums.xl * sums.xl * t.l2);
      levels[i] = select(better, moved, l);
      sums.choose(better, t);
      changed = changed | better;
    }
    if (!any(changed)) break;
  }
  const auto zero = magnitude(most) < V(tiny);
  for (std::size_t i = 0; i < n; ++i) levels[i] = select(zero, V(-nmax), levels[i]);
  return select(zero | !(sums.l2 > V(0.0f)), V(0.0f), sums.xl / sums.l2);
}

/// How the search with a minimum tries its ranges: inverse scales (start + step * i + nmax) / range, for i = 0 … steps.
struct range_trials {
  float start, step;
  int steps;
  bool absolute;  ///< error by |e| rather than e²
};

/// make_qkx2_quants and make_qkx3_quants: levels 0 … nmax with a scale and a minimum, fitted by weighted least squares over several
/// ranges. Returns the scale; `minimum` gets minus the fitted minimum, >= 0.
template <class V>
V search_with_minimum(std::size_t n, float nmax, const V* x, const V* w, range_trials trials, V* levels, V& minimum) noexcept {
  V low = x[0], high = x[0], sum_w = w[0], sum_x = rounded_product(w[0], x[0]);
  for (std::size_t i = 1; i < n; ++i) {
    low = lesser(x[i], low);
    high = greater(x[i], high);
    sum_w = sum_w + w[i];
    sum_x = sum_x + rounded_product(w[i], x[i]);
  }
  low = lesser(V(0.0f), low);
  const auto flat = high == low;
  const V lowest = low;
  const auto level = [&](const V& inverse, const V& from, std::size_t i) LOWBIT_INLINE_LAMBDA {
    return nearest_between(rounded_product(inverse, x[i] - from), 0.0f, nmax);
  };
  // The same by half the operations, where all numbers to be rounded are small: all but those of degenerate blocks.
  const auto small_level = [&](const V& inverse, const V& from, std::size_t i) LOWBIT_INLINE_LAMBDA {
    return lesser(greater(nearest_small(rounded_product(inverse, x[i] - from)), V(0.0f)), V(nmax));
  };
  const auto all_small = [&](const V& inverse, const V& from) LOWBIT_INLINE_LAMBDA {
    const V farthest = greater(magnitude(high - from), magnitude(lowest - from));
    return !any(!(flat | (magnitude(inverse) * farthest < V(0x1p21f))));  // half of what nearest_small takes, for the product's rounding
  };
  const auto error = [&](const V& scale, const V& offset) LOWBIT_INLINE_LAMBDA {
    V sum(0.0f);
    for (std::size_t i = 0; i < n; ++i) {
      const V e = rounded_product(scale, levels[i]) + offset - x[i];
      sum = sum + rounded_product(w[i], trials.absolute ? magnitude(e) : rounded_product(e, e));
    }
    return sum;
  };
  // The levels of the best trial are known by its inverse scale and the minimum that it started from.
  V best_inverse = V(nmax) / (high - low), best_from = low, scale = V(1.0f) / best_inverse;
  for (std::size_t i = 0; i < n; ++i) levels[i] = level(best_inverse, low, i);
  V best = error(scale, low);
  // Divisions are made before it is known which of their quotients counts, where they would keep the sums after them waiting.
  const auto inverse_of = [&](int trial, const V& from) LOWBIT_INLINE_LAMBDA {
    return V(trials.start + rounded_product(trials.step, static_cast<float>(trial)) + nmax) / (high - from);
  };
  V inverse = inverse_of(0, low);
  for (int is = 0; is <= trials.steps; ++is) {
    // `low` is the fitted minimum of the last accepted trial from here on: the reference's own behaviour.
    V sum_l(0.0f), sum_l2(0.0f), sum_xl(0.0f);
    const auto add_up = [&](auto&& level_at) LOWBIT_INLINE_LAMBDA {
      for (std::size_t i = 0; i < n; ++i) {
        const V l = level_at(inverse, low, i), wl = rounded_product(w[i], l);
        levels[i] = l;
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + rounded_product(wl, l);
        sum_xl = sum_xl + rounded_product(wl, x[i]);
      }
    };
    if (all_small(inverse, low)) add_up(small_level);
    else add_up(level);
    const V d = rounded_product(sum_w, sum_l2) - rounded_product(sum_l, sum_l);
    const V free_low = (rounded_product(sum_l2, sum_x) - rounded_product(sum_l, sum_xl)) / d;
    const auto above = free_low > V(0.0f);
    const V this_low = select(above, V(0.0f), free_low);
    const V this_scale = select(above, sum_xl / sum_l2, (rounded_product(sum_w, sum_xl) - rounded_product(sum_x, sum_l)) / d);
    const V next = inverse_of(is + 1, low), next_if_better = inverse_of(is + 1, this_low);
    const V e = error(this_scale, this_low);
    const auto better = (d > V(0.0f)) & (e < best);
    best_inverse = select(better, inverse, best_inverse);
    best_from = select(better, low, best_from);
    best = select(better, e, best);
    scale = select(better, this_scale, scale);
    low = select(better, this_low, low);
    inverse = select(better, next_if_better, next);
  }
  for (std::size_t i = 0; i < n; ++i) levels[i] = select(flat, V(0.0f), level(best_inverse, best_from, i));
  minimum = select(flat, negated(lowest), negated(low));
  return select(flat, V(0.0f), scale);
}

/// make_qp_quants: levels 0 … nmax of scales >= 0, with weights w; returns the scale of the scales.
template <class V>
V search_positive(std::size_t n, float nmax, const V* x, const V* w, V* levels) noexcept {
  V most(0.0f);
  for (std::size_t i = 0; i < n; ++i) most = greater(most, x[i]);
  const auto zero = most < V(tiny);
  // The reference keeps levels in bytes: what is below zero (a scale that rounding made negative) comes back large.
  const auto as_byte = [](const V& l) LOWBIT_INLINE_LAMBDA { return select(l < V(0.0f), l + V(256.0f), l); };
  const auto error = [&](const V& scale, const V& l, std::size_t i) LOWBIT_INLINE_LAMBDA {
    const V e = x[i] - rounded_product(scale, l);
    return rounded_product(rounded_product(w[i], e), e);
  };
  V inverse = V(nmax) / most, best(0.0f);
  const V scale = V(1.0f) / inverse;
  for (std::size_t i = 0; i < n; ++i) best = best + error(scale, as_byte(nearest(rounded_product(inverse, x[i]))), i);
  for (int is = -4; is <= 4; ++is) {
    if (is == 0) continue;
    const V trial = V(rounded_product(0.1f, static_cast<float>(is)) + nmax) / most, trial_scale = V(1.0f) / trial;
    V sum(0.0f);
    for (std::size_t i = 0; i < n; ++i) sum = sum + error(trial_scale, lesser(nearest(rounded_product(trial, x[i])), V(nmax)), i);
    inverse = select(sum < best, trial, inverse);
    best = lesser(sum, best);
  }
  V wx[longest];
  trial_sums<V> sums;
  for (std::size_t i = 0; i < n; ++i) {
    wx[i] = w[i] * x[i];
    const V l = lesser(nearest(rounded_product(inverse, x[i])), V(nmax));
    sums.add(w[i], wx[i], l);
    levels[i] = as_byte(l);
  }
  for (int sweep = 0; sweep < 5; ++sweep) {
    auto changed = V(0.0f) > V(0.0f);
    for (std::size_t i = 0; i < n; ++i) {
      const V l = levels[i];
      trial_sums<V> t{sums.xl - rounded_product(wx[i], l), sums.l2 - rounded_product(rounded_product(w[i], l), l)};
      const V moved = lesser(nearest(rounded_product(x[i], t.l2) / t.xl), V(nmax));
      auto better = (t.xl > V(0.0f)) & (t.l2 > V(0.0f)) & !(moved == l);
      t.add(w[i], wx[i], moved);
      better = better & (t.xl * t.xl * sums.l2 > sums.xl * sums.xl * t.l2);
      levels[i] = select(better, as_byte(moved), l);
      sums.choose(better, t);
      changed = changed | better;
    }
    if (!any(changed)) break;
  }
  for (std::size_t i = 0; i < n; ++i) levels[i] = select(zero, V(0.0f), levels[i]);
  return select(zero | !(sums.l2 > V(0.0f)), V(0.0f), sums.xl / sums.l2);
}

/// The scale search of quantize_row_iq4_nl_impl with 7 trials on each side and weights w.
template <class V>
V search_table(std::size_t n, const table16& table, const V* x, const V* w) noexcept {
  constexpr int trials = 7;
  const V most = largest(x, n);
  V scale(0.0f), best(0.0f);
  for (int is = -trials - 1; is <= trials; ++is) {
    const bool is_first = is < -trials;
    const V inverse = is_first ? V(1.0f) / (negated(most) / V(table.values[0])) : V(static_cast<float>(is) + table.values[0]) / most;
    trial_sums<V> t;
    for (std::size_t i = 0; i < n; ++i) {
      const V q = nearest_value(table, rounded_product(inverse, x[i])), wq = rounded_product(w[i], q);
      t.xl = t.xl + rounded_product(wq, x[i]);
      t.l2 = t.l2 + rounded_product(wq, q);
    }
    const auto fits = t.l2 > V(0.0f);
    if (is_first) {
      scale = select(fits, t.xl / t.l2, V(0.0f));
      best = scale * t.xl;
      continue;
    }
    const auto better = fits & (t.xl * t.xl > best * t.l2);
    scale = select(better, t.xl / t.l2, scale);
    best = select(better, scale * t.xl, best);
  }
  return select(magnitude(most) < V(tiny), V(0.0f), scale);
}

}  // namespace lowbit::kernel::ggml
