// The one product that training is made of: c += aᵀ b. Activations times weights, gradients times weights and gradients times activations
// are that with one or the other turned.
//
// In float it is the kernel that calibration runs on (kernel/accumulate.hpp), in double Eigen's: gradients are checked in double.
#pragma once

#include <lowbit/kernel/accumulate.hpp>
#include <lowbit/kernel/dispatch.hpp>

#include <Eigen/Core>
#include <algorithm>
#include <vector>

namespace qat {

template <class Scalar>
using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A matrix on one side of a product.
template <class Scalar>
class factor {
 public:
  static factor of(const matrix<Scalar>& m) { return {m}; }
  static factor transposed(const matrix<Scalar>& m) { return {m.transpose()}; }
  /// c += aᵀ b.
  friend void add_product(const factor& a, const factor& b, matrix<Scalar>& c) { c.noalias() += a.m_.transpose() * b.m_; }

 private:
  factor(matrix<Scalar> m) : m_(std::move(m)) {}
  matrix<Scalar> m_;
};

/// As strips of 96 columns, [strip][row][96], zero past the last column.
template <>
class factor<float> {
 public:
  static factor of(const matrix<float>& m) {
    factor f(m.rows(), m.cols());
    for (Eigen::Index s = 0; s < f.strips(); ++s)
      for (Eigen::Index r = 0; r < f.rows_; ++r) std::copy_n(m.row(r).data() + s * width, f.width_of(s), f.strip(s) + r * width);
    return f;
  }
  static factor transposed(const matrix<float>& m) {
    factor f(m.cols(), m.rows());
    for (Eigen::Index s = 0; s < f.strips(); ++s)
      Eigen::Map<matrix<float>, 0, Eigen::OuterStride<>>(f.strip(s), f.rows_, f.width_of(s), Eigen::OuterStride<>(width)) =
          m.middleRows(s * width, f.width_of(s)).transpose();
    return f;
  }
  /// c += aᵀ b.
  friend void add_product(const factor& a, const factor& b, matrix<float>& c) {
    const lowbit::kernel::unit& unit = lowbit::kernel::best_unit();
    const auto size = [](Eigen::Index n) { return static_cast<std::size_t>(n); };
    for (Eigen::Index i = 0; i < a.strips(); ++i)
      for (Eigen::Index j = 0; j < b.strips(); ++j)
        unit.accumulate({a.strip(i), size(width), b.strip(j), size(width), size(a.rows_), &c(i * width, j * width), size(c.cols()),
                         size(a.width_of(i)), size(b.width_of(j))});
  }

 private:
  static constexpr Eigen::Index width = lowbit::kernel::accumulate_strip;
  factor(Eigen::Index rows, Eigen::Index cols) : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(strips() * rows * width)) {}
  [[nodiscard]] Eigen::Index strips() const { return (cols_ + width - 1) / width; }
  [[nodiscard]] Eigen::Index width_of(Eigen::Index strip) const { return std::min(width, cols_ - strip * width); }
  [[nodiscard]] float* strip(Eigen::Index s) { return values_.data() + s * rows_ * width; }
  [[nodiscard]] const float* strip(Eigen::Index s) const { return values_.data() + s * rows_ * width; }

  Eigen::Index rows_, cols_;
  std::vector<float> values_;
};

}  // namespace qat
