// The engine's own float matrix. The specialisation of view_traits below is all that lowbit needs to take it.
#pragma once

#include <lowbit/core/matrix_view.hpp>

#include <Eigen/Core>

#include <vector>

namespace llm {

/// Row-major [rows, cols] of float. Shrinking and growing within what it once held does not allocate.
class matrix {
 public:
  matrix() = default;
  matrix(std::size_t rows, std::size_t cols) { resize(rows, cols); }
  void resize(std::size_t rows, std::size_t cols) {
    rows_ = rows;
    cols_ = cols;
    values_.resize(rows * cols);
  }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return cols_; }
  [[nodiscard]] float* row(std::size_t r) noexcept { return values_.data() + r * cols_; }
  [[nodiscard]] const float* row(std::size_t r) const noexcept { return values_.data() + r * cols_; }

 private:
  std::size_t rows_ = 0, cols_ = 0;
  std::vector<float> values_;
};

/// Some floats as an Eigen array, for vectorised arithmetic.
inline Eigen::Map<Eigen::ArrayXf> array_of(float* p, std::size_t n) { return {p, static_cast<Eigen::Index>(n)}; }
inline Eigen::Map<const Eigen::ArrayXf> array_of(const float* p, std::size_t n) { return {p, static_cast<Eigen::Index>(n)}; }

}  // namespace llm

template <>
struct lowbit::view_traits<llm::matrix> {
  static matrix_view<float> view(llm::matrix& m) noexcept { return {m.row(0), m.rows(), m.cols()}; }
  static matrix_view<const float> view(const llm::matrix& m) noexcept { return {m.row(0), m.rows(), m.cols()}; }
};
