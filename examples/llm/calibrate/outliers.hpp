// LLM.int8's split (Dettmers et al. 2022, section 3.2) in any format: channels whose inputs are large keep float columns, and zeros are quantised
// in their place. The columns become an adapter whose A only chooses inputs, so that files stay what other programs read: llama.cpp runs
// one beside the model.
#pragma once

#include "../files/adapter.hpp"
#include "groups.hpp"
#include "step_store.hpp"

#include <lowbit/calibration/statistics.hpp>

namespace llm {

/// The channels of a group's inputs that reach the paper's threshold of 6; at most a sixteenth of them, those with the largest inputs.
std::vector<std::uint32_t> outliers_among(const lowbit::layer_statistics& about);

/// Takes columns out of a matrix: what is left has zeros there.
matrix take_columns(matrix& w, std::span<const std::uint32_t> channels);

/// A matrix's columns among the finished weights of a step.
void keep_outliers(named_weights& step, const std::string& name, const matrix& columns, std::span<const std::uint32_t> channels);

/// Puts the finished columns of a layer's matrix, if it has any, beside its weights.
void run_outliers(layer_weights& w, part p, std::size_t layer, const std::function<const weights*(const std::string&)>& find);

/// All of them, without what the quantised columns have of them, as an adapter of the model that was made, which `find` has as well. Empty where no
/// channel stood out.
lowbit::adapter adapter_of_outliers(const checkpoint& model, const std::function<const weights*(const std::string&)>& find);

}  // namespace llm
