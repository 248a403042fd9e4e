// Fake quantisation of weights in any format: training sees the values that a file will hold, and the gradients that a policy makes of
// rounding to them (fake_quantise_gradient.hpp).
//
// Learnt are a real scale, and where the format has one an offset, for every sub-block: the block or, in formats of two levels, the part
// of it that has a sub-scale. The forward pass stores them in a block's fields as the format does (half precision, integer zero-points,
// sub-scales in units of the block's) and takes its values from that grid, so what is trained is what a reader of pack()'s result gets, bit
// for bit. The backward pass takes derivatives on the stored grid and counts storing as the identity. Plain floats are rounded to their
// type and have no scales.
#pragma once

#include <lowbit/adapt/fake_quantise_gradient.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <Eigen/Core>
#include <cmath>
#include <string>

namespace lowbit {

/// Numbers of a [rows, cols] matrix's sub-blocks: [rows, ⌈cols / sub-block⌉].
using sub_block_values = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Derivatives of the loss in what is learnt beside the weights, of fake_quantiser::scales() and offsets().
struct fake_gradients {
  sub_block_values scales, offsets;
};

/// LSQ's first scale, 2 mean|x| / sqrt(Qp) (Esser et al. 2020, section 2.1). Formats with an offset lie around the weights' mean, with half
/// as many steps to either side.
struct mean_magnitude {
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    const level_range levels = levels_of(s);
    const float step = (levels.highest - levels.lowest) / static_cast<float>(s.levels() - 1);
    const bool offset = detail::has_offset(s);
    const float centre = offset ? (levels.lowest + levels.highest) / 2 : 0.0f;
    detail::fit_sub_blocks(s, x, n, about, f, [&](const float* v, std::size_t count, const input_statistics&) {
      double sum = 0, magnitude = 0;
      for (std::size_t i = 0; i < count; ++i) sum += static_cast<double>(v[i]);
      const float mean = offset ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
      for (std::size_t i = 0; i < count; ++i) magnitude += static_cast<double>(std::fabs(v[i] - mean));
      const float scale = 2 * static_cast<float>(magnitude / static_cast<double>(count)) / std::sqrt((levels.highest - centre) / step) / step;
      return detail::real_scale{scale, offset ? mean - scale * centre : 0.0f};
    });
    return false;
  }
};

/// Fake quantisation of one [out, in] matrix. `Gradient` says what the backward pass takes for the derivatives of rounding.
template <fake_gradient Gradient = learnt_step>
class fake_quantiser {
 public:
  /// With the scales that a fit chooses for these weights. The spec must outlive it. Fails (unsupported) for a format that
  /// is not made of planes (lattices, digits of base 3), and (bad_value) on a weight that is not finite, naming its row and column.
  template <fit_policy Fit = mean_magnitude, matrix_like W>
  static result<fake_quantiser> fitted(const format_spec& s, const W& weights) {
    if (s.is_recoded())
      return failure{errc::unsupported, "format " + std::string(s.name) + " has no grid to train on: its blocks are not planes of codes"};
    const matrix_view<const float> w = view(weights);
    fake_quantiser q(s, w.rows, w.cols);
    if (status ok = q.template refit<Fit>(w); !ok) return std::move(ok).error();
    return q;
  }

  /// Chooses scales anew: for training that follows the range of its weights instead of learning it. Fails on a weight that is not finite
  /// and on another shape.
  template <fit_policy Fit = mean_magnitude, matrix_like W>
  status refit(const W& weights) {
    static_assert(detail::has_all<uncalibrated>(typename Fit::needs{}), "lowbit: scales are fitted without data here");
    const matrix_view<const float> w = view(weights);
    if (auto bad = find_bad(w)) return *std::move(bad);
    if (spec().is_float()) return done{};
    block_buffer buffer(spec());
    const block_fields f = buffer.fields();
    for_blocks(0, rows_, [&](std::size_t r, std::size_t c, std::size_t n) {
      Fit::fit(spec(), w.row(r) + c, n, {}, f);
      const grid g(spec(), f);
      for (std::size_t j = 0; j < sub_blocks(n); ++j) {
        const kernel::grid_map& map = g.map(j);
        at(scales_, r, c, j) = map.scale;
        if (has_offset()) at(offsets_, r, c, j) = spec().zero_point.present() ? -map.scale * static_cast<float>(*f.zero_point) : map.offset;
      }
    });
    return done{};
  }

