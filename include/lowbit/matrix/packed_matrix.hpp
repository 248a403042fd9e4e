// Weights in the exchange layout: the bytes that files hold, row by row, each row a whole number of blocks.
//
// A ragged last block is stored whole; its padding codes are whatever the quantiser wrote there (lowbit's write zeros). This is what
// quantisers produce, what readers load and writers save. It does not run fast: panel_matrix does.
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

  [[nodiscard]] std::size_t row_bytes() const noexcept { return spec->row_bytes(cols); }
  [[nodiscard]] const std::uint8_t* row(std::size_t r) const noexcept { return data + r * row_bytes(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return rows * row_bytes(); }
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
  [[nodiscard]] packed_view view() const noexcept { return {spec_, rows_, cols_, bytes_.data()}; }

 private:
  const format_spec* spec_ = nullptr;
  std::size_t rows_ = 0, cols_ = 0;
  aligned_buffer bytes_;
};

/// Decodes every weight by the formats' definition (slow and exact). `out` is [rows, cols].
inline void decode(packed_view w, matrix_view<float> out) {
  LOWBIT_EXPECTS(out.rows == w.rows && out.cols == w.cols);
  std::vector<float> scratch(w.spec->block);
  for (std::size_t r = 0; r < w.rows; ++r) decode_row(*w.spec, w.row(r), w.cols, out.row(r), scratch.data());
}

}  // namespace lowbit
