// The search for weights that have no value, which a loader owes its users: one NaN in a scale makes every later result NaN.
#pragma once

#include <lowbit/core/error.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <atomic>
#include <cstring>
#include <optional>

namespace lowbit {

/// Where a block is.
struct block_place {
  std::size_t row = 0, col = 0;  ///< of its first weight
};

namespace detail {

/// Whether one of `count` numbers, `stride` bytes apart, is NaN or infinite: has every bit of its exponent set. By integers: the values
/// themselves cost ten times as much, a third of the time that a model took to load.
inline bool any_non_finite(number type, const std::uint8_t* numbers, std::size_t count, std::size_t stride) noexcept {
  const auto any = [&](auto exponent, std::size_t apart) LOWBIT_INLINE_LAMBDA {
    unsigned found = 0;
    for (std::size_t i = 0; i < count; ++i) {
      decltype(exponent) bits;
      std::memcpy(&bits, numbers + i * apart, sizeof bits);
      found |= (bits & exponent) == exponent;
    }
    return found != 0;
  };
  const auto any_of = [&](auto exponent) {
    return stride == sizeof exponent ? any(exponent, sizeof exponent) : any(exponent, stride);  // side by side they are vectorised
  };
  switch (type) {
    case number::f32: return any_of(std::uint32_t{0x7f80'0000});
    case number::f16: return any_of(std::uint16_t{0x7c00});
    case number::bf16: return any_of(std::uint16_t{0x7f80});
    case number::e8m0_half:
    case number::e4m3_half:
    case number::none: break;
  }
  return false;
}

/// The same of the scales and minima of `count` blocks in a row, or of a float format's weights.
inline bool any_non_finite(const format_spec& s, const std::uint8_t* blocks, std::size_t count) noexcept {
  if (s.is_float()) return any_non_finite(s.element, blocks, count, s.bytes);
  if (s.is_recoded()) {
    std::uint8_t planes[max_recoded_bytes];
    for (std::size_t b = 0; b < count; ++b) {
      s.recode.decode(blocks + b * s.bytes, planes);
      if (any_non_finite(s.planes(), planes, 1)) return true;
    }
    return false;
  }
  return any_non_finite(s.scale.type, blocks + s.scale.at, count, s.bytes) ||
         any_non_finite(s.minimum.type, blocks + s.minimum.at, count, s.bytes);
}

}  // namespace detail

/// The first block of a matrix whose scale or minimum is NaN or infinite; of floats, the first weight that is. It reads no codes, but
/// where a format is recoded: what a loader can afford to do with every file, where find_in_weights (io/integrity.hpp) looks at everything.
inline std::optional<block_place> find_non_finite(packed_view w) noexcept {
  const std::size_t blocks = w.spec->row_blocks(w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) {
    if (!detail::any_non_finite(*w.spec, w.row(r), blocks)) continue;
    for (std::size_t b = 0; b < blocks; ++b)
      if (detail::any_non_finite(*w.spec, w.row(r) + b * w.spec->bytes, 1)) return block_place{r, b * w.spec->block};
  }
  return std::nullopt;
}

/// The same, in parallel over rows.
template <executor E>
std::optional<block_place> find_non_finite(packed_view w, E& executor) {
  std::atomic<std::size_t> row{w.rows};
  for_parts(executor, w.rows, 16, [&](std::size_t begin, std::size_t end) {
    const auto found = find_non_finite(w.middle_rows(begin, end - begin));
    if (!found) return;
    const std::size_t r = begin + found->row;
    for (std::size_t lowest = row; r < lowest && !row.compare_exchange_weak(lowest, r);) {
    }
  });
  if (row == w.rows) return std::nullopt;
  return block_place{row, find_non_finite(w.middle_rows(row, 1)).value_or(block_place{}).col};  // a file may change meanwhile
}

/// What is said of a matrix with such a block.
inline failure non_finite(block_place at) {
  return {errc::bad_value, "a weight is not finite, at row " + std::to_string(at.row) + ", column " + std::to_string(at.col)};
}

}  // namespace lowbit
