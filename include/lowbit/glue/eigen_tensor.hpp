// Eigen's (unsupported) tensors: row-major Tensor and TensorMap of rank 2 as a matrix, of rank 3 as a batch of matrices.
#pragma once

#include <lowbit/core/matrix_view.hpp>

#include <unsupported/Eigen/CXX11/Tensor>

namespace lowbit {

namespace detail {
template <class Tensor>
constexpr auto view_of_tensor(Tensor& t) noexcept {
  static_assert(static_cast<int>(Tensor::Layout) == static_cast<int>(Eigen::RowMajor), "lowbit: Eigen tensors must be row-major (Eigen::RowMajor)");
  static_assert(Tensor::NumDimensions == 2, "lowbit: a tensor of rank 3 is a batch; take matrix_of(tensor, index)");
  return matrix_view<std::remove_pointer_t<decltype(t.data())>>(t.data(), static_cast<std::size_t>(t.dimension(0)),
                                                               static_cast<std::size_t>(t.dimension(1)));
}
}  // namespace detail

template <class T, int Options, class Index>
struct view_traits<Eigen::Tensor<T, 2, Options, Index>> {
  template <class X>
  static constexpr auto view(X& t) noexcept { return detail::view_of_tensor(t); }
};
template <class T, int Options, template <class> class MakePointer>
struct view_traits<Eigen::TensorMap<T, Options, MakePointer>> {
  template <class X>
  static constexpr auto view(X& t) noexcept { return detail::view_of_tensor(t); }
};

/// Matrix `index` of a row-major tensor of rank 3, [batch, rows, cols].
template <class Tensor>
constexpr auto matrix_of(Tensor& batch, std::size_t index) noexcept {
  static_assert(static_cast<int>(Tensor::Layout) == static_cast<int>(Eigen::RowMajor), "lowbit: Eigen tensors must be row-major (Eigen::RowMajor)");
  static_assert(Tensor::NumDimensions == 3, "lowbit: a batch of matrices is a tensor of rank 3");
  const auto count = static_cast<std::size_t>(batch.dimension(0)), rows = static_cast<std::size_t>(batch.dimension(1)),
             cols = static_cast<std::size_t>(batch.dimension(2));
  LOWBIT_EXPECTS(index < count);
  return matrix_view<std::remove_pointer_t<decltype(batch.data())>>(batch.data() + index * rows * cols, rows, cols);
}

/// Calls f(matrix, index) for every matrix of a batch.
template <class Tensor, class F>
void for_each_matrix(Tensor& batch, F&& f) {
  for (std::size_t i = 0; i < static_cast<std::size_t>(batch.dimension(0)); ++i) f(matrix_of(batch, i), i);
}

}  // namespace lowbit
