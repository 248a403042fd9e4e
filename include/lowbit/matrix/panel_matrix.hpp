// Weights in the run layout, ready for products: built once from the exchange layout, kept with the kernels that run on it.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/non_finite.hpp>

#include <algorithm>
#include <atomic>

namespace lowbit {

/// A [rows, cols] matrix as panels, which it owns or views. Movable; empty when default-constructed.
class panel_matrix {
 public:
  panel_matrix() = default;

  /// Builds the panels of `w`, in parallel over panels. Any format whose code shape the chosen unit has: all of the registry, and any
  /// uniform format. For other shapes of a user's own, compile a unit with them and pass it.
  template <executor E>
  static panel_matrix from(packed_view w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    panel_matrix m(w, unit);
    for_parts(executor, kernel::panel_count(w.rows), 1, [&](std::size_t begin, std::size_t end) { m.build(w, begin, end, m.scratch().data()); });
    return m;
  }

  /// The same of weights that nobody has looked at, such as a file's: fails (bad_value) where find_non_finite finds a block, and says where.
  /// A few panels at a time are searched and then built, so that memory is read once.
  template <executor E>
  static result<panel_matrix> from_checked(packed_view w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    constexpr std::size_t cached = std::size_t{128} << 10;
    panel_matrix m(w, unit);
    const std::size_t at_once = std::max<std::size_t>(1, cached / std::max<std::size_t>(1, kernel::panel_rows * w.row_bytes()));
    std::atomic<bool> finite{true};
    for_parts(executor, kernel::panel_count(w.rows), 1, [&](std::size_t begin, std::size_t end) {
      aligned_buffer scratch = m.scratch();
      for (std::size_t p = begin, last; p < end && finite; p = last) {
        last = std::min(end, p + at_once);
        const std::size_t row = p * kernel::panel_rows, rows = std::min(w.rows, last * kernel::panel_rows) - row;
        if (find_non_finite(w.middle_rows(row, rows))) finite = false;
        else m.build(w, p, last, scratch.data());
      }
    });
    if (!finite) return non_finite(find_non_finite(w, executor).value_or(block_place{}));
    return m;
  }

  /// Panels that somebody else owns, and that outlive the matrix: what data() of another one had, perhaps on another machine. Expects
  /// size_of(spec, rows, cols) bytes, aligned to 64. Columns are in the inputs' order, and the factor is 1.
  static panel_matrix over(const format_spec& spec, std::size_t rows, std::size_t cols, std::span<const std::uint8_t> panels,
                           const kernel::unit& unit) {
    panel_matrix m(spec, rows, cols, unit);
    LOWBIT_EXPECTS(panels.size() == m.size_bytes() && reinterpret_cast<std::uintptr_t>(panels.data()) % 64 == 0);
    m.foreign_ = panels.data();
    return m;
  }

  /// Bytes of the panels of a [rows, cols] matrix in a format.
  static std::size_t size_of(const format_spec& spec, std::size_t rows, std::size_t cols) noexcept {
    return kernel::panel_count(rows) * kernel::layout_of(spec.planes()).panel_bytes(cols);
  }

