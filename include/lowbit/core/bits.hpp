// Bit fields in byte arrays, and arithmetic that cannot wrap.
//
// Bits are numbered from the least significant bit of byte 0: bit i is bit i % 8 of byte i / 8, which is how every layout in
// this library counts. These are the definitions that the vectorised code is tested against, not the hot path.
#pragma once

#include <lowbit/core/config.hpp>

#include <limits>
#include <optional>

namespace lowbit {

/// The `width` (0 to 8) bits of `bytes` that start at bit `bit`. Reads only bytes that hold some of them.
LOWBIT_ALWAYS_INLINE constexpr unsigned read_bits(const std::uint8_t* bytes, std::size_t bit, unsigned width) noexcept {
  if (width == 0) return 0;
  const std::size_t at = bit / 8;
  const auto shift = static_cast<unsigned>(bit % 8);
  const unsigned next = shift + width > 8 ? bytes[at + 1] : 0u;
  return (bytes[at] | next << 8) >> shift & ((1u << width) - 1);
}

/// Sets the `width` (0 to 8) bits that start at bit `bit` to the low bits of `value`; other bits are kept.
LOWBIT_ALWAYS_INLINE constexpr void write_bits(std::uint8_t* bytes, std::size_t bit, unsigned width, unsigned value) noexcept {
  const std::size_t at = bit / 8;
  const auto shift = static_cast<unsigned>(bit % 8);
  const unsigned mask = ((1u << width) - 1) << shift, moved = value << shift & mask;
  const auto set = [&](std::size_t i, unsigned byte) {
    if (const auto m = static_cast<std::uint8_t>(mask >> byte); m != 0)
      bytes[i] = static_cast<std::uint8_t>((bytes[i] & ~m) | (moved >> byte & 0xff));
  };
  set(at, 0);
  set(at + 1, 8);
}

/// a / b rounded up. Expects b > 0.
LOWBIT_ALWAYS_INLINE constexpr std::size_t ceil_div(std::size_t a, std::size_t b) noexcept { return a / b + (a % b != 0); }

/// The least multiple of b that is not below a.
LOWBIT_ALWAYS_INLINE constexpr std::size_t round_up(std::size_t a, std::size_t b) noexcept { return ceil_div(a, b) * b; }

/// a * b, or nothing where it does not fit.
constexpr std::optional<std::size_t> checked_mul(std::size_t a, std::size_t b) noexcept {
  if (a != 0 && b > std::numeric_limits<std::size_t>::max() / a) return std::nullopt;
  return a * b;
}

/// a + b, or nothing where it does not fit.
constexpr std::optional<std::size_t> checked_add(std::size_t a, std::size_t b) noexcept {
  if (b > std::numeric_limits<std::size_t>::max() - a) return std::nullopt;
  return a + b;
}

}  // namespace lowbit
