// Fits: choosing a block's scales. absmax and minmax take the range of the weights; mse_search shrinks it to the least squared error. Others
// have files of their own: clip.hpp, half_quadratic.hpp, importance.hpp, standard.hpp.
//
// A fit is a type with `needs`, the statistics it uses, and `static bool fit(const format_spec&, const float* x, std::size_t n, const
// input_statistics&, block_fields)`: n <= spec.block weights (fewer in a ragged last block), what is known of their inputs, and fields to
// fill. It returns whether it has chosen the codes too, as reference quantisers do; the fits here leave them to the rounding. Two-level
// formats are fitted sub-block by sub-block, then the sub-scales are rounded to the super-block's scale, as the k-quants' reference does.
#pragma once

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/quantise/grid.hpp>

#include <algorithm>

namespace lowbit {

/// The mean of x² over a row, summed from its first weight on in float, as llama.cpp does.
inline float mean_square(const float* x, std::size_t n) noexcept {
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += rounded_product(x[i], x[i]);
  return n != 0 ? sum / static_cast<float>(n) : 0.0f;
}

/// What is known of the inputs that some neighbouring weights of a row multiply. Any of it may be absent (null).
struct input_statistics {
  const float* importance = nullptr;  ///< mean x² of each channel: weights of the squared error
  const float* hessian = nullptr;     ///< the channels' diagonal block of H = (2 / tokens) Σ x xᵀ, symmetric
  std::size_t hessian_stride = 0;     ///< floats from one row of it to the next
  float row_mean_square = 0;          ///< mean x² of the whole row of weights, where importance is given

  /// The same for a row of weights.
  [[nodiscard]] input_statistics with_row(const float* x, std::size_t n) const noexcept {
    input_statistics s = *this;
    if (importance != nullptr) s.row_mean_square = mean_square(x, n);
    return s;
  }
  /// The same from the channel `c` places further on.
  [[nodiscard]] input_statistics from(std::size_t c) const noexcept {
    input_statistics s = *this;
    if (importance != nullptr) s.importance += c;
    if (hessian != nullptr) s.hessian += c * (hessian_stride + 1);
    return s;
  }
};

/// Which whole rows a fit leaves to kernel::quantise_rows when they are rounded to nearest; the bytes are the same.
struct row_kernels {
  bool as_ggml = false;     ///< GGUF's types
  bool by_range = false;    ///< blocks with one scale, GGUF's only where as_ggml is false
  bool weighted = false;    ///< GGUF's types by the channels' importance, where it is given
};

/// A range of weights that a sub-block's codes are spread over.
struct weight_range {
  float low = 0, high = 0;
};

namespace detail {

using kernel::has_offset;
using real_scale = kernel::real_scale<float>;

/// Stored bits of a scale; one beyond the type's range is held at its largest number.
inline std::uint32_t stored_scale(number type, float value) noexcept {
  return number_bits(type, kernel::clamped_scale(type, value));
}

/// Rounds sub-block scales to the block's fields.
inline void store_scales(const format_spec& s, std::span<const real_scale> sub, const block_fields& f) noexcept {
  const auto nearest = [](float v, int low, int high) {
    return static_cast<int>(std::nearbyint(std::clamp(v, static_cast<float>(low), static_cast<float>(high))));
  };
  const auto super = [&](const integer_field& field, auto value_of) {
    float extreme = 0;
    for (const real_scale& r : sub)
      if (std::fabs(value_of(r)) > std::fabs(extreme)) extreme = value_of(r);
    const int reach = -field.lowest() > field.highest() ? field.lowest() : field.highest();
    return extreme / static_cast<float>(reach);
  };
  const auto round_to = [&](const integer_field& field, float value, float unit) {
    const float ratio = unit != 0.0f ? value / unit : 0.0f;
    return static_cast<std::uint8_t>(field.stored(nearest(std::isfinite(ratio) ? ratio : 0.0f, field.lowest(), field.highest())));
  };
  *f.minimum = 0;
  *f.zero_point = 0;
  if (s.sub_number != number::none) {
    *f.scale = 0;
    for (std::size_t j = 0; j < sub.size(); ++j) f.sub_scale[j] = static_cast<std::uint8_t>(stored_scale(s.sub_number, sub[j].scale));
  } else if (s.sub_scale.present()) {
    *f.scale = stored_scale(s.scale.type, super(s.sub_scale, [](const real_scale& r) { return r.scale; }));
    const float unit = number_value(s.scale.type, *f.scale);
    for (std::size_t j = 0; j < sub.size(); ++j) f.sub_scale[j] = round_to(s.sub_scale, sub[j].scale, unit);
  } else {
    *f.scale = stored_scale(s.scale.type, sub[0].scale);
  }
  if (s.sub_minimum.present()) {
    *f.minimum = stored_scale(s.minimum.type, super(s.sub_minimum, [](const real_scale& r) { return -r.minimum; }));
    const float unit = number_value(s.minimum.type, *f.minimum);
    for (std::size_t j = 0; j < sub.size(); ++j) f.sub_minimum[j] = round_to(s.sub_minimum, -sub[j].minimum, unit);
  } else if (s.minimum.present()) {
    *f.minimum = stored_scale(s.minimum.type, sub[0].minimum);
  } else if (s.zero_point.present()) {
    *f.zero_point = static_cast<std::uint8_t>(kernel::zero_point_for(s, sub[0].minimum, number_value(s.scale.type, *f.scale)));
  }
}

/// Fits every sub-block with `choose(x, n, about)`, which answers a real_scale or a range to spread the codes over, and stores the result.
template <class Choose>
void fit_sub_blocks(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f, Choose&& choose) {
  std::array<real_scale, max_sub_blocks> all;
  const std::span sub(all.data(), s.sub_blocks());
  for (std::size_t j = 0; j < sub.size(); ++j) {
    const std::size_t begin = j * s.sub_block(), end = std::min<std::size_t>(begin + s.sub_block(), n);
    if (begin >= end) break;  // a ragged block's tail keeps scale 0
    const auto chosen = choose(x + begin, end - begin, about.from(begin));
    if constexpr (std::is_same_v<std::remove_const_t<decltype(chosen)>, weight_range>) sub[j] = kernel::scale_for(s, chosen.low, chosen.high);
    else sub[j] = chosen;
  }
  store_scales(s, sub, f);
}

inline weight_range range_of(const float* x, std::size_t n) noexcept {
  weight_range r;
  LOWBIT_BEST_KERNEL(find_range)(x, n, &r.low, &r.high);
  return r;
}

}  // namespace detail

/// The whole range of the weights; for symmetric formats the same as absmax.
struct minmax {
  using needs = needs_statistics<>;
  static constexpr row_kernels rows{.by_range = true};
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    detail::fit_sub_blocks(s, x, n, about, f, [](const float* v, std::size_t count, const input_statistics&) { return detail::range_of(v, count); });
    return false;
  }
};

