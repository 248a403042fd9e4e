// Sequential calibration: quantise a model set by set, each with statistics of inputs that the quantised sets before it made.
//
//   for each layer, for attention and then the MLP:
//     choose the scales of channels, where the method has them, and fold them into what lies before
//     for both groups of matrices that read the same activations:
//       gather statistics of the group's inputs, with everything before it quantised; quantise its matrices
//     let the hidden states through what is quantised now
//
// Memory holds the hidden states (walk.hpp), one layer's weights and the statistics of one group. A tied embedding comes first, because
// every hidden state starts from it: as the output matrix that it also is, by the final hidden states of the model as it was.
// An untied embedding is looked up, not multiplied with, and is quantised without data; an untied output matrix comes last.
#pragma once

#include "float_weights.hpp"
#include "methods.hpp"
#include "samples.hpp"
#include "step_store.hpp"
#include "walk.hpp"

namespace llm {

class calibration_pass {
 public:
  /// `how` says the format and the order of rows, as plan_for made it of `model`. Everything must outlive the pass.
  calibration_pass(const checkpoint& model, const requantisation& how, const recipe& method, const calibration_samples& samples,
                   thread_pool& threads)
      : model_(model), how_(how), method_(method), threads_(threads), floats_(model, how, threads), states_(model.config, samples.sequences, threads) {}

  /// Quantises what `store` has not finished, and keeps it there. Fails on weights that are not finite, naming the tensor.
  /// progress(done, total) is called now and then; what was finished before does not count.
  lowbit::status run(step_store& store, const std::function<void(std::size_t, std::size_t)>& progress = {});

  /// Called with every matrix that was quantised: its name, as floats, what became of it, and statistics of its inputs (null: none).
  using observer = std::function<void(const std::string&, const matrix&, const weights&, const lowbit::layer_statistics*)>;
  void observe(observer o) { observer_ = std::move(o); }

 private:
  struct layer_in_work;

  [[nodiscard]] bool is_tied() const noexcept { return model_.find("output.weight") == nullptr; }
  [[nodiscard]] lowbit::format_id format_of(const std::string& name) const { return target_format(*model_.find(name), how_.format); }
  lowbit::result<weights> quantise(const std::string& name, const matrix& w, const lowbit::layer_statistics* about) const;
  lowbit::result<lowbit::layer_statistics> final_statistics();
  lowbit::status pass_unquantised(const matrix& embedding);

  lowbit::status quantise_embedding(step_store& store);
  lowbit::status quantise_layer(std::size_t layer, step_store& store);
  lowbit::status quantise_head(step_store& store);
  void choose_scales(input_group g, layer_in_work& layer, lowbit::layer_statistics& about);
  lowbit::status quantise_half(input_group first, input_group second, layer_in_work& layer);
  lowbit::status quantise_group(input_group g, layer_in_work& layer, const lowbit::layer_statistics& about);
  void pass_finished(std::size_t layer, const step_store& store);

  const checkpoint& model_;
  const requantisation& how_;
  const recipe& method_;
  thread_pool& threads_;
  float_weights floats_;
  walk states_;
  observer observer_;
};

}  // namespace llm
