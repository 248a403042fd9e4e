// What a product is asked for, and a tile of it: `Vectors` registers of rows by `Tokens` columns of activations.
#pragma once

#include <lowbit/kernel/activation.hpp>
#include <lowbit/kernel/panel_reader.hpp>

namespace lowbit::kernel {

/// What becomes of a tile of results that is not simply stored: values[t * stride + r] is that of row `row` + r for column `token` + t
/// of the activations, r < rows, t < tokens: up to a few hundred columns at once. Each row has room up to a multiple of 16 values, of which those past `rows` mean nothing.
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
  bool streamed = false;                   ///< whether results that are collected in memory first may go past the caches; y and y_stride are whole lines then
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

/// Hands over results: values[t * stride + r] is that of row `row` + r for token `first_token` + t. (Columns past the last token are none.)
template <class Arch>
LOWBIT_ALWAYS_INLINE void deliver(const multiply_args& a, float* values, std::size_t stride, std::size_t row, std::size_t rows,
                                  std::size_t first_token, std::size_t tokens) noexcept {
  if (row >= a.rows) return;
  if (a.rows - row < rows) rows = a.rows - row;
  if (a.tokens - first_token < tokens) tokens = a.tokens - first_token;
  if (a.finish != nullptr) return a.finish(a.context, values, stride, row, rows, first_token, tokens);
  float* to = a.y + first_token * a.y_stride + row;
  if (a.streamed && rows % panel_rows == 0) {
    for (std::size_t t = 0; t < tokens; ++t, to += a.y_stride, values += stride)
      for (std::size_t r = 0; r < rows; r += simd::lanes<Arch>) simd::store_streamed<Arch>(to + r, floats<Arch>::load_aligned(values + r), Arch{});
    return simd::fence_streamed(Arch{});
  }
  const auto copy = [&](auto bytes) LOWBIT_INLINE_LAMBDA {
    for (std::size_t t = 0; t < tokens; ++t, to += a.y_stride, values += stride) std::memcpy(to, values, bytes);
  };
  if (rows == panel_rows) copy(std::integral_constant<std::size_t, panel_rows * sizeof(float)>{});
  else copy(rows * sizeof(float));
}

}  // namespace detail
}  // namespace lowbit::kernel
