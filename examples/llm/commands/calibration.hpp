// What `quantise`, `merge` and `compare` share: the options of a calibration, and the samples that they choose.
#pragma once

#include "../calibrate/samples.hpp"
#include "../files/checkpoint.hpp"
#include "commands.hpp"

namespace llm {

struct calibration_options {
  std::string text;      ///< a file; empty: none was given
  sampling_plan plan;
};

/// Adds --calibration and its kin to a subcommand.
void add_calibration(CLI::App& command, calibration_options& o, const std::string& without_text);

/// The sequences of the text file that was named. Fails, naming it, where it cannot be read, is not UTF-8, or is too short.
lowbit::result<calibration_samples> read_samples(const calibration_options& o, const tokeniser& words, const model_config& c);

/// The same with the model's own tokeniser, written down in its notes. Fails where no text was given, naming what needs one: "method gptq".
lowbit::result<calibration_samples> disclosed_samples(const calibration_options& o, const std::string& needed_by, checkpoint& model);

}  // namespace llm
