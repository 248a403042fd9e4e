// Matrices of low rank that are added to a product: y += B (A x), a fine-tuned adapter (LoRA: Hu et al. 2022) or a correction of what
// quantising lost, beside weights that stay as they are.
//
// Both factors are 8 bits a number, for what a small product beside a large one costs is the bytes of it. A is a matrix like any other and
// runs as panels of q8_0: its few rows are one or two of them. B's rows are added where the results of the large product are, in the
// first-level cache, 16 at a time. Beside 4-bit weights [out, in], rank r costs r (out + in) multiply-adds and, from memory, about
// r (out + in) + 4 out bytes: for rank 16 and 4096 x 4096, 1 % of the arithmetic and 2 % of the bytes.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/matrix/panel_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
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

  /// Expects finite factors of their announced sizes, and a unit with q8_0's kernels. A is rounded as q8_0, its rows brought below 1 by
  /// powers of two, which B takes, so that nothing overflows; B to 8 bits of each row's largest. Either errs by at most a 254th of the
  /// largest number in a block of 32 or a row, about what bfloat16 does.
  template <executor E>
  static low_rank from(const low_rank_factors& f, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    LOWBIT_EXPECTS(f.a.size() == f.rank * f.cols && f.b.size() == f.rows * f.rank);
    low_rank l;
    l.rows_ = f.rows;
    if (f.rank == 0) return l;
    std::vector<float> a(f.a.size()), taken(f.rank);
    for (std::size_t k = 0; k < f.rank; ++k) {
      const float largest = largest_of(&f.a[k * f.cols], f.cols);
      const int places = largest > 0 ? std::min(std::ilogb(largest) + 1, 127) : 0;
      taken[k] = std::ldexp(1.0f, places);
      for (std::size_t c = 0; c < f.cols; ++c) a[k * f.cols + c] = std::ldexp(f.a[k * f.cols + c], -places);
    }
    packed_matrix blocks(spec_of<q8_0>, f.rank, f.cols);
    unit.quantise_rows({&spec_of<q8_0>, a.data(), f.cols, f.cols, 0, f.rank, nullptr, blocks.row(0), true});
    l.a_ = panel_matrix::from(blocks.view(), executor, unit);

    l.reserve_strips();
    std::vector<float> row(f.rank);
    for (std::size_t r = 0; r < f.rows; ++r) {
      for (std::size_t k = 0; k < f.rank; ++k) row[k] = f.scale * taken[k] * f.b[r * f.rank + k];
      const float largest = largest_of(row.data(), f.rank), scale = largest / 127.0f;
      std::uint8_t* const strip = l.strip_of(r);
      std::memcpy(strip + r % kernel::panel_rows * sizeof(float), &scale, sizeof(float));
      for (std::size_t k = 0; k < f.rank; ++k)
        strip[kernel::strip_scale_bytes + k * kernel::panel_rows + r % kernel::panel_rows] =
            static_cast<std::uint8_t>(scale > 0 ? static_cast<int>(std::nearbyint(row[k] / scale)) : 0);
    }
    return l;
  }

  /// Columns of a [rows, cols] matrix at some channels: y += columns x[channels]. Of these A is nothing but a choice of inputs, and the
  /// columns stay float32 (LLM.int8's outliers: Dettmers et al. 2022, section 3.2). Expects ascending channels below cols, one for each column.
  static low_rank of_columns(matrix_view<const float> columns, std::vector<std::uint32_t> channels, std::size_t cols) {
    LOWBIT_EXPECTS(columns.cols == channels.size() && (channels.empty() || channels.back() < cols) &&
                   std::adjacent_find(channels.begin(), channels.end(), std::greater_equal<>{}) == channels.end());
    low_rank l;
    l.rows_ = columns.rows;
    l.cols_ = cols;
    l.channels_ = std::move(channels);
    if (l.channels_.empty()) return l;
    l.reserve_strips();
    for (std::size_t r = 0; r < columns.rows; ++r)
      for (std::size_t k = 0; k < columns.cols; ++k)
        std::memcpy(l.strip_of(r) + (k * kernel::panel_rows + r % kernel::panel_rows) * sizeof(float), columns.row(r) + k, sizeof(float));
    return l;
  }

  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t cols() const noexcept { return channels_.empty() ? a_.cols() : cols_; }
  [[nodiscard]] std::size_t rank() const noexcept { return channels_.empty() ? a_.rows() : channels_.size(); }
  /// A [rank, cols], each row times a power of two; empty where A chooses channels.
  [[nodiscard]] const panel_matrix& a() const noexcept { return a_; }
  /// The inputs that A chooses; empty: it is a matrix.
  [[nodiscard]] const std::vector<std::uint32_t>& channels() const noexcept { return channels_; }
  /// Rows of B times the scale and what A's rows lack, in kernel/low_rank.hpp's strips: of floats where A chooses channels.
  [[nodiscard]] const std::uint8_t* b() const noexcept { return b_.data(); }
  [[nodiscard]] std::size_t size_bytes() const noexcept { return a_.size_bytes() + b_.size(); }

 private:
  static float largest_of(const float* v, std::size_t n) noexcept {
    float largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(v[i]));
    return largest;
  }

  [[nodiscard]] std::size_t strip_bytes() const noexcept { return kernel::strip_bytes(rank(), !channels_.empty()); }
  [[nodiscard]] std::uint8_t* strip_of(std::size_t row) noexcept { return b_.data() + row / kernel::panel_rows * strip_bytes(); }
  void reserve_strips() {
    b_ = aligned_buffer(kernel::panel_count(rows_) * strip_bytes());
    LOWBIT_EXPECTS(b_.size() == kernel::panel_count(rows_) * strip_bytes());
  }

  std::size_t rows_ = 0, cols_ = 0;
  std::vector<std::uint32_t> channels_;
  panel_matrix a_;
  aligned_buffer b_;
};

/// No matrix of a list.
inline constexpr std::uint32_t no_adapter = 0xffffffff;

/// y[token, :] += B (A x) of the token's own matrix, or of none.
struct add_low_rank {
  std::span<const low_rank* const> choices;    ///< by number; one that is null, or past the end, adds nothing
  std::span<const std::uint32_t> chosen;       ///< by row of y; empty: the first for all
  matrix_view<const float> inner;              ///< A x by row of y, [tokens, the largest rank or more]

  /// The matrix of a row of y, or null.
  [[nodiscard]] const low_rank* of(std::size_t token) const noexcept {
    const std::size_t n = chosen.empty() ? 0 : chosen[token];
    return n < choices.size() && choices[n] != nullptr && choices[n]->rank() != 0 ? choices[n] : nullptr;
  }
  /// For `count` results from `row` on, a multiple of the unit's lanes; there is room up to a multiple of 16.
  void operator()(const kernel::unit& unit, float* values, std::size_t count, std::size_t token, std::size_t row) const noexcept {
    const low_rank* const l = of(token);
    if (l == nullptr) return;
    LOWBIT_EXPECTS(row + count <= l->rows() && l->rank() <= inner.cols);
    unit.add_low_rank({l->b(), l->rank(), !l->channels().empty(), inner.row(token), values, row, count});
  }
};

}  // namespace lowbit
