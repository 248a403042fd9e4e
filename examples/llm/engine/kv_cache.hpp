// The keys and values of past tokens, by layer: what attention looks back on.
#pragma once

#include "config.hpp"

#include <vector>

namespace llm {

class kv_cache {
 public:
  /// Room for `positions` tokens.
  kv_cache(const model_config& c, std::size_t positions)
      : width_(c.kv_size()), positions_(positions), keys_(c.layers * positions * width_), values_(keys_.size()) {}

  /// [position, kv_heads * head_dim], row-major, of one layer; rows below size() are filled.
  [[nodiscard]] float* keys(std::size_t layer) noexcept { return keys_.data() + layer * positions_ * width_; }
  [[nodiscard]] float* values(std::size_t layer) noexcept { return values_.data() + layer * positions_ * width_; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return positions_; }
  /// Says that `tokens` more rows are filled in every layer.
  void advance(std::size_t tokens) noexcept { size_ += tokens; }
  /// Forgets everything.
  void clear() noexcept { size_ = 0; }

 private:
  std::size_t width_, positions_, size_ = 0;
  std::vector<float> keys_, values_;
};

}  // namespace llm
