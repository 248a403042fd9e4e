#include "attention.hpp"

#include "elementwise.hpp"

#include <algorithm>
#include <cstring>

// The two loops below are compiled for several instruction sets, and the program picks one when it starts.
#if defined(__x86_64__)
#define LLM_FOR_EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LLM_FOR_EACH_MACHINE
#endif

namespace llm {
namespace {

constexpr std::size_t lanes = kv_cache::lanes, rows = attention::rows_at_once;
using vector = float __attribute__((vector_size(lanes * sizeof(float)), aligned(alignof(float)), may_alias));

// scores[r][p] = sum over i of query[r][i] * keys[i][p], for positions below `seen` and up to the next whole vector.
LLM_FOR_EACH_MACHINE
void score(const float* query, std::size_t head_dim, const float* keys, std::size_t key_stride, std::size_t seen, float* scores,
           std::size_t score_stride) {
  for (std::size_t p = 0; p < seen; p += lanes) {
    vector sum[rows] = {};
    for (std::size_t i = 0; i < head_dim; ++i) {
      const vector k = *reinterpret_cast<const vector*>(keys + i * key_stride + p);
      for (std::size_t r = 0; r < rows; ++r) sum[r] += query[r * head_dim + i] * k;
    }
    for (std::size_t r = 0; r < rows; ++r) *reinterpret_cast<vector*>(scores + r * score_stride + p) = sum[r];
  }
}

// out[r][i] = sum over p < seen of weights[r][p] * values[p][i], for i below value_stride.
LLM_FOR_EACH_MACHINE
void mix(const float* weights, std::size_t weight_stride, const float* values, std::size_t value_stride, std::size_t seen, float* out) {
  for (std::size_t i = 0; i < value_stride; i += lanes) {
    vector sum[rows] = {};
    for (std::size_t p = 0; p < seen; ++p) {
      const vector v = *reinterpret_cast<const vector*>(values + p * value_stride + i);
      for (std::size_t r = 0; r < rows; ++r) sum[r] += weights[r * weight_stride + p] * v;
    }
    for (std::size_t r = 0; r < rows; ++r) *reinterpret_cast<vector*>(out + r * value_stride + i) = sum[r];
  }
}

}  // namespace

void attention::run(std::size_t begin, std::size_t end) const {
  const std::size_t group = config.heads / config.kv_heads, head_dim = config.head_dim, row_count = queries.rows() * group;
  const std::size_t value_stride = cache.value_stride(), first = cache.size();
  const std::size_t score_stride = lowbit::round_up(first + queries.rows(), lanes);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> query(rows * head_dim), scores(rows * score_stride), mixed(rows * value_stride);
  for (std::size_t task = begin; task < end; ++task) {
    const std::size_t kv_head = task / tasks_per_head(), row0 = task % tasks_per_head() * rows, count = std::min(rows, row_count - row0);
    const auto offset = [&](std::size_t r) { return (kv_head * group + (row0 + r) % group) * head_dim; };
    const auto token = [&](std::size_t r) { return (row0 + r) / group; };
    const std::size_t seen = first + token(count - 1) + 1;
    for (std::size_t r = 0; r < count; ++r)
      array_of(&query[r * head_dim], head_dim) = array_of(queries.row(token(r)) + offset(r), head_dim) * scale;
    score(query.data(), head_dim, cache.keys(layer, kv_head), cache.key_stride(), seen, scores.data(), score_stride);
    for (std::size_t r = 0; r < count; ++r) {
      float* const row = &scores[r * score_stride];
      const std::size_t visible = first + token(r) + 1;
      softmax(row, visible);
      std::fill(row + visible, row + seen, 0.0f);
    }
    mix(scores.data(), score_stride, cache.values(layer, kv_head), value_stride, seen, mixed.data());
    for (std::size_t r = 0; r < count; ++r) std::memcpy(out.row(token(r)) + offset(r), &mixed[r * value_stride], head_dim * sizeof(float));
  }
}

}  // namespace llm
