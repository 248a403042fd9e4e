// Between checkpoints and parameters.
#pragma once

#include "network.hpp"

#include "files/save.hpp"

#include <lowbit/matrix/packed_matrix.hpp>

namespace qat {

/// A model's weights as floats in the order of parameter_names, with the rows in the order that `how` asks for. Fails as check_model does, and
/// on a weight that is not finite, naming the tensor.
lowbit::result<parameters<float>> read_parameters(const llm::checkpoint& model, const llm::requantisation& how, llm::thread_pool& threads);

/// What every parameter is stored as when the model is written in a format.
std::vector<const lowbit::format_spec*> parameter_formats(const llm::checkpoint& model, lowbit::format_id format);

/// The model with other weights, in the order of parameter_names.
llm::checkpoint with_weights(llm::checkpoint model, std::vector<lowbit::packed_matrix> weights);

}  // namespace qat
