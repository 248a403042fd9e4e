// Registers out of panels: the codes of a step, the rows' scales, zero-points and sub-scales, and the walk over a block's steps. What a
// product does with them is integer_tile.hpp's and multiply_exactly.hpp's business.
#pragma once

#include <lowbit/kernel/numbers.hpp>
#include <lowbit/kernel/panel.hpp>

namespace lowbit::kernel::detail {

/// Line i of a slab, for load_step. `slab` already points at the register's lanes.
template <class Arch>
LOWBIT_ALWAYS_INLINE auto lines_in_memory(const std::uint8_t* slab) noexcept {
  return [slab](std::size_t i) LOWBIT_INLINE_LAMBDA { return bytes<Arch>::load_unaligned(slab + i * step_bytes); };
}

/// Step s of a plane whose first line is `first`: Width bits of every code, at their Place in it.
template <class Arch, unsigned Width, unsigned Place, class Line>
LOWBIT_ALWAYS_INLINE bytes<Arch> load_bits(const Line& line, std::size_t first, std::size_t s) noexcept {
  constexpr std::size_t steps_of_line = 8 / Width;
  const int right = static_cast<int>(s % steps_of_line * Width) - static_cast<int>(Place);
  return simd::moved_bits<((1u << Width) - 1) << Place, Arch>(line(first + s / steps_of_line), right, Arch{});
}

/// Step s (0 … 7) of a slab: one register of codes. `line(i)` gives the slab's lines, as many as a code has bits.
template <class Arch, unsigned Bits, class Line>
LOWBIT_ALWAYS_INLINE bytes<Arch> load_step(const Line& line, std::size_t s) noexcept {
  if constexpr (Bits == 8) {
    return line(s);
  } else {
    constexpr unsigned four = Bits & 4u, two = Bits & 2u, one = Bits & 1u;
    bytes<Arch> code;
    if constexpr (four != 0) code = load_bits<Arch, 4, 0>(line, 0, s);
    if constexpr (two != 0) {
      const auto part = load_bits<Arch, 2, four>(line, four, s);
      if constexpr (four != 0) code |= part;
      else code = part;
    }
    if constexpr (one != 0) {
      const auto part = load_bits<Arch, 1, four + two>(line, four + two, s);
      if constexpr (Bits != 1) code |= part;
      else code = part;
    }
    return code;
  }
}

/// The rows' stored zero-points, negative, as pairs (z, 128 z) that multiply a split sum.
template <class Arch>
LOWBIT_ALWAYS_INLINE ints<Arch> load_zero_pairs(const panel_layout& p, const std::uint8_t* header, std::size_t row) noexcept {
  const ints<Arch> z = ints<Arch>(p.zero_bias) - simd::load_widened<Arch>(header + p.zero_at + row, Arch{});
  return (z & ints<Arch>(0xffff)) | (z << 23);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE ints<Arch> load_zero(const panel_layout& p, const std::uint8_t* header, std::size_t row) noexcept {
  if (!p.stored_zero) return ints<Arch>(p.zero);
  return simd::load_widened<Arch>(header + p.zero_at + row, Arch{}) - ints<Arch>(p.zero_bias);
}

/// Sub-scale and sub-minimum j of the rows of one register.
template <class Arch, sub_kind Sub>
LOWBIT_ALWAYS_INLINE ints<Arch> load_sub_scale(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
  const std::uint8_t* const at = header + p.sub_scale_at + j * panel_rows + row;
  if constexpr (Sub == sub_kind::nibbles) return simd::load_widened<Arch>(at, Arch{}) & ints<Arch>(15);
  else return simd::load_widened<Arch>(reinterpret_cast<const std::int8_t*>(at), Arch{});
}
template <class Arch, sub_kind Sub>
LOWBIT_ALWAYS_INLINE ints<Arch> load_sub_minimum(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
  if constexpr (Sub == sub_kind::nibbles) return simd::load_widened<Arch>(header + p.sub_scale_at + j * panel_rows + row, Arch{}) >> 4;
  else return simd::load_widened<Arch>(header + p.sub_minimum_at + j * panel_rows + row, Arch{});
}
/// Sub-minima 2j and 2j + 1 as two 16-bit numbers; a missing last one is zero.
template <class Arch, sub_kind Sub>
LOWBIT_ALWAYS_INLINE ints<Arch> load_sub_minima(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
  const auto low = load_sub_minimum<Arch, Sub>(p, header, 2 * j, row);
  if (2 * j + 1 == p.sub_blocks) return low;
  return low | load_sub_minimum<Arch, Sub>(p, header, 2 * j + 1, row) << 16;
}

/// Reads a byte of every cache line. The processor's prefetcher follows loads, not prefetch instructions: a header that is skipped over
/// breaks the stream and costs up to half the bandwidth of memory.
LOWBIT_ALWAYS_INLINE void touch_lines(const std::uint8_t* p, std::size_t bytes) noexcept {
  for (std::size_t i = 0; i < bytes; i += 64) (void)*static_cast<const volatile std::uint8_t*>(p + i);
}

/// Asks for what follows some bytes of a panel, where the architecture gains by it and Tokens are few.
template <class Arch, std::size_t Tokens>
LOWBIT_ALWAYS_INLINE void prefetch_after(const std::uint8_t* p, std::size_t bytes) noexcept {
  constexpr std::size_t ahead = 4096;
  if constexpr (simd::prefetches<Arch> && Tokens <= 2)
    for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + ahead + i);
}

/// Calls f(where the block's header is, where its unit's codes are, the block's first step among them) for every block of a panel.
template <class F>
LOWBIT_ALWAYS_INLINE void for_each_block(const panel_layout& p, std::size_t blocks, F&& f) noexcept {
  for (std::size_t unit = 0; blocks != 0; unit += p.unit_bytes()) {
    std::size_t header = unit, first_step = 0;
    for (std::size_t left = p.blocks_per_unit; left != 0 && blocks != 0; --left, --blocks, header += p.header_bytes, first_step += p.block_steps())
      f(header, unit + p.unit_headers(), first_step);
  }
}

/// Walks the steps of a block, calling step(slab's offset, step in slab, step in block), and begins(j) and ends(j) around sub-block j.
/// Where slabs are walked whole, or in halves, enters(slab's offset) comes before the first step of each (of each half, where that is a block).
template <stepping Step, bool TwoLevel, class OnSlab, class OnBegin, class OnStep, class OnEnd>
LOWBIT_ALWAYS_INLINE void walk_block(const panel_layout& p, std::size_t first_step, OnSlab&& enters, OnBegin&& begins, OnStep&& step,
                                     OnEnd&& ends) noexcept {
  const std::size_t slab_bytes = p.slab_bytes(), sub_blocks = TwoLevel ? p.sub_blocks : 1;
  if constexpr (Step == stepping::slabs) {
    std::size_t at = first_step / slab_steps * slab_bytes, k = 0;
    for (std::size_t j = 0; j < sub_blocks; ++j) {
      begins(j);
      for (std::size_t left = p.sub_steps / slab_steps; left != 0; --left, at += slab_bytes, k += slab_steps) {
        enters(at);
        LOWBIT_UNROLL
        for (std::size_t s = 0; s < slab_steps; ++s) step(at, s, k + s);
      }
      ends(j);
    }
  } else if constexpr (Step == stepping::half_slabs && !TwoLevel) {
    const std::size_t at = first_step / slab_steps * slab_bytes;
    constexpr std::size_t half = slab_steps / 2;
    enters(at);
    begins(0);
    if (first_step % slab_steps == 0) {
      LOWBIT_UNROLL
      for (std::size_t s = 0; s < half; ++s) step(at, s, s);
    } else {
      LOWBIT_UNROLL
      for (std::size_t s = half; s < slab_steps; ++s) step(at, s, s - half);
    }
    ends(0);
  } else if constexpr (Step == stepping::half_slabs) {
    std::size_t at = first_step / slab_steps * slab_bytes, k = 0;
    for (std::size_t j = 0; j < sub_blocks; j += 2, at += slab_bytes, k += slab_steps) {
      enters(at);
      begins(j);
      LOWBIT_UNROLL
      for (std::size_t s = 0; s < slab_steps / 2; ++s) step(at, s, k + s);
      ends(j);
      begins(j + 1);
      LOWBIT_UNROLL
      for (std::size_t s = slab_steps / 2; s < slab_steps; ++s) step(at, s, k + s);
      ends(j + 1);
    }
  } else {
    std::size_t k = 0;
    for (std::size_t j = 0; j < sub_blocks; ++j) {
      begins(j);
      for (std::size_t i = 0; i < p.sub_steps; ++i, ++k)
        step((first_step + k) / slab_steps * slab_bytes, (first_step + k) % slab_steps, k);
      ends(j);
    }
  }
}

}  // namespace lowbit::kernel::detail
