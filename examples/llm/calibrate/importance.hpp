// llama.cpp's importance matrix of a model: mean x² of every matrix's input channels, all of the float model's.
#pragma once

#include "float_weights.hpp"
#include "samples.hpp"

#include <lowbit/io/imatrix.hpp>

#include <functional>

namespace llm {

/// Lets the samples through the model, layer by layer. Memory holds the hidden states and one layer's weights. The embedding and the output
/// matrix are left out, as llama.cpp leaves them out. Fails on weights that are not finite, naming the tensor.
lowbit::result<lowbit::imatrix> gather_importance(const checkpoint& model, const requantisation& how, const calibration_samples& samples,
                                                  thread_pool& threads, const std::function<void(std::size_t, std::size_t)>& progress);

}  // namespace llm
