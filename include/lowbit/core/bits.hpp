// Bit fields in byte arrays, and arithmetic that cannot wrap.
//
// Bits are numbered from the least significant bit of byte 0: bit i is bit i % 8 of byte i / 8, which is how every layout in
// this library counts. These are the definitions that the vectorised code is tested against, not the hot path.
#pragma once

#include <lowbit/core/config.hpp>

#include <limits>
#include <optional>

namespace lowbit {

/// The `width` (0 to 8) bits of `bytes` that start at bit `bit`.
LOWBIT_ALWAYS_INLINE constexpr unsigned read_bits(const std::uint8_t* bytes, std::size_t bit, unsigned width) noexcept {
  unsigned value = 0;
  for (unsigned i = 0; i < width; ++i)
    value |= ((bytes[(bit + i) / 8] >> ((bit + i) % 8)) & 1u) << i;
  return value;
}

/// Sets the `width` bits that start at bit `bit` to the low bits of `value`; other bits are kept.
LOWBIT_ALWAYS_INLINE constexpr void write_bits(std::uint8_t* bytes, std::size_t bit, unsigned width, unsigned value) noexcept {
  for (unsigned i = 0; i < width; ++i) {
    const auto mask = static_cast<std::uint8_t>(1u << ((bit + i) % 8));
    std::uint8_t& byte = bytes[(bit + i) / 8];
    byte = static_cast<std::uint8_t>((value >> i) & 1u ? byte | mask : byte & ~mask);
  }
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
