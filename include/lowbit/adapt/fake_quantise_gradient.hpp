// What to take for the derivatives of rounding, which has none: the policies by which training goes through fake quantisation.
//
// A weight w stands at level (w - offset) / scale of its grid and becomes scale * rounded + offset, where rounded is the nearest level that
// the grid has. A policy answers the partial derivatives of that value in the weight, the scale and the offset; round() itself counts as
// the identity between the outermost levels (the straight-through estimator) and as constant beyond them. Formats, groups and how scales
// are stored are somebody else's (fake_quantise.hpp, fake_quantise_activation.hpp).
#pragma once

#include <lowbit/quantise/grid.hpp>

#include <algorithm>
#include <concepts>

namespace lowbit {

/// Where a number stands on its grid, in levels.
struct grid_point {
  float level;            ///< before rounding: (w - offset) / scale
  float rounded;          ///< the level that it is rounded to
  float lowest, highest;  ///< the outermost levels
  [[nodiscard]] constexpr bool inside() const noexcept { return level >= lowest && level <= highest; }
};

/// Derivatives of scale * rounded + offset.
struct grid_partials {
  float weight = 1, scale = 0, offset = 0;
};

/// What a policy must offer: `at`, and whether sums of its partial derivatives over a group are scaled as LSQ does.
template <class G>
concept fake_gradient = requires(const grid_point& p) {
  { G::at(p) } -> std::same_as<grid_partials>;
  { G::scaled } -> std::convertible_to<bool>;
};

/// Bengio, Léonard and Courville 2013: the gradient of the output, wherever the weight stands. Nothing else is learnt.
struct straight_through {
  static constexpr bool scaled = false;
  static constexpr grid_partials at(const grid_point&) noexcept { return {}; }
};

/// The same, but none for weights that were clipped.
struct straight_through_clipped {
  static constexpr bool scaled = false;
  static constexpr grid_partials at(const grid_point& p) noexcept { return {p.inside() ? 1.0f : 0.0f}; }
};

/// LSQ (Esser et al. 2020, equation 3): the scale is learnt, and weighs how far each weight is from its level.
struct learnt_step {
  static constexpr bool scaled = true;
  static constexpr grid_partials at(const grid_point& p) noexcept {
    return p.inside() ? grid_partials{1, p.rounded - p.level} : grid_partials{0, p.rounded};
  }
};

/// LSQ+ (Bhalgat et al. 2020): the offset is learnt too, by what is clipped.
struct learnt_step_and_offset {
  static constexpr bool scaled = true;
  static constexpr grid_partials at(const grid_point& p) noexcept {
    const grid_partials step = learnt_step::at(p);
    return {step.weight, step.scale, p.inside() ? 0.0f : 1.0f};
  }
};

/// PACT (Choi et al. 2018): the clip is learnt by what it clips and by nothing else. The clip is scale * highest.
struct parameterised_clip {
  static constexpr bool scaled = false;
  static constexpr grid_partials at(const grid_point& p) noexcept {
    return p.inside() ? grid_partials{} : grid_partials{0, p.level > p.highest ? p.highest : p.lowest};
  }
};

/// What a group's summed gradients are multiplied by.
struct gradient_scale {
  double scale = 1, offset = 1;
};

/// LSQ's 1 / sqrt(N Qp) (section 2.2) for n numbers with a scale in common: with it a step moves, for its size, about as much as the
/// weights do. Qp counts steps between zero and the highest level (from the lowest one where there is an offset). A table's step is the
/// mean distance of its neighbours, so that learning is the same for a table in units of another size.
inline gradient_scale lsq_gradient_scale(level_range levels, unsigned count, std::size_t n) noexcept {
  const double step = (static_cast<double>(levels.highest) - static_cast<double>(levels.lowest)) / std::max(1u, count - 1);
  const double g = 1 / std::sqrt(static_cast<double>(std::max<std::size_t>(n, 1)) * static_cast<double>(levels.highest) / step);
  return {g / (step * step), g};
}

}  // namespace lowbit
