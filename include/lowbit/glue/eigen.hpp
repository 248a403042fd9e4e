// Eigen matrices as lowbit matrices: row-major Matrix, Map and Ref of any element type.
//
// This is also the model of how an engine's own tensor takes part: specialise view_traits with one function that returns a
// matrix_view. A column-major matrix is refused at compile time: its rows are not contiguous.
#pragma once

#include <lowbit/core/matrix_view.hpp>

#include <Eigen/Core>

namespace lowbit {

namespace detail {
/// The view of anything in Eigen with direct access; the element is const where the object is.
template <class Dense>
constexpr auto view_of_eigen(Dense& m) noexcept {
  static_assert(Dense::IsRowMajor || Dense::ColsAtCompileTime == 1, "lowbit: Eigen matrices must be row-major (Eigen::RowMajor)");
  static_assert(Dense::InnerStrideAtCompileTime == 1, "lowbit: the elements of a row must be contiguous");
  using element = std::remove_pointer_t<decltype(m.data())>;
  const auto rows = static_cast<std::size_t>(m.rows()), cols = static_cast<std::size_t>(m.cols());
  return matrix_view<element>(m.data(), rows, cols, rows > 1 ? static_cast<std::size_t>(m.outerStride()) : cols);
}
}  // namespace detail

template <class T, int Rows, int Cols, int Options, int MaxRows, int MaxCols>
struct view_traits<Eigen::Matrix<T, Rows, Cols, Options, MaxRows, MaxCols>> {
  template <class M>
  static constexpr auto view(M& m) noexcept { return detail::view_of_eigen(m); }
};
template <class M, int Options, class Stride>
struct view_traits<Eigen::Map<M, Options, Stride>> {
  template <class X>
  static constexpr auto view(X& m) noexcept { return detail::view_of_eigen(m); }
};
template <class M, int Options, class Stride>
struct view_traits<Eigen::Ref<M, Options, Stride>> {
  template <class X>
  static constexpr auto view(X& m) noexcept { return detail::view_of_eigen(m); }
};

}  // namespace lowbit
