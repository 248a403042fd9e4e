// The keys and values of past tokens, by layer and head: what attention looks back on.
//
// Laid out for vectors of 16: keys are [head_dim, position], so that 16 positions are scored at once, values are
// [position, head_dim], so that 16 elements are mixed at once; both padded with zeros to whole vectors.
#pragma once

#include "config.hpp"
#include "matrix.hpp"

#include <lowbit/core/bits.hpp>

#include <vector>

namespace llm {

class kv_cache {
 public:
  static constexpr std::size_t lanes = 16;

  /// Room for `positions` tokens.
  kv_cache(const model_config& c, std::size_t positions)
      : heads_(c.kv_heads), head_dim_(c.head_dim), capacity_(positions), key_stride_(lowbit::round_up(positions, lanes)),
        value_stride_(lowbit::round_up(c.head_dim, lanes)), keys_(c.layers * heads_ * head_dim_ * key_stride_),
        values_(c.layers * heads_ * positions * value_stride_) {}

  /// Element i of a head's keys is at [i * key_stride() + position].
  [[nodiscard]] const float* keys(std::size_t layer, std::size_t head) const noexcept {
    return keys_.data() + (layer * heads_ + head) * head_dim_ * key_stride_;
  }
  [[nodiscard]] std::size_t key_stride() const noexcept { return key_stride_; }
  /// Element i of a head's values is at [position * value_stride() + i].
  [[nodiscard]] const float* values(std::size_t layer, std::size_t head) const noexcept {
    return values_.data() + (layer * heads_ + head) * capacity_ * value_stride_;
  }
  [[nodiscard]] std::size_t value_stride() const noexcept { return value_stride_; }

  /// Writes the keys and values, [tokens, kv_heads * head_dim] each, of the tokens after the last. Expects room for them.
  void store(std::size_t layer, const matrix& keys, const matrix& values) {
    LOWBIT_EXPECTS(keys.rows() <= capacity_ - size_ && keys.rows() == values.rows());
    for (std::size_t h = 0; h < heads_; ++h) {
      float* k = keys_.data() + (layer * heads_ + h) * head_dim_ * key_stride_ + size_;
      float* v = values_.data() + ((layer * heads_ + h) * capacity_ + size_) * value_stride_;
      for (std::size_t t = 0; t < keys.rows(); ++t)
        for (std::size_t i = 0; i < head_dim_; ++i) {
          k[i * key_stride_ + t] = keys.row(t)[h * head_dim_ + i];
          v[t * value_stride_ + i] = values.row(t)[h * head_dim_ + i];
        }
    }
  }
  /// Counts `tokens` more, once all layers are stored.
  void advance(std::size_t tokens) noexcept { size_ += tokens; }
  /// Forgets everything.
  void clear() noexcept { size_ = 0; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }

 private:
  std::size_t heads_, head_dim_, capacity_, key_stride_, value_stride_, size_ = 0;
  std::vector<float> keys_, values_;
};

}  // namespace llm
