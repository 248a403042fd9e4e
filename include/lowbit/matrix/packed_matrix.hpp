// Weights in the exchange layout: the bytes that files hold, row by row, each row a whole number of blocks.
//
// A ragged last block is stored whole; its padding codes are whatever the quantiser wrote there (lowbit's write zeros). This is what
// quantisers produce, what readers load and writers save. It does not run fast: panel_matrix does.
// Columns may be stored in another order than the inputs come in (GPTQ's act-order, where groups hold inputs of like importance), and all
// values may share a factor (NVFP4's global scale). Who decodes or multiplies sees inputs in their order and the factor applied.
#pragma once

#include <lowbit/core/aligned_buffer.hpp>
#include <lowbit/core/matrix_view.hpp>
#include <lowbit/format/codec.hpp>

#include <span>
#include <vector>

namespace lowbit {

/// A [rows, cols] matrix in a block format that somebody else owns, for instance a mapped file.
struct packed_view {
  const format_spec* spec = nullptr;
  std::size_t rows = 0, cols = 0;
  const std::uint8_t* data = nullptr;  ///< rows * spec->row_bytes(cols) bytes
  const std::uint32_t* inputs = nullptr;  ///< [cols] column j holds the weights of input inputs[j]; null: of input j
  double factor = 1.0;                    ///< every value is multiplied by it, rounded to float; double so that a divisor survives

  [[nodiscard]] std::size_t row_bytes() const noexcept { return spec->row_bytes(cols); }
  [[nodiscard]] const std::uint8_t* row(std::size_t r) const noexcept { return data + r * row_bytes(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return rows * row_bytes(); }
  /// Rows [first, first + count). Expects them to be there.
  [[nodiscard]] packed_view middle_rows(std::size_t first, std::size_t count) const noexcept {
    LOWBIT_EXPECTS(first <= rows && count <= rows - first);
    return {spec, count, cols, row(first), inputs, factor};
  }
};

/// The same, owned.
class packed_matrix {
 public:
  packed_matrix() = default;
  /// A zeroed matrix. `spec` must outlive it (a format's `spec` does).
  packed_matrix(const format_spec& spec, std::size_t rows, std::size_t cols)
      : spec_(&spec), rows_(rows), cols_(cols), bytes_(rows * spec.row_bytes(cols)) {
    LOWBIT_EXPECTS(bytes_.size() == rows * spec.row_bytes(cols));
  }

  [[nodiscard]] const format_spec& spec() const noexcept { return *spec_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return cols_; }
  [[nodiscard]] std::size_t row_bytes() const noexcept { return spec_->row_bytes(cols_); }
  [[nodiscard]] std::uint8_t* row(std::size_t r) noexcept { return bytes_.data() + r * row_bytes(); }
  [[nodiscard]] const std::uint8_t* row(std::size_t r) const noexcept { return bytes_.data() + r * row_bytes(); }
  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept { return {bytes_.data(), bytes_.size()}; }
  [[nodiscard]] std::span<std::uint8_t> bytes() noexcept { return {bytes_.data(), bytes_.size()}; }
  [[nodiscard]] packed_view view() const noexcept { return {spec_, rows_, cols_, bytes_.data(), inputs_.empty() ? nullptr : inputs_.data(), factor_}; }

  /// Which input each column holds; empty for their own order. Expects a permutation of cols().
  void set_inputs(std::vector<std::uint32_t> inputs) {
    LOWBIT_EXPECTS(inputs.empty() || inputs.size() == cols_);
    inputs_ = std::move(inputs);
  }
  [[nodiscard]] const std::vector<std::uint32_t>& inputs() const noexcept { return inputs_; }
  /// What all values are multiplied by.
  void set_factor(double factor) noexcept { factor_ = factor; }
  [[nodiscard]] double factor() const noexcept { return factor_; }

 private:
  const format_spec* spec_ = nullptr;
  std::size_t rows_ = 0, cols_ = 0;
  aligned_buffer bytes_;
  std::vector<std::uint32_t> inputs_;
  double factor_ = 1.0;
};

/// From a row as it is stored to the inputs' order, with the factor: out[cols]. `stored` and `out` may be the same where nothing moves.
inline void finish_row(const packed_view& w, const float* stored, float* out) noexcept {
  const auto factor = static_cast<float>(w.factor);
  for (std::size_t c = 0; c < w.cols; ++c) {
    const float v = w.factor == 1.0 ? stored[c] : stored[c] * factor;
    out[w.inputs != nullptr ? w.inputs[c] : c] = v;
  }
}

/// Decodes every weight by the formats' definition (slow and exact). `out` is [rows, cols].
inline void decode(packed_view w, matrix_view<float> out) {
  LOWBIT_EXPECTS(out.rows == w.rows && out.cols == w.cols);
  std::vector<float> scratch(w.spec->block), stored(w.inputs != nullptr ? w.cols : 0);
  for (std::size_t r = 0; r < w.rows; ++r) {
    float* const row = w.inputs != nullptr ? stored.data() : out.row(r);
    decode_row(*w.spec, w.row(r), w.cols, row, scratch.data());
    if (w.inputs != nullptr || w.factor != 1.0) finish_row(w, row, out.row(r));
  }
}

}  // namespace lowbit
