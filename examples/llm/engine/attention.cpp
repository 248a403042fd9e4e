#include "attention.hpp"

#include "elementwise.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace llm {
namespace {

// Before a loop: it is compiled for several instruction sets, and the program picks one when it starts.
#if defined(__x86_64__)
#define LLM_FOR_EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LLM_FOR_EACH_MACHINE
#endif

// Of 256 bits: compilers take larger vectors apart through memory where there are no larger registers.
using vector = float __attribute__((vector_size(32)));
using integers = std::int32_t __attribute__((vector_size(32)));
constexpr std::size_t lanes = 8;

// By reference: how a vector is passed by value depends on the instruction set.
inline __attribute__((always_inline)) void load(const float* from, vector& v) { std::memcpy(&v, from, sizeof v); }
inline __attribute__((always_inline)) void store(const vector& v, float* to) { std::memcpy(to, &v, sizeof v); }

// x = 2^x for -126 <= x <= 126, to about 2e-7: 2^round(x) by its exponent bits, the rest by its series.
inline __attribute__((always_inline)) void exp2_in_place(vector& x) {
  constexpr float round_to_integer = 0x1.8p23f;  // adding it leaves no bits for a fraction
  const vector whole = (x + round_to_integer) - round_to_integer, t = (x - whole) * 0.693147181f;
  const vector series =
      1.0f + t * (1.0f + t * (1.0f / 2 + t * (1.0f / 6 + t * (1.0f / 24 + t * (1.0f / 120 + t * (1.0f / 720 + t * (1.0f / 5040)))))));
  const integers power = (__builtin_convertvector(whole, integers) + 127) << 23;
  vector factor;
  std::memcpy(&factor, &power, sizeof factor);
  x = series * factor;
}

// softmax of x[0, visible), in place; zero from there to the end of the last whole vector. Expects room for that.
LLM_FOR_EACH_MACHINE
void causal_softmax(float* x, std::size_t visible) {
  const std::size_t end = lowbit::round_up(visible, lanes);
  std::fill(x + visible, x + end, -std::numeric_limits<float>::infinity());
  vector high, v;
  load(x, high);
  for (std::size_t p = lanes; p < end; p += lanes) {
    load(x + p, v);
    high = v > high ? v : high;
  }
  float highest = high[0];
  for (std::size_t i = 1; i < lanes; ++i) highest = std::max(highest, high[i]);
  constexpr float log2_e = 1.44269504f, least = -126.0f;
  vector sum = {};
  for (std::size_t p = 0; p < end; p += lanes) {
    load(x + p, v);
    const vector power = (v - highest) * log2_e;
    v = power < least ? least + vector{} : power;  // NaN stays
    exp2_in_place(v);
    for (std::size_t i = visible > p ? visible - p : 0; i < lanes; ++i) v[i] = 0.0f;
    sum += v;
    store(v, x + p);
  }
  double total = 0.0;
  for (std::size_t i = 0; i < lanes; ++i) total += static_cast<double>(sum[i]);
  const auto scale = static_cast<float>(1.0 / total);
  for (std::size_t p = 0; p < end; p += lanes) {
    load(x + p, v);
    store(v * scale, x + p);
  }
}

}  // namespace

void attention::run(std::size_t begin, std::size_t end) const {
  const std::size_t group = config.heads / config.kv_heads, head_dim = config.head_dim, row_count = queries.rows() * group;
  const std::size_t rows = kv_cache::rows_at_once, first = cache.size();
  const std::size_t score_stride = lowbit::round_up(first + queries.rows(), lanes);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const std::size_t most = std::min(rows, row_count);
  std::vector<float> query(most * head_dim), scores(most * score_stride), mixed(most * head_dim);
  kv_cache::scratch space;
  for (std::size_t task = begin; task < end; ++task) {
    const std::size_t kv_head = task / tasks_per_head(), row0 = task % tasks_per_head() * rows, count = std::min(rows, row_count - row0);
    const auto offset = [&](std::size_t r) { return (kv_head * group + (row0 + r) % group) * head_dim; };
    const auto token = [&](std::size_t r) { return (row0 + r) / group; };
    const std::size_t seen = first + token(count - 1) + 1;
    for (std::size_t r = 0; r < count; ++r)
      array_of(&query[r * head_dim], head_dim) = array_of(queries.row(token(r)) + offset(r), head_dim) * scale;
    cache.score(layer, kv_head, {query.data(), count, head_dim}, seen, {scores.data(), count, score_stride}, space);
    for (std::size_t r = 0; r < count; ++r) {
      float* const row = &scores[r * score_stride];
      const std::size_t visible = first + token(r) + 1;
      causal_softmax(row, visible);
      std::fill(row + std::min(lowbit::round_up(visible, lanes), seen), row + seen, 0.0f);
    }
    cache.mix(layer, kv_head, {scores.data(), count, score_stride}, seen, {mixed.data(), count, head_dim}, space);
    for (std::size_t r = 0; r < count; ++r) std::memcpy(out.row(token(r)) + offset(r), &mixed[r * head_dim], head_dim * sizeof(float));
  }
}

}  // namespace llm