  [[nodiscard]] const format_spec& spec() const noexcept { return *spec_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return cols_; }
  /// The scales before they are stored, for an optimiser to change; empty for plain floats.
  [[nodiscard]] sub_block_values& scales() noexcept { return scales_; }
  [[nodiscard]] const sub_block_values& scales() const noexcept { return scales_; }
  /// The values of the lowest levels, as they are before they are stored; empty for formats without zero-point or minimum.
  [[nodiscard]] sub_block_values& offsets() noexcept { return offsets_; }
  [[nodiscard]] const sub_block_values& offsets() const noexcept { return offsets_; }

  /// out[rows, cols] = what pack(weights) decodes to, bit for bit; out may be the weights. Fails, with out untouched, on other shapes and on a
  /// weight or scale that is not finite, naming its place.
  template <matrix_like W, matrix_like Out, executor E = serial_executor>
  status forward(const W& weights, Out&& out, E&& executor = E()) const {
    const matrix_view<const float> w = view(weights);
    const matrix_view<float> y = view(out);
    if (auto bad = find_bad(w)) return *std::move(bad);
    if (auto bad = find_bad_scale()) return *std::move(bad);
    if (auto bad = find_other_shape(y.rows, y.cols)) return *std::move(bad);
    for_parts(executor, rows_, 1, [&](std::size_t begin, std::size_t end) {
      for_grids(begin, end, [&](std::size_t r, std::size_t c, std::size_t n, const grid& g, const block_fields&) {
        g.round(0, w.row(r) + c, n, nullptr, y.row(r) + c);
      }, [&](std::size_t r, std::size_t c) { y(r, c) = number_value(spec_->element, number_bits(spec_->element, w(r, c))); });
    });
    return done{};
  }

  /// From the derivatives of the loss in forward's output to those in the weights (which may overwrite them), the scales and the offsets. Fails
  /// as forward does.
  template <matrix_like W, matrix_like Out, matrix_like In, executor E = serial_executor>
  status backward(const W& weights, const Out& of_output, In&& of_weights, fake_gradients& of_steps, E&& executor = E()) const {
    const matrix_view<const float> w = view(weights), dy = view(of_output);
    const matrix_view<float> dw = view(of_weights);
    if (auto bad = find_bad(w)) return *std::move(bad);
    if (auto bad = find_bad_scale()) return *std::move(bad);
    for (const auto& [rows, cols] : {std::pair(dy.rows, dy.cols), std::pair(dw.rows, dw.cols)})
      if (auto bad = find_other_shape(rows, cols)) return *std::move(bad);
    of_steps.scales.setZero(scales_.rows(), scales_.cols());
    of_steps.offsets.setZero(offsets_.rows(), offsets_.cols());
    for_parts(executor, rows_, 1, [&](std::size_t begin, std::size_t end) {
      for_grids(begin, end, [&](std::size_t r, std::size_t c, std::size_t n, const grid& g, const block_fields& f) {
        for (std::size_t j = 0; j < sub_blocks(n); ++j) back_through(g, f, j, n, w.row(r) + c, dy.row(r) + c, dw.row(r) + c, of_steps, r, c);
      }, [&](std::size_t r, std::size_t c) { dw(r, c) = dy(r, c); });
    });
    return done{};
  }

  /// The weights in the format: forward's values as a file holds them. Fails as forward does.
  template <matrix_like W, executor E = serial_executor>
  result<packed_matrix> pack(const W& weights, E&& executor = E()) const {
    const matrix_view<const float> w = view(weights);
    if (auto bad = find_bad(w)) return *std::move(bad);
    if (auto bad = find_bad_scale()) return *std::move(bad);
    packed_matrix packed(*spec_, rows_, cols_);
    for_parts(executor, rows_, 1, [&](std::size_t begin, std::size_t end) {
      for_grids(begin, end, [&](std::size_t r, std::size_t c, std::size_t n, const grid& g, const block_fields& f) {
        for (std::size_t i = 0; i < n; ++i) f.codes[i] = static_cast<std::uint8_t>(g.code(w(r, c + i), i));
        std::fill(f.codes + n, f.codes + spec().block, std::uint8_t{0});
        write_block(spec(), f, packed.row(r) + c / spec_->block * spec_->bytes);
      }, [&](std::size_t r, std::size_t c) { detail::store_floats(*spec_, w.row(r) + c, 1, packed.row(r) + c * spec_->bytes); });
    });
    return packed;
  }

 private:
  fake_quantiser(const format_spec& s, std::size_t rows, std::size_t cols) : spec_(&s), rows_(rows), cols_(cols) {
    if (spec().is_float()) return;
    const auto height = static_cast<Eigen::Index>(rows), width = static_cast<Eigen::Index>(ceil_div(cols, spec().sub_block()));
    scales_.setZero(height, width);
    if (has_offset()) offsets_.setZero(height, width);
  }

