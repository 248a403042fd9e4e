// Matrices of low rank that are added to a product: y += B (A x), a fine-tuned adapter (LoRA: Hu et al. 2022) or a correction of what
// quantising lost, beside weights that stay as they are.
//
// A is a matrix like any other and runs as panels of float16: its few rows are one or two of them. B's rows are added where the results of
// the large product are, in the first-level cache, 16 at a time. Beside 4-bit weights [out, in], rank r costs r (out + in) multiply-adds and,
// from memory, 2 r in + 4 r out bytes: for rank 16 and 4096 x 4096, 1 % of the arithmetic and 4 % of the bytes.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/matrix/epilogue.hpp>
#include <lowbit/matrix/panel_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

namespace lowbit {

/// scale * B A as floats: what files hold, and what is merged.
struct low_rank_factors {
  std::size_t rows = 0, cols = 0, rank = 0;  ///< of B A: outputs, inputs
  std::vector<float> a;                      ///< [rank, cols], LoRA's lora_A
  std::vector<float> b;                      ///< [rows, rank], lora_B
  float scale = 1;                           ///< alpha / rank, or for rsLoRA alpha / sqrt(rank) (Kalajdzievski 2023)

  [[nodiscard]] matrix_view<const float> a_view() const noexcept { return {a.data(), rank, cols}; }
  [[nodiscard]] matrix_view<const float> b_view() const noexcept { return {b.data(), rows, rank}; }
};

/// The same in the layouts that run, the scale in B. Movable; default-constructed it is of rank 0 and adds nothing.
class low_rank {
 public:
  low_rank() = default;

  /// Expects factors of their announced sizes. A is rounded to float16, its rows brought below 1 by powers of two, which B takes: nothing
  /// overflows, and the error of 2^-12 is a twentieth of that of 8-bit activations.
  template <executor E>
  static low_rank from(const low_rank_factors& f, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    LOWBIT_EXPECTS(f.a.size() == f.rank * f.cols && f.b.size() == f.rows * f.rank);
    low_rank l;
    l.rows_ = f.rows;
    if (f.rank == 0) return l;
    packed_matrix a(spec_of<float16>, f.rank, f.cols);
    std::vector<float> taken(f.rank);
    for (std::size_t k = 0; k < f.rank; ++k) {
      float largest = 0;
      for (std::size_t c = 0; c < f.cols; ++c) largest = std::max(largest, std::fabs(f.a[k * f.cols + c]));
      const int places = largest > 0 ? std::min(std::ilogb(largest) + 1, 127) : 0;
      taken[k] = std::ldexp(1.0f, places);
      for (std::size_t c = 0; c < f.cols; ++c) {
        const std::uint32_t bits = number_bits(number::f16, std::ldexp(f.a[k * f.cols + c], -places));
        std::memcpy(a.row(k) + c * sizeof(std::uint16_t), &bits, sizeof(std::uint16_t));
      }
    }
    l.a_ = panel_matrix::from(a.view(), executor, unit);
    const std::size_t bytes = ceil_div(f.rows, strip) * strip * f.rank * sizeof(float);
    l.b_ = aligned_buffer(bytes);
    LOWBIT_EXPECTS(l.b_.size() == bytes);
    auto* const b = reinterpret_cast<float*>(l.b_.data());
    for (std::size_t r = 0; r < f.rows; ++r)
      for (std::size_t k = 0; k < f.rank; ++k) b[(r / strip * f.rank + k) * strip + r % strip] = f.scale * taken[k] * f.b[r * f.rank + k];
    return l;
  }

  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return a_.cols(); }
  [[nodiscard]] std::size_t rank() const noexcept { return a_.rows(); }
  /// A [rank, cols], each row times a power of two.
  [[nodiscard]] const panel_matrix& a() const noexcept { return a_; }
  /// Rows of B that lie side by side, a panel's.
  static constexpr std::size_t strip = kernel::panel_rows;
  /// Rows [row, row + 16) of B times the scale and what A's rows lack, [rank][16], zero past the last. Expects row % 16 == 0.
  [[nodiscard]] const float* b(std::size_t row) const noexcept { return reinterpret_cast<const float*>(b_.data()) + row * rank(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return a_.size_bytes() + b_.size(); }

 private:
  std::size_t rows_ = 0;
  panel_matrix a_;
  aligned_buffer b_;
};

/// No matrix of a list.
inline constexpr std::uint32_t no_adapter = 0xffffffff;

/// An epilogue: y[token, :] += B (A x) of the token's own matrix, or of none.
struct add_low_rank {
  std::span<const low_rank* const> choices;    ///< by number; one that is null, or past the end, adds nothing
  std::span<const std::uint32_t> chosen;       ///< by row of y; empty: the first for all
  matrix_view<const float> inner;              ///< A x by row of y, [tokens, the largest rank or more]

  /// The matrix of a row of y, or null.
  [[nodiscard]] const low_rank* of(std::size_t token) const noexcept {
    const std::size_t n = chosen.empty() ? 0 : chosen[token];
    return n < choices.size() && choices[n] != nullptr && choices[n]->rank() != 0 ? choices[n] : nullptr;
  }
  void operator()(float* values, std::size_t count, std::size_t token, std::size_t row) const noexcept {
    const low_rank* const l = of(token);
    if (l == nullptr) return;
    LOWBIT_EXPECTS(row + count <= l->rows() && l->rank() <= inner.cols);
    const float* const x = inner.row(token);
    constexpr std::size_t strip = low_rank::strip, whole = strip / lanes;
    for (std::size_t done = 0; done < count;) {
      const std::size_t at = (row + done) % strip, left = std::min(ceil_div(count - done, lanes), (strip - at) / lanes);
      const float* const b = l->b(row + done - at) + at;
      float* const y = values + done;
      if (at % lanes != 0) {  // a unit with narrower registers than this code's
        const std::size_t n = std::min(count - done, lanes - at % lanes);
        for (std::size_t k = 0; k < l->rank(); ++k)
          for (std::size_t i = 0; i < n; ++i) y[i] += x[k] * b[k * strip + i];
        done += n;
      } else if (left == whole) done += add<whole>(y, b, x, l->rank());
      else done += left >= 2 ? add<2>(y, b, x, l->rank()) : add<1>(y, b, x, l->rank());
    }
  }

 private:
  using floats = simd::batch<float, simd::native>;
  static constexpr std::size_t lanes = floats::size;
  static_assert(low_rank::strip % lanes == 0);

  /// Some registers of results, while all of the rank is summed; how many results.
  template <std::size_t Vectors>
  static std::size_t add(float* values, const float* b, const float* x, std::size_t rank) noexcept {
    floats sum[Vectors];
    for (std::size_t v = 0; v < Vectors; ++v) sum[v] = floats::load_unaligned(values + v * lanes);
    for (std::size_t k = 0; k < rank; ++k, b += low_rank::strip) {
      const floats factor(x[k]);
      for (std::size_t v = 0; v < Vectors; ++v) sum[v] = xsimd::fma(factor, floats::load_aligned(b + v * lanes), sum[v]);
    }
    for (std::size_t v = 0; v < Vectors; ++v) sum[v].store_unaligned(values + v * lanes);
    return Vectors * lanes;
  }
};

}  // namespace lowbit
