// One decoder layer in steps, each on given hidden states with given weights: a session runs them one after the other, calibration stops
// between them.
#pragma once

#include "attention.hpp"
#include "thread_pool.hpp"

#include <lowbit/adapt/adapted_product.hpp>

namespace llm {

/// What is added to a layer's matrices; of rank 0: nothing.
struct layer_adapters {
  lowbit::low_rank query, key, value, output;
  lowbit::low_rank gate, up, down;
};

/// One layer's weights, [out, in] each.
struct layer_weights {
  std::vector<float> attention_norm, mlp_norm;
  lowbit::panel_matrix query, key, value, output;
  lowbit::panel_matrix gate, up, down;
  layer_adapters adapters{};
};

/// The steps and the scratch memory that they share. What one returns is valid until it is called again. The configuration and the
/// threads must outlive it.
///
///   attention: x += output(attend(normalise(x, attention_norm)))      MLP: x += down(gate(normalise(x, mlp_norm)))
class layer_steps {
 public:
  layer_steps(const model_config& config, thread_pool& threads, lowbit::precision precision)
      : config_(config), threads_(threads), precision_(precision) {}

  /// The tokens of the calls to come stand at [position, position + tokens).
  void place(std::size_t position, std::size_t tokens);
  /// RMSNorm of every token.
  const matrix& normalise(const matrix& x, const std::vector<float>& weight);
  /// Attention before its output matrix, [tokens, heads * head_dim]; stores the tokens' keys and values, which the caller counts.
  const matrix& attend(const matrix& normed, const layer_weights& w, kv_cache& cache, std::size_t layer);
  /// The SwiGLU (Shazeer 2020) before its down matrix: silu(gate) * up, [tokens, intermediate].
  const matrix& gate(const matrix& normed, const layer_weights& w);
  /// x += inputs (W + adapter)ᵀ, the end of a residual branch.
  void add(const matrix& inputs, const lowbit::panel_matrix& w, const lowbit::low_rank& adapter, matrix& x);
  /// out = inputs Wᵀ.
  void multiply(const matrix& inputs, const lowbit::panel_matrix& w, matrix& out);

 private:
  void multiply(std::initializer_list<lowbit::adapted_product> batch);

  const model_config& config_;
  thread_pool& threads_;
  lowbit::precision precision_;
  lowbit::adapter_workspace workspace_;
  std::size_t position_ = 0;  // of the first of angles_
  matrix normed_, query_, key_, value_, mixed_, angles_;
};

}  // namespace llm
