#include "calibration.hpp"

#include "loading.hpp"

#include <filesystem>

namespace llm {

void add_calibration(CLI::App& command, calibration_options& o, const std::string& without_text) {
  command.add_option("--calibration", o.text, "A UTF-8 text for the methods that need data" + without_text);
  command.add_option("--calibration-tokens", o.plan.tokens, "Calibrate on so many tokens at most; their hidden states are kept in memory, 4 bytes x hidden size each")
      ->capture_default_str()->check(CLI::Range(std::size_t{2}, std::size_t{1} << 32));
  command.add_option("--calibration-length", o.plan.length, "Tokens in a sequence (default 512), but never more than the model was trained for")
      ->transform(whole_number(2));
  command.add_option("--seed", o.plan.seed, "Of the choice of sequences and of random rotations")->capture_default_str()->transform(whole_number());
}

lowbit::result<calibration_samples> read_samples(const calibration_options& o, const tokeniser& words, const model_config& c) {
  const auto text = read_text(o.text);
  if (!text) return text.error();
  return sample_text(*text, std::filesystem::path{o.text}.filename().string(), words, c, o.plan);
}

lowbit::result<calibration_samples> disclosed_samples(const calibration_options& o, const std::string& needed_by, checkpoint& model) {
  if (o.text.empty()) return lowbit::failure{lowbit::errc::bad_value, needed_by + " needs a text to calibrate on: --calibration TEXT"};
  const auto words = tokeniser::from(model.words);
  if (!words) return words.error();
  auto samples = read_samples(o, *words, model.config);
  if (samples) samples->disclose(model.notes);
  model.files.emplace_back(o.text);
  return samples;
}

}  // namespace llm
