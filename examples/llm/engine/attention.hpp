// Causal grouped-query attention (Ainslie et al. 2023) over a key/value cache; scores and weights in float32.
#pragma once

#include "kv_cache.hpp"

#include <lowbit/core/executor.hpp>

namespace llm {

/// The operands of one layer's attention. Queries are already turned by RoPE, and the cache has their keys and values stored but not
/// yet counted: token t is at position cache.size() + t and sees the positions up to its own.
struct attention {
  const model_config& config;
  const matrix& queries;   ///< [tokens, heads * head_dim]
  const kv_cache& cache;
  std::size_t layer;
  matrix& out;             ///< of the queries' shape

  /// A row is one token's query in one of the heads that share keys; kv_cache::rows_at_once are worked on together.
  [[nodiscard]] std::size_t tasks_per_head() const noexcept {
    return lowbit::ceil_div(queries.rows() * (config.heads / config.kv_heads), kv_cache::rows_at_once);
  }
  /// Computes tasks [begin, end) of kv_heads * tasks_per_head().
  void run(std::size_t begin, std::size_t end) const;
};

/// All of it.
template <lowbit::executor E>
void attend(const attention& a, E& executor) {
  lowbit::for_parts(executor, a.config.kv_heads * a.tasks_per_head(), 4, [&](std::size_t begin, std::size_t end) { a.run(begin, end); });
}

}  // namespace llm
