// Matrices that rows are appended to, quantised as they come: an engine's cache of keys and values.
//
// Keys are looked at by their products with queries: growing_panels keeps them in the run layout, and multiply runs on what panels() gives.
// Values are summed with weights: growing_rows keeps them in the exchange layout, and multiply_transposed runs on view().
#pragma once

#include <lowbit/matrix/panel_matrix.hpp>
#include <lowbit/quantise/quantiser.hpp>
#include <lowbit/quantise/standard.hpp>

namespace lowbit {

/// Rows in the exchange layout, rounded to nearest with the format's standard fit.
class growing_rows {
 public:
  growing_rows() = default;
  /// Room for `capacity` rows. Expects a format that can be written.
  growing_rows(const format_spec& spec, std::size_t cols, std::size_t capacity) : rows_(spec, capacity, cols) { LOWBIT_EXPECTS(spec.is_writable()); }

  /// Appends rows [count, cols]. Fails on a value that is not finite, naming its row and column, and appends nothing then. Expects room.
  template <executor E>
  status append(matrix_view<const float> rows, E& executor) {
    LOWBIT_EXPECTS(rows.cols == rows_.cols() && rows.rows <= rows_.rows() - size_);
    if (auto bad = detail::find_non_finite(rows)) return *std::move(bad);
    put(rows, executor);
    return done{};
  }
  /// Forgets the rows from `size` on.
  void truncate(std::size_t size) noexcept { size_ = size < size_ ? size : size_; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// [size(), cols], valid until the next change.
  [[nodiscard]] packed_view view() const noexcept { return rows_.view().middle_rows(0, size_); }

 private:
  friend class growing_panels;
  /// Appends finite rows.
  template <executor E>
  void put(matrix_view<const float> rows, E& executor) {
    packed_matrix quantised(rows_.spec(), rows.rows, rows.cols);
    detail::quantise_rows<standard, round_nearest>(rows_.spec(), rows, uncalibrated(), quantised, executor);
    std::copy_n(quantised.bytes().data(), quantised.bytes().size(), rows_.row(size_));
    size_ += rows.rows;
  }

  packed_matrix rows_;
  std::size_t size_ = 0;
};

/// Rows in the run layout. The rows of the last panel are kept in the exchange layout as well, from which it is built anew as it fills.
class growing_panels {
 public:
  growing_panels() = default;
  /// Room for `capacity` rows. Expects a format of planes (not one that is recoded) whose code shape the unit has.
  growing_panels(const format_spec& spec, std::size_t cols, std::size_t capacity, const kernel::unit& unit)
      : spec_(&spec), layout_(kernel::layout_of(spec.planes())), cols_(cols), capacity_(capacity), unit_(&unit), last_(spec, cols, kernel::panel_rows),
        panels_(aligned_buffer::uninitialised(panel_matrix::size_of(spec, capacity, cols))),  // taken from the system as rows come
        scratch_(kernel::build_scratch_bytes(spec, layout_)) {
    LOWBIT_EXPECTS(!spec.is_recoded() && panels_.size() == panel_matrix::size_of(spec, capacity, cols));
  }

  /// Appends rows [count, cols]. Fails on a value that is not finite, naming its row and column, and appends nothing then. Expects room.
  template <executor E>
  status append(matrix_view<const float> rows, E& executor) {
    LOWBIT_EXPECTS(rows.cols == cols_ && rows.rows <= capacity_ - size_);
    if (auto bad = detail::find_non_finite(rows)) return *std::move(bad);
    for (std::size_t r = 0; r < rows.rows;) {
      const std::size_t panel = size_ / kernel::panel_rows, there = size_ % kernel::panel_rows;
      const std::size_t count = rows.rows - r < kernel::panel_rows - there ? rows.rows - r : kernel::panel_rows - there;
      last_.truncate(there);
      last_.put(rows.middle_rows(r, count), executor);
      build(last_.view(), panel);
      size_ += count;
      r += count;
    }
    return done{};
  }
  /// Forgets everything.
  void clear() noexcept { size_ = 0; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// The first `rows` of them, [rows, cols], over the panels: valid until the next change.
  [[nodiscard]] panel_matrix panels(std::size_t rows) const {
    LOWBIT_EXPECTS(rows <= size_);
    return panel_matrix::over(*spec_, rows, cols_, {panels_.data(), panel_matrix::size_of(*spec_, rows, cols_)}, *unit_);
  }
  [[nodiscard]] panel_matrix panels() const { return panels(size_); }

 private:
  void build(const packed_view& w, std::size_t panel) {
    const std::size_t bytes = layout_.panel_bytes(cols_);
    unit_->build_panels({spec_, &layout_, w.data, w.row_bytes(), w.rows, w.cols, 0, 1, panels_.data() + panel * bytes, scratch_.data()});
  }

  const format_spec* spec_ = nullptr;
  kernel::panel_layout layout_{};
  std::size_t cols_ = 0, capacity_ = 0, size_ = 0;
  const kernel::unit* unit_ = nullptr;
  growing_rows last_;
  aligned_buffer panels_, scratch_;
};

}  // namespace lowbit
