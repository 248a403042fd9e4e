// The upper triangle of a square float32 matrix, as blocks of 96 x 96 whose rows are contiguous: half the memory of the whole, and every
// operation on it is kernel/accumulate.hpp on whole blocks, without rests. What lies past the matrix's size is zero.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/core/matrix_view.hpp>
#include <lowbit/kernel/dispatch.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace lowbit {

/// Symmetric or upper triangular, [size, size]. Copyable.
class block_triangle {
 public:
  static constexpr std::size_t width = kernel::accumulate_strip;

  explicit block_triangle(std::size_t size) : size_(size), blocks_(ceil_div(size, width)), values_(blocks_ * (blocks_ + 1) / 2 * width * width) {}

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_; }
  /// Block (i, j), i <= j: rows i * 96 …, columns j * 96 ….
  [[nodiscard]] float* block(std::size_t i, std::size_t j) noexcept { return values_.data() + (j * (j + 1) / 2 + i) * width * width; }
  [[nodiscard]] const float* block(std::size_t i, std::size_t j) const noexcept { return values_.data() + (j * (j + 1) / 2 + i) * width * width; }
  /// Element (r, c), r <= c.
  [[nodiscard]] float operator()(std::size_t r, std::size_t c) const noexcept { return block(r / width, c / width)[r % width * width + c % width]; }
  [[nodiscard]] float& operator()(std::size_t r, std::size_t c) noexcept { return block(r / width, c / width)[r % width * width + c % width]; }
  /// Everything that is stored, the padding too.
  [[nodiscard]] std::span<const float> values() const noexcept { return values_; }
  [[nodiscard]] std::span<float> values() noexcept { return values_; }

 private:
  std::size_t size_, blocks_;
  std::vector<float> values_;
};

namespace detail {

/// Columns as strips of 96, [strip][row][96], zero past the last column: the factors of a block product.
inline void pack_strips(matrix_view<const float> x, float* strips, std::size_t begin, std::size_t end) noexcept {
  constexpr std::size_t width = block_triangle::width;
  for (std::size_t s = begin; s < end; ++s) {
    float* out = strips + s * width * x.rows;
    const std::size_t count = std::min(width, x.cols - s * width);
    for (std::size_t r = 0; r < x.rows; ++r, out += width)
      std::fill(std::copy_n(x.row(r) + s * width, count, out), out + width, 0.0f);
  }
}

}  // namespace detail

/// sum += xᵀ x (a symmetric rank update), x [tokens, size]. The same bits for every executor: it deals out blocks, not tokens.
template <executor E>
void add_gram(block_triangle& sum, matrix_view<const float> x, E& executor) {
  LOWBIT_EXPECTS(x.cols == sum.size());
  constexpr std::size_t width = block_triangle::width, most_tokens = 4 * width;
  const std::size_t blocks = sum.blocks();
  std::vector<float> strips(std::min(x.rows, most_tokens) * width * blocks);
  for (std::size_t t = 0; t < x.rows; t += most_tokens) {
    const auto piece = x.middle_rows(t, std::min(most_tokens, x.rows - t));
    for_parts(executor, blocks, 1, [&](std::size_t begin, std::size_t end) { detail::pack_strips(piece, strips.data(), begin, end); });
    for_parts(executor, blocks * (blocks + 1) / 2, 1, [&](std::size_t begin, std::size_t end) {
      std::size_t j = 0;
      while ((j + 1) * (j + 2) / 2 <= begin) ++j;
      for (std::size_t i = begin - j * (j + 1) / 2; begin < end; ++begin, ++i) {
        if (i > j) {
          i = 0;
          ++j;
        }
        const float* const a = strips.data() + i * width * piece.rows;
        const float* const b = strips.data() + j * width * piece.rows;
        LOWBIT_BEST_KERNEL(accumulate)({a, width, b, width, piece.rows, sum.block(i, j), width, width, width});
      }
    });
  }
}

}  // namespace lowbit