  [[nodiscard]] const format_spec& spec() const noexcept { return *spec_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return cols_; }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return spec_ == nullptr ? 0 : kernel::panel_count(rows_) * layout_.panel_bytes(cols_); }
  [[nodiscard]] const std::uint8_t* data() const noexcept { return foreign_ != nullptr ? foreign_ : bytes_.data(); }
  [[nodiscard]] const kernel::panel_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] const kernel::unit& unit() const noexcept { return *unit_; }
  [[nodiscard]] const kernel::products& products() const noexcept { return *products_; }
  /// Which input each column holds; empty for their own order. multiply brings activations to that order as it prepares them.
  [[nodiscard]] const std::vector<std::uint32_t>& inputs() const noexcept { return inputs_; }
  /// Inputs that products take as zero: outliers, which would widen the range that their neighbours are rounded to, and whose columns
  /// something else multiplies (low_rank::of_columns; LLM.int8: Dettmers et al. 2022). Expects ascending channels below cols(), and columns in
  /// the order of the inputs.
  void ignore(std::vector<std::uint32_t> channels) {
    LOWBIT_EXPECTS(channels.empty() || (inputs_.empty() && channels.back() < cols_ &&
                                        std::adjacent_find(channels.begin(), channels.end(), std::greater_equal<>{}) == channels.end()));
    ignored_ = std::move(channels);
  }
  [[nodiscard]] const std::vector<std::uint32_t>& ignored() const noexcept { return ignored_; }
  /// What results are multiplied by.
  [[nodiscard]] float factor() const noexcept { return factor_; }

 private:
  panel_matrix(const format_spec& spec, std::size_t rows, std::size_t cols, const kernel::unit& unit)
      : spec_(&spec), layout_(kernel::layout_of(spec.planes())), rows_(rows), cols_(cols), unit_(&unit), products_(unit.find(layout_.shape)) {
    LOWBIT_EXPECTS(products_ != nullptr);
  }

  panel_matrix(packed_view w, const kernel::unit& unit) : panel_matrix(*w.spec, w.rows, w.cols, unit) {
    if (w.inputs != nullptr) inputs_.assign(w.inputs, w.inputs + w.cols);
    factor_ = static_cast<float>(w.factor);
    bytes_ = aligned_buffer::uninitialised(size_bytes());
    LOWBIT_EXPECTS(bytes_.size() == size_bytes());
  }

  [[nodiscard]] aligned_buffer scratch() const { return aligned_buffer(kernel::build_scratch_bytes(spec_->planes(), layout_)); }

  void build(packed_view w, std::size_t begin, std::size_t end, std::uint8_t* scratch) {
    if (w.spec->is_recoded()) return build_recoded(w, begin, end, scratch);
    unit_->build_panels({w.spec, &layout_, w.data, w.row_bytes(), w.rows, w.cols, begin, end, bytes_.data(), scratch});
  }

  /// Panels of a format that is not planes: the rows of one panel at a time are recoded.
  void build_recoded(packed_view w, std::size_t begin, std::size_t end, std::uint8_t* scratch) {
    const format_spec& planes = w.spec->planes();
    const std::size_t row_bytes = planes.row_bytes(w.cols), panel_bytes = layout_.panel_bytes(w.cols);
    aligned_buffer rows = aligned_buffer::uninitialised(kernel::panel_rows * row_bytes);
    for (std::size_t panel = begin; panel < end; ++panel) {
      const std::size_t first = panel * kernel::panel_rows, count = w.rows - first < kernel::panel_rows ? w.rows - first : kernel::panel_rows;
      for (std::size_t r = 0; r < count; ++r) recode_row(*w.spec, w.row(first + r), w.cols, rows.data() + r * row_bytes);
      unit_->build_panels({&planes, &layout_, rows.data(), row_bytes, count, w.cols, 0, 1, bytes_.data() + panel * panel_bytes, scratch});
    }
  }

  const format_spec* spec_ = nullptr;
  kernel::panel_layout layout_{};
  std::size_t rows_ = 0, cols_ = 0;
  const kernel::unit* unit_ = nullptr;
  const kernel::products* products_ = nullptr;
  aligned_buffer bytes_;
  const std::uint8_t* foreign_ = nullptr;  // instead of bytes_
  std::vector<std::uint32_t> inputs_, ignored_;
  float factor_ = 1.0f;
};

/// One row of weights as floats, the codec's values bit for bit: an embedding look-up. `out` has cols() elements. Allocates where columns
/// are not in the order of the inputs.
inline void read_row(const panel_matrix& w, std::size_t row, float* out) {
  LOWBIT_EXPECTS(row < w.rows());
  const std::size_t panel_bytes = w.layout().panel_bytes(w.cols());
  std::vector<float> stored(w.inputs().empty() ? 0 : w.cols());
  float* const values = stored.empty() ? out : stored.data();
  w.unit().read_panel_row(w.layout(), w.data() + row / kernel::panel_rows * panel_bytes, row % kernel::panel_rows, w.cols(), values);
  if (stored.empty() && w.factor() == 1.0f) return;
  finish_row({&w.spec(), w.rows(), w.cols(), nullptr, stored.empty() ? nullptr : w.inputs().data(), w.factor()}, values, out);
}

}  // namespace lowbit
