// The codes of a row of blocks as a byte each, and back: for who moves codes between layouts without looking at values.
#pragma once

#include <lowbit/kernel/dispatch.hpp>

#include <algorithm>

namespace lowbit {

namespace detail {
/// Calls f(first block, blocks, first code, codes) on the pieces that the kernels take.
template <class F>
void for_code_pieces(const format_spec& s, std::size_t cols, F&& f) {
  const std::size_t blocks = s.row_blocks(cols), together = std::max<std::size_t>(kernel::piece / s.block, 1);
  for (std::size_t b = 0; b < blocks; b += together)
    for (std::size_t first = 0; first < s.block; first += kernel::piece)
      f(b, std::min(together, blocks - b), first, std::min<std::size_t>(kernel::piece, s.block - first));
}
}  // namespace detail

/// codes[row_blocks(cols) * block], the padding of a ragged last block too.
inline void read_row_codes(const format_spec& s, const std::uint8_t* row, std::size_t cols, std::uint8_t* codes) noexcept {
  detail::for_code_pieces(s, cols, [&](std::size_t b, std::size_t blocks, std::size_t first, std::size_t count) {
    LOWBIT_BEST_KERNEL(unpack_codes)(s, row + b * s.bytes, blocks, first, count, codes + b * s.block + first);
  });
}

/// The inverse, into blocks whose code bits are zero.
inline void write_row_codes(const format_spec& s, const std::uint8_t* codes, std::size_t cols, std::uint8_t* row) noexcept {
  detail::for_code_pieces(s, cols, [&](std::size_t b, std::size_t blocks, std::size_t first, std::size_t count) {
    LOWBIT_BEST_KERNEL(pack_codes)(s, codes + b * s.block + first, blocks, first, count, row + b * s.bytes);
  });
}

}  // namespace lowbit
