// What a product is asked for, and a tile of it: `Vectors` registers of rows by `Tokens` columns of activations.
#pragma once

#include <lowbit/kernel/activation.hpp>
#include <lowbit/kernel/panel_reader.hpp>

namespace lowbit::kernel {

/// What becomes of a tile of results that is not simply stored: values[t * stride + r] is that of row `row` + r for column `token` + t
/// of the activations, r < rows, t < tokens. Each row has room up to a multiple of 16 values, of which those past `rows` mean nothing.
using finish_function = void (*)(const void* context, float* values, std::size_t stride, std::size_t row, std::size_t rows,
                                 std::size_t token, std::size_t tokens) noexcept;

struct multiply_args {
  const panel_layout* layout;
  const std::uint8_t* panels;
  std::size_t rows, cols;                  ///< of the matrix
  std::size_t panel_begin, panel_end;
  activation_buffers x;
  std::size_t tokens;                      ///< columns of x
  float* y;                                ///< [tokens, rows]; not used where there is a `finish`
  std::size_t y_stride;
  finish_function finish = nullptr;        ///< one call for a tile costs nothing beside it, and lets epilogues be compiled elsewhere
  const void* context = nullptr;           ///< what finish is called with
};

namespace detail {

/// A tile of rows and tokens: `panel[v]` is the panel of row vector v, `row[v]` the vector's first row within it.
template <class Arch, std::size_t Tokens, std::size_t Vectors>
struct tile {
  const std::uint8_t* panel[Vectors];
  std::size_t row[Vectors];
  floats<Arch> y[Vectors][Tokens];
};

}  // namespace detail
}  // namespace lowbit::kernel
