// How lowbit sees a matrix that somebody else owns: a pointer, two extents and a stride between rows.
//
// Rows are contiguous. Weights are [out, in]; activations and outputs are [tokens, features]. An engine's own tensor type
// takes part by specialising view_traits (20 lines; glue/eigen.hpp is the model), after which every function that says
// "matrix-like" accepts it.
#pragma once

#include <lowbit/core/config.hpp>

#include <concepts>
#include <type_traits>

namespace lowbit {

/// A row-major view: element (r, c) is data[r * stride + c]. Copyable, owns nothing.
template <class T>
struct matrix_view {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::size_t stride = 0;  ///< elements from one row to the next, >= cols

  constexpr matrix_view() = default;
  constexpr matrix_view(T* d, std::size_t r, std::size_t c) : matrix_view(d, r, c, c) {}
  constexpr matrix_view(T* d, std::size_t r, std::size_t c, std::size_t s) : data(d), rows(r), cols(c), stride(s) {
    LOWBIT_EXPECTS(s >= c && (d != nullptr || r == 0 || c == 0));
  }
  /// A writable view reads too.
  template <class U>
    requires std::same_as<const U, T> && (!std::same_as<U, T>)
  constexpr matrix_view(matrix_view<U> other) : matrix_view(other.data, other.rows, other.cols, other.stride) {}

  [[nodiscard]] constexpr T* row(std::size_t r) const noexcept { return data + r * stride; }
  constexpr T& operator()(std::size_t r, std::size_t c) const noexcept { return data[r * stride + c]; }
  [[nodiscard]] constexpr bool empty() const noexcept { return rows == 0 || cols == 0; }

  /// Rows [first, first + count).
  [[nodiscard]] constexpr matrix_view middle_rows(std::size_t first, std::size_t count) const noexcept {
    LOWBIT_EXPECTS(first <= rows && count <= rows - first);
    return {data + first * stride, count, cols, stride};
  }
};

/// Whether `out` may be written past the caches: it has `least` bytes, and its rows begin and end with lines.
inline bool goes_past_caches(matrix_view<float> out, std::size_t least) noexcept {
  constexpr std::size_t line = 64;
  return out.rows * out.cols * sizeof(float) >= least && reinterpret_cast<std::uintptr_t>(out.data) % line == 0 && out.stride * sizeof(float) % line == 0;
}

/// Specialise for a tensor type: `static matrix_view<E> view(X&)`, with E the (possibly const) element type.
template <class X>
struct view_traits;

template <class T>
struct view_traits<matrix_view<T>> {
  static constexpr matrix_view<T> view(matrix_view<T> m) noexcept { return m; }
};

/// Anything that view_traits knows.
template <class X>
concept matrix_like = requires(X& x) { view_traits<std::remove_cvref_t<X>>::view(x); };

/// The view of anything matrix-like.
template <matrix_like X>
constexpr auto view(X&& x) noexcept {
  return view_traits<std::remove_cvref_t<X>>::view(x);
}

}  // namespace lowbit
