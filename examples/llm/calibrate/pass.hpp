// Sequential calibration: quantise a model set by set, each with statistics of inputs that the quantised sets before it made.
//
// The hidden states of all calibration sequences are kept, tokens x hidden floats, and walk through the model a layer at a time:
//
//   for each layer, for each group of matrices that read the same activations:
//     compute the group's inputs from the hidden states, with what is quantised already; gather statistics; quantise the group
//   then let the hidden states through the quantised layer
//
// Besides the hidden states, memory holds one layer's weights and the statistics of one group. A tied embedding comes first, because
// every hidden state starts from it: as the output matrix that it also is, by the final hidden states of the model as it was.
// An untied embedding is looked up, not multiplied with, and is quantised without data; an untied output matrix comes last.
#pragma once

#include "../files/requantise.hpp"
#include "groups.hpp"
#include "methods.hpp"
#include "samples.hpp"
#include "step_store.hpp"

namespace llm {

class calibration_pass {
 public:
  /// `how` says the format and the order of rows, as plan_for made it of `model`. Everything must outlive the pass.
  calibration_pass(const checkpoint& model, const requantisation& how, const recipe& method, const calibration_samples& samples,
                   thread_pool& threads);

  /// Quantises what `store` has not finished, and keeps it there. Fails on weights that are not finite, naming the tensor.
  /// progress(done, total) is called now and then; what was finished before does not count.
  lowbit::status run(step_store& store, const std::function<void(std::size_t, std::size_t)>& progress = {});

 private:
  lowbit::result<matrix> floats_of(const std::string& name) const;
  lowbit::result<std::vector<float>> vector_of(const std::string& name) const;
  lowbit::result<float_layer> floats_of_layer(std::size_t layer) const;
  lowbit::result<layer_weights> finished_layer(const step_store& store, std::size_t layer) const;
  lowbit::result<weights> quantise(const std::string& name, const matrix& w, const lowbit::layer_statistics* about) const;

  lowbit::panel_matrix panels_of(const matrix& m) const;

  lowbit::status pass_unquantised(const matrix& embedding);
  lowbit::status quantise_embedding(step_store& store);
  lowbit::status quantise_layer(std::size_t layer, step_store& store);
  lowbit::status quantise_half(input_group first, input_group second, float_layer& floats, std::size_t layer, layer_weights& w, named_weights& step);
  lowbit::status quantise_group(input_group g, const float_layer& floats, std::size_t layer, const lowbit::layer_statistics& about, layer_weights& w,
                                named_weights& step);
  void scale(input_group g, float_layer& floats, std::size_t layer, lowbit::layer_statistics& about);
  lowbit::status quantise_head(step_store& store);

  void start(const lowbit::panel_matrix& embedding);
  template <class F>
  void for_each_sequence(F&& f);
  lowbit::layer_statistics statistics_of(input_group g, const layer_weights& w);
  lowbit::result<lowbit::layer_statistics> final_statistics();
  const matrix& inputs_of(input_group g, const layer_weights& w, const matrix& x);
  void pass_attention(const layer_weights& w);
  void pass_mlp(const layer_weights& w);

  const checkpoint& model_;
  const requantisation& how_;
  const recipe& method_;
  const calibration_samples& samples_;
  thread_pool& threads_;
  model_config config_;             // of one layer: the cache has no more
  kv_cache cache_;
  layer_steps steps_;
  std::vector<matrix> states_;      // hidden states, by sequence
};

}  // namespace llm
