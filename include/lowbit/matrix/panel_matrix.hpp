// Weights in the run layout, ready for products: built once from the exchange layout, kept with the kernels that run on it.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

namespace lowbit {

/// A [rows, cols] matrix as panels. Movable; empty when default-constructed.
class panel_matrix {
 public:
  panel_matrix() = default;

  /// Builds the panels of `w`, in parallel over panels. Any format whose code shape the chosen unit has: all of the registry, and any
  /// uniform format. For other shapes of a user's own, compile a unit with them and pass it.
  template <executor E>
  static panel_matrix from(packed_view w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    panel_matrix m;
    m.spec_ = w.spec;
    m.layout_ = kernel::layout_of(*w.spec);
    m.rows_ = w.rows;
    m.cols_ = w.cols;
    if (w.inputs != nullptr) m.inputs_.assign(w.inputs, w.inputs + w.cols);
    m.factor_ = static_cast<float>(w.factor);
    m.unit_ = &unit;
    m.products_ = unit.find(m.layout_.shape);
    LOWBIT_EXPECTS(m.products_ != nullptr);
    const std::size_t panels = kernel::panel_count(w.rows);
    m.bytes_ = aligned_buffer(panels * m.layout_.panel_bytes(w.cols));
    LOWBIT_EXPECTS(m.bytes_.size() == panels * m.layout_.panel_bytes(w.cols));
    for_parts(executor, panels, 1, [&](std::size_t begin, std::size_t end) {
      aligned_buffer scratch(kernel::build_scratch_bytes(m.layout_));
      unit.build_panels({w.spec, &m.layout_, w.data, w.row_bytes(), w.rows, w.cols, begin, end, m.bytes_.data(), scratch.data()});
    });
    return m;
  }

  [[nodiscard]] const format_spec& spec() const noexcept { return *spec_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return cols_; }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return bytes_.size(); }
  [[nodiscard]] const std::uint8_t* data() const noexcept { return bytes_.data(); }
  [[nodiscard]] const kernel::panel_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] const kernel::unit& unit() const noexcept { return *unit_; }
  [[nodiscard]] const kernel::products& products() const noexcept { return *products_; }
  /// Which input each column holds; empty for their own order. multiply brings activations to that order as it prepares them.
  [[nodiscard]] const std::vector<std::uint32_t>& inputs() const noexcept { return inputs_; }
  /// What results are multiplied by.
  [[nodiscard]] float factor() const noexcept { return factor_; }

 private:
  const format_spec* spec_ = nullptr;
  kernel::panel_layout layout_{};
  std::size_t rows_ = 0, cols_ = 0;
  const kernel::unit* unit_ = nullptr;
  const kernel::products* products_ = nullptr;
  aligned_buffer bytes_;
  std::vector<std::uint32_t> inputs_;
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
