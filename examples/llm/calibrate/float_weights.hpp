// A model's weights as floats, one tensor or one layer at a time, checked and with their rows in the order of the file to come.
#pragma once

#include "../files/requantise.hpp"
#include "groups.hpp"

namespace llm {

class float_weights {
 public:
  /// Everything must outlive it.
  float_weights(const checkpoint& model, const requantisation& how, thread_pool& threads) : model_(model), how_(how), threads_(threads) {}

  /// A tensor that the model has. Fails where a weight is not finite, naming the tensor.
  [[nodiscard]] lowbit::result<matrix> read(const std::string& name) const;
  [[nodiscard]] lowbit::result<std::vector<float>> read_vector(const std::string& name) const;
  [[nodiscard]] lowbit::result<float_layer> read_layer(std::size_t layer) const;

 private:
  const checkpoint& model_;
  const requantisation& how_;
  thread_pool& threads_;
};

/// Float weights, ready to run.
lowbit::panel_matrix panels_of(const matrix& m, thread_pool& threads);
layer_weights panels_of(const float_layer& layer, thread_pool& threads);

}  // namespace llm