  [[nodiscard]] bool has_offset() const noexcept { return detail::has_offset(spec()); }
  /// Sub-blocks that n weights of a block reach into.
  [[nodiscard]] std::size_t sub_blocks(std::size_t n) const noexcept { return ceil_div(n, spec().sub_block()); }
  /// The number of sub-block j of the block that begins at column c.
  template <class Values>
  [[nodiscard]] auto& at(Values& values, std::size_t r, std::size_t c, std::size_t j) const noexcept {
    return values(static_cast<Eigen::Index>(r), static_cast<Eigen::Index>(c / spec().sub_block() + j));
  }

  /// f(row, first column, weights there) for the blocks of some rows.
  template <class F>
  void for_blocks(std::size_t begin, std::size_t end, F&& f) const {
    for (std::size_t r = begin; r < end; ++r)
      for (std::size_t c = 0; c < cols_; c += spec().block) f(r, c, std::min<std::size_t>(spec().block, cols_ - c));
  }
  /// The same with each block's scales stored in fields, and the grid that they make; of plain floats, plain(row, column) for every weight.
  template <class F, class Plain>
  void for_grids(std::size_t begin, std::size_t end, F&& f, Plain&& plain) const {
    if (spec().is_float()) return for_blocks(begin, end, [&](std::size_t r, std::size_t c, std::size_t) { plain(r, c); });
    block_buffer buffer(spec());
    std::vector<detail::real_scale> sub(spec().sub_blocks());
    for_blocks(begin, end, [&](std::size_t r, std::size_t c, std::size_t n) {
      std::fill(sub.begin(), sub.end(), detail::real_scale{});  // a ragged block's tail has scale 0
      for (std::size_t j = 0; j < sub_blocks(n); ++j) sub[j] = {at(scales_, r, c, j), has_offset() ? at(offsets_, r, c, j) : 0.0f};
      detail::store_scales(spec(), sub, buffer.fields());
      f(r, c, n, grid(spec(), buffer.fields()), buffer.fields());
    });
  }

  /// One sub-block, of the block at (r, c) whose weights and derivatives begin at w, dy and dw.
  void back_through(const grid& g, const block_fields& f, std::size_t j, std::size_t n, const float* w, const float* dy, float* dw,
                    fake_gradients& of_steps, std::size_t r, std::size_t c) const {
    const level_range levels = levels_of(spec());
    const kernel::grid_map& map = g.map(j);
    // With a zero-point the grid counts levels from there; offsets count from the lowest.
    const int zero = spec().zero_point.present() ? static_cast<int>(*f.zero_point) : 0;
    const std::size_t first = j * spec().sub_block(), last = std::min<std::size_t>(first + spec().sub_block(), n);
    double scale = 0, offset = 0;
    for (std::size_t i = first; i < last; ++i) {
      const float rounded = level_of(spec(), g.code(w[i], i), 0);
      const float level = map.scale != 0.0f ? (w[i] - map.offset) / map.scale + static_cast<float>(zero) : rounded;
      const grid_partials d = Gradient::at({level, rounded, levels.lowest, levels.highest});
      scale += static_cast<double>(dy[i]) * static_cast<double>(d.scale);
      offset += static_cast<double>(dy[i]) * static_cast<double>(d.offset);
      dw[i] = dy[i] * d.weight;
    }
    const gradient_scale by = Gradient::scaled ? lsq_gradient_scale(levels, spec().levels(), last - first) : gradient_scale{};
    at(of_steps.scales, r, c, j) = static_cast<float>(scale * by.scale);
    if (has_offset()) at(of_steps.offsets, r, c, j) = static_cast<float>(offset * by.offset);
  }

  [[nodiscard]] std::optional<failure> find_other_shape(std::size_t rows, std::size_t cols) const {
    if (rows == rows_ && cols == cols_) return std::nullopt;
    return failure{errc::shape, "a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) + " for fake quantisation of " +
                                    std::to_string(rows_) + " x " + std::to_string(cols_)};
  }
  [[nodiscard]] std::optional<failure> find_bad(matrix_view<const float> w) const {
    if (auto bad = find_other_shape(w.rows, w.cols)) return bad;
    return detail::find_non_finite(w);
  }
  [[nodiscard]] std::optional<failure> find_bad_scale() const {
    for (const auto& [values, what] : {std::pair(&scales_, "scale: "), std::pair(&offsets_, "offset: ")}) {
      const matrix_view<const float> all(values->data(), static_cast<std::size_t>(values->rows()), static_cast<std::size_t>(values->cols()));
      if (auto bad = detail::find_non_finite(all)) return failure{bad->kind, what + bad->message};
    }
    return std::nullopt;
  }

  const format_spec* spec_;
  std::size_t rows_, cols_;
  sub_block_values scales_, offsets_;
};

}  // namespace lowbit
