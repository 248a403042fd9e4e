// From a checkpoint to a model that runs.
#pragma once

#include "../engine/llama.hpp"
#include "checkpoint.hpp"

#include <lowbit/io/panel_cache.hpp>

namespace llm {

/// Gives the weights of a tensor, or of the rows that it stands for: as stored, or changed on the way.
using weight_source = std::function<lowbit::result<weights>(const tensor&)>;

/// The weights as the file has them.
lowbit::result<weights> stored(const tensor& t);
/// The weights as float32: the reference that formats are compared with.
weight_source as_float32(thread_pool& threads);

/// Fails where the configuration makes no sense, or a tensor is missing, unknown, or of another shape than the configuration says.
lowbit::status check_model(const checkpoint& file);

/// Builds the model. Fails as check_model does, and where a weight is not finite. Matrices that are in `panels`, if given, are views of it:
/// it must outlive the model.
lowbit::result<llama> build_llama(const checkpoint& file, const weight_source& source, thread_pool& threads,
                                  const lowbit::panel_cache* panels = nullptr);

/// The matrices of a model with their names, for a cache.
std::vector<lowbit::panel_cache::entry> matrices_of(const llama& model);

}  // namespace llm
