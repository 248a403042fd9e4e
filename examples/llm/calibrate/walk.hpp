// The hidden states of all calibration sequences on their way through a model, a layer at a time: tokens x hidden floats.
//
// Activations are exact; a layer's weights may be floats or quantised already. Between the steps of a layer the inputs of each group of
// matrices can be looked at, without changing the states.
#pragma once

#include "../engine/evaluate.hpp"
#include "groups.hpp"

#include <lowbit/calibration/statistics.hpp>

namespace llm {

class walk {
 public:
  /// The sequences and the threads must outlive it.
  walk(const model_config& c, const windows& sequences, thread_pool& threads);
  walk(const walk&) = delete;
  walk& operator=(const walk&) = delete;

  /// Every sequence at its tokens' embeddings.
  void start(const lowbit::panel_matrix& embedding);
  /// Through attention, x += output(...), or the MLP, x += down(...).
  void pass_attention(const layer_weights& w);
  void pass_mlp(const layer_weights& w);

  /// The states as they would be behind attention, or behind the MLP.
  std::vector<matrix> behind_attention(const layer_weights& w);
  std::vector<matrix> behind_mlp(const layer_weights& w);
  /// x Wᵀ of every sequence's states behind the last norm.
  std::vector<matrix> outputs(const std::vector<float>& norm, const lowbit::panel_matrix& w);
  [[nodiscard]] const std::vector<matrix>& states() const noexcept { return states_; }

  /// Adds a group's inputs to statistics. The layer's matrices before the group must be there.
  template <class Stats>
  void add_inputs(input_group g, const layer_weights& w, Stats& about) {
    for (const matrix& x : states_) about.add(lowbit::view(inputs_of(g, w, x)), threads_);
  }
  lowbit::layer_statistics statistics_of(input_group g, const layer_weights& w);
  /// Of the states behind the last norm: the output matrix's inputs.
  lowbit::layer_statistics statistics_behind(const std::vector<float>& norm);

 private:
  const matrix& inputs_of(input_group g, const layer_weights& w, const matrix& x);

  const windows& sequences_;
  thread_pool& threads_;
  model_config config_;  // of one layer: the cache has no more
  kv_cache cache_;
  layer_steps steps_;
  std::vector<matrix> states_;
};

}  // namespace llm
