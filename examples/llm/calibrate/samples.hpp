// The sequences that a model is calibrated on, fully disclosed: which parts of which text, chosen by which seed.
//
// A text is tokenised as a whole and cut into sequences of equal length that do not overlap (each after bos where the vocabulary asks for
// it). Where it has more of them than are wanted, a seeded shuffle chooses, and they are used in the order of the text.
#pragma once

#include "../engine/evaluate.hpp"
#include "../text/tokeniser.hpp"

#include <lowbit/core/error.hpp>
#include <lowbit/io/gguf_metadata.hpp>

namespace llm {

/// How much of a text to calibrate on.
struct sampling_plan {
  std::size_t tokens = std::size_t{128} * 512;  ///< in all sequences together, at most
  std::size_t length = 0;                       ///< tokens in a sequence; 0: 512, or what the model was trained for
  std::uint64_t seed = 42;
};

struct calibration_samples {
  windows sequences;
  std::string source;                  ///< the text's path, or what wrote it
  std::uint64_t seed = 0;
  std::vector<std::uint32_t> chosen;   ///< places of the sequences in the text, counted in sequences; empty for a sampled text
  std::uint64_t hash = 0;              ///< of all token ids

  [[nodiscard]] std::size_t tokens() const noexcept;
  /// One line for people.
  [[nodiscard]] std::string description() const;
  /// The same for the metadata of a file, as keys "lowbit.calibration.…".
  void disclose(lowbit::gguf_metadata& notes) const;
};

/// Tokens in a sequence by default: 512, or what the model was trained for.
std::size_t calibration_length(const sampling_plan& plan, const model_config& c);

/// Sequences from a text that is known to be UTF-8. Fails, naming `source`, where it is too short for one sequence.
lowbit::result<calibration_samples> sample_text(std::string_view text, const std::string& source, const tokeniser& words,
                                                const model_config& c, const sampling_plan& plan);

/// Sequences that the model in `s` writes at temperature 1: calibration without a text.
calibration_samples sample_model(session& s, int bos, const model_config& c, const sampling_plan& plan,
                                 const std::function<void(std::size_t, std::size_t)>& progress = {});

}  // namespace llm
