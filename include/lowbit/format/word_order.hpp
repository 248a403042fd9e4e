// Integers in the words of a tensor, as checkpoints pack them: which bits of a run of words each integer of a tile has.
//
// A tile is the fewest integers whose words begin anew: 32 codes of 3 bits in three words, 8 nibbles in one. Where integer i of it lies is
// an integer_field, as in a block format: dense streams, GPTQ's planes and AWQ's interleaved nibbles are data, not code.
#pragma once

#include <lowbit/format/spec.hpp>

namespace lowbit {

/// How a row of integers lies in words. A row's last tile may be cut short; it has only the words that its integers touch.
struct word_order {
  integer_field field{};      ///< the place of integer i of a tile, in bits from the tile's first word
  unsigned integers = 1;      ///< of a tile, at most 64
  unsigned words = 1;         ///< of a tile, at most 32 bytes
  unsigned word_bytes = 4;    ///< 1, 2 or 4

  /// Words that `count` integers take.
  [[nodiscard]] constexpr std::size_t words_for(std::size_t count) const noexcept {
    std::size_t last = 0;
    for (std::size_t i = 0; i < count % integers; ++i)
      for (const plane& p : field.planes)
        if (p.bits != 0 && p.position(i) + p.bits > last) last = p.position(i) + p.bits;
    return count / integers * words + ceil_div(last, 8 * std::size_t{word_bytes});
  }
  [[nodiscard]] constexpr std::size_t tile_bytes() const noexcept { return std::size_t{words} * word_bytes; }
};

/// One stream of bits, the first integer lowest: GPTQ of 2, 3, 4 and 8 bits; compressed-tensors since its dense packer.
constexpr word_order dense_words(unsigned bits) noexcept { return {{{plane{bits, 0, 0, {{32}, {static_cast<int>(bits)}}}}}, 32, bits, 4}; }

/// As many integers as fit in a word, bits left over unused: compressed-tensors' older packer.
constexpr word_order padded_words(unsigned bits) noexcept {
  return {{{plane{bits, 0, 0, {{32 / bits}, {static_cast<int>(bits)}}}}}, 32 / bits, 1, 4};
}

/// Planes of 4, 2 and 1 bits, the low one first, each a dense stream of 32 integers: GPTQModel's gptq_p (docs/gptq_planar.md).
constexpr word_order planar_words(unsigned bits) noexcept {
  if (bits == 8) return dense_words(8);
  word_order o{{}, 32, bits, 4};
  unsigned done = 0;
  std::size_t k = 0;
  for (const unsigned width : {4u, 2u, 1u})
    if ((bits & width) != 0) {
      o.field.planes[k++] = {width, done, 32 * done, {{32}, {static_cast<int>(width)}}};
      done += width;
    }
  return o;
}

/// Eight nibbles of a word in the order 0, 2, 4, 6, 1, 3, 5, 7: AWQ's GEMM (AutoAWQ packing_utils.py).
inline constexpr word_order awq_nibbles{{{plane{4, 0, 0, {{2, 4}, {16, 4}}}}}, 8, 1, 4};
/// 64 nibbles in 16 words of 16 bits: k = 8 j + 2 i + c of each 32 lies at nibble 8 i + 4 c + j (llm-awq qmodule.py, pack_intweight).
inline constexpr word_order awq_fast_nibbles{{{plane{4, 0, 0, {{2, 4, 4, 2}, {16, 32, 4, 128}}}}}, 64, 16, 2};
/// Two nibbles of a byte, the first in the low one (NVFP4, MXFP4 in safetensors).
inline constexpr word_order low_nibble_first{{{plane{4, 0, 0, {{2}, {4}}}}}, 2, 1, 1};
/// A byte each.
inline constexpr word_order single_bytes{{{plane{8, 0, 0, {{1}, {8}}}}}, 1, 1, 1};

}  // namespace lowbit