/// The range -max|x| … max|x|, whatever the weights' own asymmetry.
struct absmax {
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics&) {
      weight_range r = detail::range_of(v, count);
      if (detail::has_offset(s)) {
        r.high = std::max(-r.low, r.high);
        r.low = -r.high;
      }
      return r;
    });
    return false;
  }
};

namespace detail {

/// A sub-block on its own is a block of a one-level format: candidates are stored in it and measured, with scales as yet unrounded
/// where the block has two levels.
class sub_block_trial {
 public:
  explicit sub_block_trial(const format_spec& s) : whole_(s), one_(one_level(s)), buffer_(one_) {}

  /// The scale of a range.
  [[nodiscard]] real_scale scale_of(weight_range r) const noexcept { return kernel::scale_for(whole_, r.low, r.high); }
  /// The grid of a scale, as it would be stored.
  [[nodiscard]] grid grid_of(real_scale scale) {
    store_scales(one_, std::span(&scale, 1), buffer_.fields());
    return grid(one_, buffer_.fields());
  }
  /// The zero-point that the last grid was stored with.
  [[nodiscard]] int zero_point() noexcept { return *buffer_.fields().zero_point; }

 private:
  static format_spec one_level(format_spec s) {
    s.block = s.sub_block();
    s.sub = 0;
    if (s.sub_number != number::none) s.scale.type = s.sub_number;
    else if (s.sub_scale.present()) s.scale.type = number::f32;
    if (s.sub_minimum.present()) s.minimum.type = number::f32;
    s.sub_scale = {};
    s.sub_number = number::none;
    s.sub_minimum = {};
    return s;
  }
  const format_spec& whole_;
  format_spec one_;
  block_buffer buffer_;
};

/// The importance of weight k; 1 where none is given.
inline double importance_of(const input_statistics& about, std::size_t k) noexcept {
  return about.importance != nullptr ? static_cast<double>(about.importance[k]) : 1.0;
}
/// f(k, x[k] - what a reader will see of it) for n weights rounded to a grid.
template <class F>
void for_rounded(const grid& g, const float* x, std::size_t n, F&& f) noexcept {
  float values[256];
  for (std::size_t i = 0; i < n; i += std::size(values)) {
    const std::size_t count = std::min(std::size(values), n - i);
    g.round(i, x + i, count, nullptr, values);
    for (std::size_t k = 0; k < count; ++k) f(i + k, static_cast<double>(x[i + k]) - static_cast<double>(values[k]));
  }
}
/// Σ importance e² of n weights rounded to a grid.
inline double squared_error(const grid& g, const float* x, std::size_t n, const input_statistics& about) noexcept {
  double error[4] = {};  // a sum's next term need not wait for the one before
  for_rounded(g, x, n, [&](std::size_t k, double e) { error[k % 4] += importance_of(about, k) * e * e; });
  return (error[0] + error[1]) + (error[2] + error[3]);
}

}  // namespace detail

/// The best of `Steps` ranges, the whole one and narrower ones, by the (importance-weighted) squared error of the rounded weights. The
/// fewer the levels, the more it pays to clip: the narrowest range tried is levels / (levels + 6) of the whole, a quarter for one
/// bit, nearly three quarters for four.
template <unsigned Steps = 20>
struct mse_search {
  static_assert(Steps >= 1);
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    detail::sub_block_trial trial(s);
    const float levels = static_cast<float>(s.levels()), narrowest = levels / (levels + 6.0f);
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics& inputs) {
      const weight_range whole = detail::range_of(v, count);
      weight_range best = whole;
      double least = -1;
      for (unsigned i = 0; i < Steps; ++i) {
        const float keep = 1.0f - (1.0f - narrowest) * static_cast<float>(i) / static_cast<float>(Steps > 1 ? Steps - 1 : 1);
        const weight_range r{whole.low * keep, whole.high * keep};
        const double error = detail::squared_error(trial.grid_of(trial.scale_of(r)), v, count, inputs);
        if (least < 0 || error < least) {
          least = error;
          best = r;
        }
      }
      return trial.scale_of(best);
    });
    return false;
  }
};

/// What a fit must offer.
template <class Fit>
concept fit_policy = requires(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
  typename Fit::needs;
  { Fit::fit(s, x, n, about, f) } -> std::same_as<bool>;
};

}  // namespace lowbit
