// Which format each tensor gets: one for all, a mix of llama.cpp's, or the best within a budget, with overrides by name.
#pragma once

#include "../files/requantise.hpp"
#include "samples.hpp"

#include <lowbit/quantise/allocate.hpp>

namespace llm {

/// What the command line says about formats.
struct format_choice {
  std::string format;                  ///< a format's name, or a mix's ("Q4_K_M"); one that is both ("Q4_0") is the mix's in capitals
  std::vector<std::string> overrides;  ///< "PATTERN=FORMAT", the first that matches counts; * and ? stand for any characters, any one
  double budget = 0;                   ///< bits per weight over all matrices; 0: none
};

/// Says to every tensor of `model` which format it is to get, and adds general.file_type to its notes where a mix was named. Returns the
/// format of the file as a whole. Fails, naming it, on a name or pattern that says nothing. `has_importance`: statistics of the inputs
/// decide how weights are rounded, which llama.cpp's mixes take into account.
lowbit::result<lowbit::format_id> choose_formats(checkpoint& model, const format_choice& choice, bool has_importance);

/// Chooses, within choice.budget, the format of every matrix that no override names: those for which the measured errors add up to the least.
/// A matrix's error is how far the hidden states behind its half of the layer move when it alone is rounded to nearest, relative to their
/// size; the output matrix's is that of the logits, taken from their mean. Measured on `tokens` or more of `samples`. Expects a
/// model that check_model accepts and a format that GGUF has.
lowbit::status allocate_formats(checkpoint& model, lowbit::format_id format, const format_choice& choice, const calibration_samples& samples,
                                thread_pool& threads, const std::function<void(std::size_t, std::size_t)>& progress = {}, std::size_t tokens = 1024);

}  // namespace llm
