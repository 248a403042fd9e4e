// Where the finished steps of a calibrated quantisation are kept: in memory, or in a work folder, from which an interrupted run goes on.
//
// A step is the tensors that became final together: the embedding, a layer, the output matrix. Its file appears when it is whole and names
// the inputs and options that it belongs to by a hash; tensors are mapped again when they are asked for, so that memory holds one step.
#pragma once

#include "../files/checkpoint.hpp"

#include <lowbit/core/error.hpp>

#include <filesystem>
#include <map>

namespace llm {

/// Weights by their tensors' names (GGUF's).
using named_weights = std::map<std::string, weights, std::less<>>;

/// A copy of [rows, cols] floats, as weights in float32.
weights stored_floats(const float* values, std::size_t rows, std::size_t cols);

class step_store {
 public:
  /// Keeps everything in memory.
  step_store() = default;
  /// Keeps steps as files of `folder`, which is made. With `resume`, steps that are there already count; without it they are removed.
  /// Fails where they belong to another `hash`, or are damaged.
  static lowbit::result<step_store> in_folder(const std::filesystem::path& folder, std::uint64_t hash, bool resume);

  /// How many steps are finished: always the first ones.
  [[nodiscard]] std::size_t finished() const noexcept { return finished_; }
  /// The next step. Fails where its file cannot be written.
  lowbit::status keep(named_weights step);
  /// A finished tensor, or null.
  [[nodiscard]] const weights* find(std::string_view tensor) const;

  /// Removes the work folder: the result is safe elsewhere.
  void remove();

 private:
  [[nodiscard]] std::filesystem::path file_of(std::size_t step) const;
  lowbit::status read_step(std::size_t step);

  std::filesystem::path folder_;  // empty: in memory
  std::uint64_t hash_ = 0;
  std::size_t finished_ = 0;
  named_weights tensors_;
  std::vector<lowbit::mapped_file> files_;  // that tensors_ lie in
};

}  // namespace llm
