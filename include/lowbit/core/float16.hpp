// The small floating-point types of low-bit formats: f16, bf16, e8m0, e4m3. Storage only; arithmetic happens in float.
//
// Conversions are exact where the target can hold the value, and round to nearest, ties to even, where it cannot (IEEE 754).
// They use integer arithmetic alone, so that no compiler flag (-ffast-math, -mf16c) changes a bit.
#pragma once

#include <lowbit/core/config.hpp>

#include <bit>

namespace lowbit {

/// IEEE 754 binary16 as its 16 bits.
struct f16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(f16, f16) = default;
};

/// bfloat16: the upper half of a binary32.
struct bf16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bf16, bf16) = default;
};

/// The value of a binary16, exactly.
LOWBIT_ALWAYS_INLINE constexpr float to_float(f16 h) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (h.bits >> 10) & 31u;
  const std::uint32_t mantissa = h.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // Subnormal: mantissa * 2^-24. Shift its leading one up to bit 10, lowering the exponent alike.
  const auto shift = static_cast<std::uint32_t>(std::countl_zero(mantissa)) - 21;
  return std::bit_cast<float>(sign | (113 - shift) << 23 | ((mantissa << shift) & 0x3ffu) << 13);
}

/// The value of a bfloat16, exactly.
LOWBIT_ALWAYS_INLINE constexpr float to_float(bf16 b) noexcept { return std::bit_cast<float>(static_cast<std::uint32_t>(b.bits) << 16); }

/// The nearest binary16 (ties to even); too large becomes infinity, NaN stays a quiet NaN.
LOWBIT_ALWAYS_INLINE constexpr f16 to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu))};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  std::uint32_t kept, dropped, half;
  if (magnitude >= 0x38800000u) {  // normal: 13 mantissa bits go
    kept = (magnitude - 0x38000000u) >> 13;
    dropped = magnitude & 0x1fffu;
    half = 0x1000u;
  } else {  // subnormal: in units of 2^-24; below 2^-25 nothing is left
    const std::uint32_t shift = 126 - (magnitude >> 23);
    if (shift > 24) return {static_cast<std::uint16_t>(sign)};
    const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    kept = mantissa >> shift;
    dropped = mantissa & ((1u << shift) - 1);
    half = 1u << (shift - 1);
  }
  kept += dropped > half || (dropped == half && (kept & 1u));
  return {static_cast<std::uint16_t>(sign | kept)};
}

/// The nearest bfloat16 (ties to even); NaN stays a quiet NaN.
LOWBIT_ALWAYS_INLINE constexpr bf16 to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t quiet = (bits >> 16) | 64u, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};  // no branch: loops over it are vectorised
}

/// The value of an OCP MX shared exponent, 2^(e - 127); 255 is NaN (OCP Microscaling v1.0, 5.4.1).
LOWBIT_ALWAYS_INLINE constexpr float e8m0_to_float(std::uint8_t e) noexcept {
  if (e == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(e == 0 ? 0x00400000u : static_cast<std::uint32_t>(e) << 23);
}

/// Half of it, 2^(e - 128), for code tables that hold doubled values; 255 is 2^127 (ggml's GGML_E8M0_TO_FP32_HALF).
LOWBIT_ALWAYS_INLINE constexpr float e8m0_half_to_float(std::uint8_t e) noexcept {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
}

/// The value of an unsigned e4m3 (bias 7, no infinity); 0x7f counts as 0 (ggml's UE4M3, before its factor of one half).
LOWBIT_ALWAYS_INLINE constexpr float e4m3_to_float(std::uint8_t e) noexcept {
  const std::uint32_t exponent = (e >> 3) & 15u, mantissa = e & 7u;
  if ((e & 0x7fu) == 0x7fu) return 0.0f;
  if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-9f;
  return std::bit_cast<float>((exponent + 120) << 23 | mantissa << 20);
}

/// The nearest unsigned e4m3 (halves up, at most 448), as ggml's fp32_to_ue4m3 rounds; what is not above zero becomes 0.
LOWBIT_ALWAYS_INLINE constexpr std::uint8_t to_e4m3(float value) noexcept {
  if (!(value > 0.0f)) return 0;
  if (value >= 448.0f) return 0x7e;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) + 0x80000u;  // half of the last place that stays
  const int exponent = static_cast<int>(std::bit_cast<std::uint32_t>(value) >> 23) - 120;
  if (exponent <= 0) return static_cast<std::uint8_t>(value * 512.0f + 0.5f);  // subnormal; 8 of them are the first normal number
  const std::uint32_t rounded = (bits >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(rounded < 0x7e ? rounded : 0x7e);
}

/// Half of an unsigned e4m3, for code tables that hold doubled values (ggml's UE4M3 scales).
LOWBIT_ALWAYS_INLINE constexpr float e4m3_half_to_float(std::uint8_t e) noexcept { return e4m3_to_float(e) * 0.5f; }

}  // namespace lowbit
