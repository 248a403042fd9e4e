// The keys and values of past tokens, by layer and head: what attention looks back on, as floats or in any block format. Keys are panels, values
// rows of blocks (lowbit/quantise/growing.hpp), so that scores and weighted sums are the library's products.
#pragma once

#include "config.hpp"
#include "matrix.hpp"

#include <lowbit/matrix/product.hpp>
#include <lowbit/matrix/transposed_product.hpp>
#include <lowbit/quantise/growing.hpp>

#include <vector>

namespace llm {

/// How a cache holds its numbers.
struct kv_storage {
  const lowbit::format_spec* format = &lowbit::spec_of<lowbit::f32>;  ///< expects a format of planes that can be written
  lowbit::precision precision = lowbit::precision::int8;  ///< of queries, where keys are quantised
};

class kv_cache {
 public:
  static constexpr std::size_t rows_at_once = 32;  ///< queries that are best worked on together

  /// Room for `positions` tokens.
  kv_cache(const model_config& c, std::size_t positions, kv_storage storage = {});

  /// Writes the keys and values, [tokens, kv_heads * head_dim] each, of the tokens after the last: once for each layer, then advance().
  /// Expects room for them. Where something that is not finite cannot be quantised, mix() gives NaN from then on.
  void store(std::size_t layer, const matrix& keys, const matrix& values);
  /// Counts `tokens` more, once all layers are stored.
  void advance(std::size_t tokens) noexcept { size_ += tokens; }
  /// Forgets everything.
  void clear();

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  /// Bytes that keys and values take.
  [[nodiscard]] std::size_t size_bytes() const noexcept;

  /// Memory that the two below reuse; one for each thread.
  struct scratch {
    lowbit::workspace products;
    lowbit::transposed_workspace sums;
  };
  /// scores[r, p] = query r · key p, for positions below `seen`.
  void score(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> queries, std::size_t seen, lowbit::matrix_view<float> scores,
             scratch& space) const;
  /// out[r, :] = Σ over positions below `seen` of weights[r, p] value p.
  void mix(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> weights, std::size_t seen, lowbit::matrix_view<float> out,
           scratch& space) const;

 private:
  [[nodiscard]] std::size_t place(std::size_t layer, std::size_t head) const noexcept { return layer * heads_ + head; }

  std::size_t layers_, heads_, head_dim_, capacity_, size_ = 0;
  kv_storage storage_;
  bool finite_ = true;
  std::vector<lowbit::growing_panels> keys_;  // one for each layer and head
  std::vector<lowbit::growing_rows> values_;
};

}  // namespace llm
