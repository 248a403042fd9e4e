// Matrices of small integers in a checkpoint's tensors: along which dimension they share words, and which dimension the tensor ends with.
//
// GPTQ packs codes along the input and zero-points along the output, AWQ both along the output, compressed-tensors the other way round
// from GPTQ. All are one description: a word_order, two axes, and how many rows' tiles alternate in a line (AWQ's fast kernel).
#pragma once

#include <lowbit/format/word_order.hpp>

#include <algorithm>
#include <cstring>

namespace lowbit {

/// A dimension of a [out, in] matrix (or of its [out, groups] zero-points).
enum class axis : std::uint8_t { in, out };

struct integer_layout {
  word_order order{};
  axis packed = axis::in;      ///< along which the integers of a tile follow each other
  axis last = axis::in;        ///< the tensor's fastest dimension
  unsigned interleave = 1;     ///< rows whose tiles alternate in one line, where both axes are `in`

  /// The tensor's two extents, in words, for a [rows, cols] matrix of whole interleaved rows.
  [[nodiscard]] constexpr std::array<std::uint64_t, 2> shape(std::size_t rows, std::size_t cols) const noexcept {
    const std::size_t words = order.words_for(packed == axis::in ? cols : rows);
    if (packed == axis::in) return last == axis::in ? std::array<std::uint64_t, 2>{rows / interleave, words * interleave} : std::array<std::uint64_t, 2>{words, rows};
    return last == axis::out ? std::array<std::uint64_t, 2>{cols, words} : std::array<std::uint64_t, 2>{words, cols};
  }
  /// Bytes that the tensor takes.
  [[nodiscard]] constexpr std::size_t bytes(std::size_t rows, std::size_t cols) const noexcept {
    const auto s = shape(rows, cols);
    return static_cast<std::size_t>(s[0] * s[1]) * order.word_bytes;
  }
};

namespace detail {

/// Moves integers between a byte each and a tensor of words: tiles are gathered into a few bytes, where every integer is a shift away.
template <bool ToTensor>
class integer_mover {
 public:
  using tensor_byte = std::conditional_t<ToTensor, std::uint8_t, const std::uint8_t>;
  using value_byte = std::conditional_t<ToTensor, const std::uint8_t, std::uint8_t>;

  integer_mover(const integer_layout& l, tensor_byte* tensor, std::size_t rows, std::size_t cols) : l_(l), tensor_(tensor), rows_(rows), cols_(cols) {
    for (std::size_t k = 0; k < 3 && l.order.field.planes[k].bits != 0; ++k)
      for (std::size_t i = 0; i < l.order.integers; ++i) at_[k][i] = static_cast<std::uint16_t>(l.order.field.planes[k].position(i));
    length_ = l.packed == axis::in ? cols : rows;
    lanes_ = l.packed == axis::in ? rows : cols;
    words_ = l.order.words_for(length_);
  }

  /// Rows [begin, end), values[end - begin, stride]. Where tiles lie along `out`, begin is at the start of one, end of one or of all.
  void operator()(std::size_t begin, std::size_t end, value_byte* values, std::size_t stride) const noexcept {
    const std::size_t n = l_.order.integers;
    if (l_.packed == axis::out) {
      for (std::size_t t = begin / n; t * n < end; ++t)
        for (std::size_t c = 0; c < cols_; ++c) tile(t, c, values + (t * n - begin) * stride + c, stride);
    } else if (l_.last == axis::in) {
      for (std::size_t r = begin; r < end; ++r)
        for (std::size_t t = 0; t * n < cols_; ++t) tile(t, r, values + (r - begin) * stride + t * n, 1);
    } else {
      for (std::size_t t = 0; t * n < cols_; ++t)
        for (std::size_t r = begin; r < end; ++r) tile(t, r, values + (r - begin) * stride + t * n, 1);
    }
  }

 private:
  // Tile t of a lane; its integers are `step` bytes apart.
  void tile(std::size_t t, std::size_t lane, value_byte* values, std::size_t step) const noexcept {
    const word_order& o = l_.order;
    const std::size_t count = std::min<std::size_t>(o.integers, length_ - t * o.integers);
    const std::size_t words = std::min<std::size_t>(o.words, words_ - t * o.words);
    const bool contiguous = l_.packed == l_.last;
    const std::size_t first = contiguous ? lane / l_.interleave * words_ * l_.interleave + t * o.words * l_.interleave + lane % l_.interleave * o.words
                                         : t * o.words * lanes_ + lane;
    tensor_byte* const from = tensor_ + first * o.word_bytes;
    const std::size_t apart = contiguous ? o.word_bytes : lanes_ * o.word_bytes;
    std::uint8_t bytes[32 + 1] = {};  // one more: an integer is read as two bytes
    if constexpr (!ToTensor)
      for (std::size_t w = 0; w < words; ++w) std::memcpy(bytes + w * o.word_bytes, from + w * apart, o.word_bytes);
    for (std::size_t k = 0; k < 3 && o.field.planes[k].bits != 0; ++k) {
      const unsigned mask = (1u << o.field.planes[k].bits) - 1, shift = o.field.planes[k].shift;
      for (std::size_t i = 0; i < count; ++i) {
        std::uint16_t two;
        std::uint8_t* const at = bytes + at_[k][i] / 8;
        std::memcpy(&two, at, 2);
        if constexpr (ToTensor) {
          two = static_cast<std::uint16_t>(two | ((static_cast<unsigned>(values[i * step]) >> shift) & mask) << at_[k][i] % 8);
          std::memcpy(at, &two, 2);
        } else {
          const unsigned part = ((two >> at_[k][i] % 8) & mask) << shift;
          values[i * step] = static_cast<std::uint8_t>(k == 0 ? part : values[i * step] | part);
        }
      }
    }
    if constexpr (ToTensor)
      for (std::size_t w = 0; w < words; ++w) std::memcpy(from + w * apart, bytes + w * o.word_bytes, o.word_bytes);
  }

  const integer_layout& l_;
  tensor_byte* tensor_;
  std::size_t rows_, cols_, length_ = 0, lanes_ = 0, words_ = 0;
  std::uint16_t at_[3][64] = {};
};

}  // namespace detail

/// Rows [begin, end) of a [rows, cols] matrix out of its tensor, a byte each, `stride` bytes from row to row. `tensor` has
/// layout.bytes(rows, cols) bytes; where tiles lie along `out`, begin and end are multiples of a tile's integers, or end is rows.
inline void read_integers(const integer_layout& layout, const std::uint8_t* tensor, std::size_t rows, std::size_t cols, std::size_t begin,
                          std::size_t end, std::uint8_t* values, std::size_t stride) noexcept {
  detail::integer_mover<false>(layout, tensor, rows, cols)(begin, end, values, stride);
}

/// The inverse. Words belong to whole tiles, so parts may be written by several threads.
inline void write_integers(const integer_layout& layout, std::uint8_t* tensor, std::size_t rows, std::size_t cols, std::size_t begin,
                           std::size_t end, const std::uint8_t* values, std::size_t stride) noexcept {
  detail::integer_mover<true>(layout, tensor, rows, cols)(begin, end, values, stride);
}

}  // namespace lowbit
