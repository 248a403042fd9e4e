// Causal grouped-query attention (Ainslie et al. 2023) over a key/value cache, in float32.
#pragma once

#include "elementwise.hpp"

#include <lowbit/core/executor.hpp>

namespace llm {

/// out [tokens, heads * head_dim] from queries of that shape; `keys` and `values` are [first + tokens, kv_heads * head_dim].
/// Token t is at position first + t and sees the positions up to its own. Queries and keys are already turned by RoPE.
template <lowbit::executor E>
void attend(const model_config& c, const matrix& queries, std::size_t first, const float* keys, const float* values, matrix& out,
            E& executor) {
  using rows = Eigen::Map<const Eigen::Matrix<float, -1, -1, Eigen::RowMajor>, 0, Eigen::OuterStride<>>;
  using own_rows = Eigen::Map<Eigen::Matrix<float, -1, -1, Eigen::RowMajor>, 0, Eigen::OuterStride<>>;
  constexpr std::size_t block = 32;  // tokens at a time: bounds the scores, and skips most of what lies in the future
  const std::size_t tokens = queries.rows(), blocks = (tokens + block - 1) / block, group = c.heads / c.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const auto index = [](std::size_t i) { return static_cast<Eigen::Index>(i); };

  lowbit::for_parts(executor, c.heads * blocks, 1, [&](std::size_t begin, std::size_t end) {
    Eigen::Matrix<float, -1, -1, Eigen::RowMajor> scores;
    for (std::size_t task = begin; task < end; ++task) {
      const std::size_t head = task % c.heads, t0 = task / c.heads * block, count = std::min(block, tokens - t0);
      const std::size_t seen = first + t0 + count, kv_offset = head / group * c.head_dim;
      const auto stride = Eigen::OuterStride<>(index(c.kv_size()));
      const rows q(queries.row(t0) + head * c.head_dim, index(count), index(c.head_dim), Eigen::OuterStride<>(index(queries.cols())));
      const rows k(keys + kv_offset, index(seen), index(c.head_dim), stride);
      const rows v(values + kv_offset, index(seen), index(c.head_dim), stride);
      scores.noalias() = q * k.transpose();
      for (std::size_t t = 0; t < count; ++t) {
        float* row = scores.data() + t * seen;
        const std::size_t visible = first + t0 + t + 1;
        array_of(row, visible) *= scale;
        softmax(row, visible);
        array_of(row + visible, seen - visible).setZero();
      }
      own_rows(out.row(t0) + head * c.head_dim, index(count), index(c.head_dim), Eigen::OuterStride<>(index(out.cols()))).noalias() =
          scores * v;
    }
  });
}

}  // namespace llm
