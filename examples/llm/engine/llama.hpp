// A Llama: its weights, and the pass over them that turns tokens into logits.
//
// Weights are lowbit's run layout, whatever format they are in; the engine only ever calls multiply and read_row on them.
#pragma once

#include "layer.hpp"

#include <optional>
#include <span>

namespace llm {

struct llama {
  model_config config;
  lowbit::panel_matrix embedding;             ///< [vocabulary, hidden]
  std::optional<lowbit::panel_matrix> head;   ///< [vocabulary, hidden]; nothing: the embedding serves (tied)
  std::vector<float> norm;
  std::vector<layer_weights> layers;

  /// The matrix that gives the logits.
  [[nodiscard]] const lowbit::panel_matrix& output_matrix() const noexcept { return head ? *head : embedding; }
};

/// One sequence being read or written: the cache and the scratch memory. The model and the threads must outlive it.
class session {
 public:
  session(const llama& model, std::size_t positions, thread_pool& threads, lowbit::precision precision,
          const lowbit::format_spec* kv_format = &lowbit::spec_of<lowbit::f32>)
      : model_(model), cache_(model.config, positions, {kv_format, precision}), steps_(model.config, threads, precision) {}

  /// Appends tokens to the sequence. Returns the logits [wanted, vocabulary] of the last `wanted` of them, until the next call.
  /// Expects ids below the vocabulary's size, wanted <= tokens.size(), and room for them.
  const matrix& feed(std::span<const int> tokens, std::size_t wanted = 1);

  /// Forgets the sequence.
  void clear() noexcept { cache_.clear(); }
  /// Tokens so far, and how many fit.
  [[nodiscard]] std::size_t size() const noexcept { return cache_.size(); }
  [[nodiscard]] std::size_t capacity() const noexcept { return cache_.capacity(); }

 private:
  const llama& model_;
  kv_cache cache_;
  layer_steps steps_;
  matrix x_, last_, logits_;
};

}  // namespace llm
