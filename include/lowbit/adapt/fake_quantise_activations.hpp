// Fake quantisation of activations: evenly spaced levels with one scale and offset for a whole tensor, both learnt in training.
//
// The same policies as for weights (fake_quantise_gradient.hpp): parameterised_clip is PACT, which keeps the part of an activation between
// zero and a learnt clip; learnt_step and learnt_step_and_offset are LSQ and LSQ+. Nothing here depends on a format: what runs is up to
// whoever takes the learnt scale along.
#pragma once

#include <lowbit/adapt/fake_quantise_gradient.hpp>
#include <lowbit/core/error.hpp>
#include <lowbit/core/matrix_view.hpp>

#include <optional>
#include <string>

namespace lowbit {

/// 0 … 2^bits - 1, for what a ReLU leaves or an offset shifts. Expects 1 to 16 bits.
constexpr level_range unsigned_levels(unsigned bits) noexcept {
  LOWBIT_EXPECTS(bits >= 1 && bits <= 16);
  return {0.0f, static_cast<float>((1u << bits) - 1)};
}
/// -2^(bits - 1) … 2^(bits - 1) - 1. Expects 2 to 16 bits.
constexpr level_range signed_levels(unsigned bits) noexcept {
  LOWBIT_EXPECTS(bits >= 2 && bits <= 16);
  const auto half = static_cast<float>(1u << (bits - 1));
  return {-half, half - 1};
}

/// x becomes scale * round(clamp((x - offset) / scale, lowest, highest)) + offset, ties to even.
template <fake_gradient Gradient = learnt_step_and_offset>
class fake_activations {
 public:
  float scale, offset;  ///< for an optimiser to change

  /// Expects levels as unsigned_levels and signed_levels give them.
  explicit fake_activations(level_range levels, float first_scale, float first_offset = 0) noexcept
      : scale(first_scale), offset(first_offset), levels_(levels) {}
  /// With the scale at which `clip` is the highest level: PACT's α.
  static fake_activations clipped_at(level_range levels, float clip) noexcept { return fake_activations(levels, clip / levels.highest); }

  [[nodiscard]] level_range levels() const noexcept { return levels_; }
  /// The largest value that is not clipped.
  [[nodiscard]] float clip() const noexcept { return scale * levels_.highest + offset; }

  /// What there is to learn, of the loss: d/dα = d/dscale / highest.
  struct gradients {
    float scale = 0, offset = 0;
  };

  /// Fails where x and out differ in shape, where x has a NaN (infinities are clipped) and where the scale is not positive.
  template <matrix_like X, matrix_like Out>
  status forward(const X& x, Out&& out) const {
    const matrix_view<const float> from = view(x);
    const matrix_view<float> to = view(out);
    if (auto bad = find_bad(from, to.rows, to.cols)) return *std::move(bad);
    for (std::size_t r = 0; r < from.rows; ++r)
      for (std::size_t c = 0; c < from.cols; ++c) to(r, c) = scale * point_of(from(r, c)).rounded + offset;
    return done{};
  }

  /// The derivatives in x, which may overwrite those in the output, and in the scale and offset. Fails as forward does.
  template <matrix_like X, matrix_like Out, matrix_like In>
  result<gradients> backward(const X& x, const Out& of_output, In&& of_x) const {
    const matrix_view<const float> from = view(x), dy = view(of_output);
    const matrix_view<float> dx = view(of_x);
    if (auto bad = find_bad(from, dy.rows, dy.cols)) return *std::move(bad);
    if (auto bad = find_bad(from, dx.rows, dx.cols)) return *std::move(bad);
    double of_scale = 0, of_offset = 0;
    for (std::size_t r = 0; r < from.rows; ++r)
      for (std::size_t c = 0; c < from.cols; ++c) {
        const grid_partials d = Gradient::at(point_of(from(r, c)));
        of_scale += static_cast<double>(dy(r, c)) * static_cast<double>(d.scale);
        of_offset += static_cast<double>(dy(r, c)) * static_cast<double>(d.offset);
        dx(r, c) = dy(r, c) * d.weight;
      }
    const auto count = static_cast<unsigned>(levels_.highest - levels_.lowest) + 1;
    const gradient_scale by = Gradient::scaled ? lsq_gradient_scale(levels_, count, from.rows * from.cols) : gradient_scale{};
    return gradients{static_cast<float>(of_scale * by.scale), static_cast<float>(of_offset * by.offset)};
  }

 private:
  [[nodiscard]] grid_point point_of(float x) const noexcept {
    const float level = (x - offset) / scale;
    return {level, std::nearbyint(std::clamp(level, levels_.lowest, levels_.highest)), levels_.lowest, levels_.highest};
  }
  [[nodiscard]] std::optional<failure> find_bad(matrix_view<const float> x, std::size_t rows, std::size_t cols) const {
    if (rows != x.rows || cols != x.cols)
      return failure{errc::shape, "activations of " + std::to_string(x.rows) + " x " + std::to_string(x.cols) + " and a matrix of " +
                                      std::to_string(rows) + " x " + std::to_string(cols)};
    if (!(scale > 0) || !std::isfinite(scale) || !std::isfinite(offset))
      return failure{errc::bad_value, "the scale of the activations is " + std::to_string(scale) + ", their offset " + std::to_string(offset)};
    for (std::size_t r = 0; r < x.rows; ++r)
      for (std::size_t c = 0; c < x.cols; ++c)
        if (std::isnan(x(r, c))) return failure{errc::bad_value, "NaN at row " + std::to_string(r) + ", column " + std::to_string(c)};
    return std::nullopt;
  }
  level_range levels_;
};

}  // namespace lowbit
