// The operations that xsimd does not have, exactly specified, each with a portable definition that an instruction set may replace.
//
// Replacement works as in xsimd: an overload whose last parameter is requires_arch<Tag>, found by inheritance of the tags. Every
// overload returns the same bits. The files included below hold one family of instruction sets each; there are no intrinsics
// anywhere else in lowbit.
#pragma once

#include <lowbit/core/config.hpp>
#include <lowbit/core/float16.hpp>
#include <lowbit/simd/arch.hpp>

#include <array>
#include <cstring>

namespace lowbit::simd {

template <class Tag>
using requires_arch = xsimd::kernel::requires_arch<Tag>;

namespace portable {
template <class Arch, class B>
LOWBIT_ALWAYS_INLINE auto spill(const B& b) noexcept {
  struct { alignas(64) typename B::value_type lane[B::size]; } s;
  b.store_aligned(s.lane);
  return s;
}
}  // namespace portable

/// v itself, loaded into a register here and not where it is first used: the order of loads is the order in the source.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> loaded_now(batch<std::uint8_t, Arch> v, requires_arch<xsimd::generic>) noexcept {
  return v;
}

/// A sum that is computed where the source has it: compilers make a tree of a row of sums, and run out of registers for its leaves.
template <class Arch, class T>
LOWBIT_ALWAYS_INLINE batch<T, Arch> in_order(batch<T, Arch> sum, requires_arch<xsimd::generic>) noexcept {
  return sum;
}

/// A pointer that compilers know nothing of: of what they know they make a variable for every place behind it, and run out of registers for these.
template <class T>
LOWBIT_ALWAYS_INLINE T* one_address(T* p) noexcept {
  asm("" : "+r"(p));
  return p;
}

/// In every byte the bits of Mask, which come from `right` places further up (or, where that is negative, down) in the same byte.
template <unsigned Mask, class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> moved_bits(batch<std::uint8_t, Arch> v, int right, requires_arch<xsimd::generic>) noexcept {
  // No shift of bytes is needed: neighbours' bits fall to the mask.
  using words = batch<std::uint32_t, Arch>;
  const auto all = xsimd::bitwise_cast<std::uint32_t>(v);
  const words moved = right == 0 ? all : right > 0 ? words(all >> right) : words(all << -right);
  return xsimd::bitwise_cast<std::uint8_t>(moved & words(Mask * 0x0101'0101u));
}

// ---- dot4: per 32-bit lane, acc + the sum of four products of bytes -------------------------------------------------------------

/// w holds 0 … 127, x holds -127 … 127. Every architecture returns the exact integer.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::generic>) noexcept {
  // Bytes of a 32-bit lane, sign- or zero-extended by shifts: what any instruction set can do.
  const auto wi = xsimd::bitwise_cast<std::int32_t>(w), xi = xsimd::bitwise_cast<std::int32_t>(x);
  for (int k = 0; k < 4; ++k) acc += ((wi >> (8 * k)) & 0xff) * ((xi << (24 - 8 * k)) >> 24);
  return acc;
}

/// w holds -128 … 127, x holds -127 … 127.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::generic>) noexcept {
  const auto wi = xsimd::bitwise_cast<std::int32_t>(w), xi = xsimd::bitwise_cast<std::int32_t>(x);
  for (int k = 0; k < 4; ++k) acc += ((wi << (24 - 8 * k)) >> 24) * ((xi << (24 - 8 * k)) >> 24);
  return acc;
}

/// Architectures whose u8 x s8 dot is exact for w up to 255: signed weights are then fed as w + 128, and the kernel takes 128 * sum(x)
/// away together with its zero-point.
template <class Arch>
inline constexpr bool exact_u8s8 = false;

/// Architectures that add two products of bytes in one instruction (those with exact_u8s8 add four).
template <class Arch>
inline constexpr bool dots_by_pairs = false;

/// Per 16-bit lane, acc + the sum of two products of bytes; w holds 0 … 127, x holds -127 … 127.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int16_t, Arch> dot2_u7s8(batch<std::int16_t, Arch> acc, batch<std::uint8_t, Arch> w, batch<std::int8_t, Arch> x,
                                                         requires_arch<xsimd::generic>) noexcept {
  const auto wi = xsimd::bitwise_cast<std::int16_t>(w), xi = xsimd::bitwise_cast<std::int16_t>(x);
  return acc + (wi & 0xff) * ((xi << 8) >> 8) + (wi >> 8) * (xi >> 8);
}

/// Per 32-bit lane, acc + the sum of two products of signed 16-bit numbers (no overflow expected).
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<xsimd::generic>) noexcept {
  return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}

/// Architectures that multiply pairs of bfloat16. The two that follow are theirs alone.
template <class Arch>
inline constexpr bool dots_bf16 = false;

/// Per 32-bit lane, acc + the sum of two products of bfloat16.
template <class Arch>
batch<float, Arch> dot2_bf16(batch<float, Arch> acc, batch<std::int32_t, Arch> a, batch<std::int32_t, Arch> b, requires_arch<xsimd::generic>) noexcept = delete;
/// Two columns of 16-bit numbers, one after the other, as pairs: lane r holds both columns' numbers of row r.
template <class Arch>
batch<std::int32_t, Arch> paired(batch<std::int32_t, Arch> columns, requires_arch<xsimd::generic>) noexcept = delete;

// ---- lookup16 -------------------------------------------------------------------------------------------------------------------

/// table[index] for each byte; index holds 0 … 15.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> lookup16(batch<std::uint8_t, Arch> index, const std::uint8_t* table,
                                                        requires_arch<xsimd::generic>) noexcept {
  auto s = portable::spill<Arch>(index);
  for (auto& lane : s.lane) lane = table[lane & 15u];
  return batch<std::uint8_t, Arch>::load_aligned(s.lane);
}

/// table[index] for each 32-bit lane; index holds 0 … 15.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup16(batch<std::int32_t, Arch> index, const float* table,
                                                 requires_arch<xsimd::generic>) noexcept {
  const auto s = portable::spill<Arch>(index);
  alignas(64) float out[lanes<Arch>];
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = table[s.lane[i] & 15];
  return batch<float, Arch>::load_aligned(out);
}

/// table[index] for each 32-bit lane; index holds 0 … 7.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup8(batch<std::int32_t, Arch> index, const float* table, requires_arch<xsimd::generic>) noexcept {
  const auto s = portable::spill<Arch>(index);
  alignas(64) float out[lanes<Arch>];
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = table[s.lane[i] & 7];
  return batch<float, Arch>::load_aligned(out);
}

// ---- loads that widen -----------------------------------------------------------------------------------------------------------

/// As many bytes as there are 32-bit lanes, zero- or sign-extended.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint8_t* p, requires_arch<xsimd::generic>) noexcept {
  alignas(64) std::int32_t out[lanes<Arch>];
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = p[i];
  return batch<std::int32_t, Arch>::load_aligned(out);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::int8_t* p, requires_arch<xsimd::generic>) noexcept {
  alignas(64) std::int32_t out[lanes<Arch>];
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = p[i];
  return batch<std::int32_t, Arch>::load_aligned(out);
}
/// 16-bit units, zero-extended.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint16_t* p, requires_arch<xsimd::generic>) noexcept {
  alignas(64) std::int32_t out[lanes<Arch>];
  std::uint16_t units[lanes<Arch>];
  std::memcpy(units, p, sizeof units);  // the bytes may be of another type
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = units[i];
  return batch<std::int32_t, Arch>::load_aligned(out);
}

/// binary16 to float, exactly (signalling NaNs may become quiet).
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> load_f16(const std::uint16_t* p, requires_arch<xsimd::generic>) noexcept {
  alignas(64) float out[lanes<Arch>];
  std::uint16_t units[lanes<Arch>];
  std::memcpy(units, p, sizeof units);
  for (std::size_t i = 0; i < lanes<Arch>; ++i) out[i] = to_float(f16{units[i]});
  return batch<float, Arch>::load_aligned(out);
}

/// The low bytes of 32-bit lanes (each within -128 … 127), side by side.
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_narrowed(std::int8_t* p, batch<std::int32_t, Arch> v, requires_arch<xsimd::generic>) noexcept {
  const auto s = portable::spill<Arch>(v);
  for (std::size_t i = 0; i < lanes<Arch>; ++i) p[i] = static_cast<std::int8_t>(s.lane[i]);
}

/// The sum of all lanes, modulo 2^32.
template <class Arch>
LOWBIT_ALWAYS_INLINE std::int32_t sum_of_lanes(batch<std::int32_t, Arch> v, requires_arch<xsimd::generic>) noexcept {
  return xsimd::reduce_add(v);
}

/// Lane i is what `combine`, for which the order is all one, makes of all lanes of rows[i].
template <class Arch, class F>
LOWBIT_ALWAYS_INLINE batch<float, Arch> across(const batch<float, Arch> (&rows)[lanes<Arch>], F&& combine, requires_arch<xsimd::generic>) noexcept {
  constexpr std::size_t n = lanes<Arch>;
  batch<float, Arch> turned[n];
  for (std::size_t i = 0; i < n; ++i) turned[i] = rows[i];
  xsimd::transpose(turned, turned + n);
  for (std::size_t half = n / 2; half != 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) turned[i] = combine(turned[i], turned[i + half]);
  return turned[0];
}

/// The nearest integers, of two the even ones, of floats up to 32,767; what is below -32,768 becomes some integer that is, too.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> nearest_int(batch<float, Arch> v, requires_arch<xsimd::generic>) noexcept {
  const batch<float, Arch> magic(12582912.0f), least(-32769.0f);  // 1.5 * 2^23: its sum with a number has no bits for a fraction
  return xsimd::to_int(batch<float, Arch>((xsimd::select(v > least, v, least) + magic) - magic));
}

/// Four registers of 32-bit lanes as bytes, side by side: each sum with `add` (up to 16,639 either way) held within 0 … most, and its bits `flip` turned.
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_held(std::uint8_t* p, const batch<std::int32_t, Arch> (&v)[4], int add, std::uint8_t most, std::uint8_t flip,
                                     requires_arch<xsimd::generic>) noexcept {
  for (const auto& r : v) {
    const auto s = portable::spill<Arch>(r);
    for (const std::int32_t lane : s.lane) {
      const std::int32_t low = lane < -32768 ? -32768 : lane, sum = (low > 32767 ? 32767 : low) + add;
      *p++ = static_cast<std::uint8_t>((sum < 0 ? 0 : sum > most ? most : sum) ^ flip);
    }
  }
}

/// Floats as binary16, to nearest even.
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_f16(std::uint16_t* p, batch<float, Arch> v, requires_arch<xsimd::generic>) noexcept {
  const auto s = portable::spill<Arch>(v);
  for (std::size_t i = 0; i < lanes<Arch>; ++i) p[i] = to_f16(s.lane[i]).bits;
}

/// The low bytes of 16-bit lanes, those of `a` and then those of `b`.
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_low_bytes(std::uint8_t* p, batch<std::uint16_t, Arch> a, batch<std::uint16_t, Arch> b,
                                          requires_arch<xsimd::generic>) noexcept {
  constexpr std::size_t n = batch<std::uint16_t, Arch>::size;
  const auto first = portable::spill<Arch>(a), second = portable::spill<Arch>(b);
  for (std::size_t i = 0; i < n; ++i) {
    p[i] = static_cast<std::uint8_t>(first.lane[i]);
    p[n + i] = static_cast<std::uint8_t>(second.lane[i]);
  }
}

/// Stores past the caches; p is as aligned as a register is large.
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_streamed(float* p, batch<float, Arch> v, requires_arch<xsimd::generic>) noexcept {
  v.store_aligned(p);
}
/// What was streamed is there for other threads before what this thread stores next.
LOWBIT_ALWAYS_INLINE void fence_streamed(requires_arch<xsimd::generic>) noexcept {}

// ---- transposition ---------------------------------------------------------------------------------------------------------------

/// Sixteen bytes of each of as many rows as a register has 32-bit lanes, `stride` bytes from row to row, as four registers: lane r of
/// register k is word k of row r. Registers of more than 128 bits have their own.
template <class Arch>
  requires(lanes<Arch> == 4)
LOWBIT_ALWAYS_INLINE std::array<batch<std::uint32_t, Arch>, 4> load_transposed(const std::uint8_t* p, std::size_t stride,
                                                                               requires_arch<xsimd::generic>) noexcept {
  using words = batch<std::uint32_t, Arch>;
  const auto row = [&](std::size_t r) LOWBIT_INLINE_LAMBDA {
    return xsimd::bitwise_cast<std::uint32_t>(batch<std::uint8_t, Arch>::load_unaligned(p + r * stride));
  };
  const words even_low = xsimd::zip_lo(row(0), row(2)), odd_low = xsimd::zip_lo(row(1), row(3));
  const words even_high = xsimd::zip_hi(row(0), row(2)), odd_high = xsimd::zip_hi(row(1), row(3));
  return {xsimd::zip_lo(even_low, odd_low), xsimd::zip_hi(even_low, odd_low), xsimd::zip_lo(even_high, odd_high),
          xsimd::zip_hi(even_high, odd_high)};
}

// ---- bit streams ----------------------------------------------------------------------------------------------------------------

/// The low `Bits` bits of each byte of a word.
template <unsigned Bits>
inline constexpr std::uint64_t low_bits = ((1u << Bits) - 1) * 0x0101'0101'0101'0101u;

/// Eight codes of `Bits` bits, packed in the low bytes of a word, one to a byte.
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t spread_bits(std::uint64_t x, requires_arch<xsimd::generic>) noexcept {
  if constexpr (Bits == 8) return x;
  // Halves the stream three times, into words of 32, 16 and 8 bits.
  constexpr auto mask = [](unsigned n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; };
  constexpr std::uint64_t four = mask(4 * Bits), two = mask(2 * Bits) * 0x1'0000'0001u, one = mask(Bits) * 0x1'0001'0001'0001u;
  x = (x & four) | ((x & (four << (4 * Bits))) << (32 - 4 * Bits));
  x = (x & two) | ((x & (two << (2 * Bits))) << (16 - 2 * Bits));
  return (x & one) | ((x & (one << Bits)) << (8 - Bits));
}
/// The inverse; the other bits of the bytes count for nothing.
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t gather_bits(std::uint64_t x, requires_arch<xsimd::generic>) noexcept {
  if constexpr (Bits == 8) return x;
  x &= low_bits<Bits>;
  constexpr auto mask = [](unsigned n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; };
  constexpr std::uint64_t four = mask(4 * Bits), two = mask(2 * Bits) * 0x1'0000'0001u, one = mask(Bits) * 0x1'0001'0001'0001u;
  x = (x & one) | ((x >> (8 - Bits)) & (one << Bits));
  x = (x & two) | ((x >> (16 - 2 * Bits)) & (two << (2 * Bits)));
  return (x & four) | ((x >> (32 - 4 * Bits)) & (four << (4 * Bits)));
}

/// Sixteen codes of `Bits` < 8 bits, packed in the low bytes of a register of 128 bits, one to a byte.
template <unsigned Bits, class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> spread_codes(batch<std::uint8_t, Arch> packed, requires_arch<xsimd::generic>) noexcept {
  static_assert(batch<std::uint8_t, Arch>::size == 16);
  alignas(16) std::uint8_t from[24];
  packed.store_aligned(from);
  std::uint64_t words[2];
  std::memcpy(words, from, 8);
  std::memcpy(words + 1, from + Bits, 8);
  for (std::uint64_t& w : words) w = spread_bits<Bits>(w & (~std::uint64_t{0} >> (64 - 8 * Bits)), Arch{});
  std::memcpy(from, words, 16);
  return batch<std::uint8_t, Arch>::load_aligned(from);
}

// ---- the lesser of two ----------------------------------------------------------------------------------------------------------

/// a < b ? a : b, and a > b ? a : b, for equal zeros and NaN too.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lesser(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::generic>) noexcept {
  return xsimd::select(a < b, a, b);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> greater(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::generic>) noexcept {
  return xsimd::select(a > b, a, b);
}

// ---- rounding -------------------------------------------------------------------------------------------------------------------

/// a * b rounded to float before anything is added to it. Compilers fuse a product with a following sum where the instruction set
/// allows it; the same bits on every architecture need that they do not.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> rounded_product(batch<float, Arch> a, batch<float, Arch> b,
                                                        requires_arch<xsimd::generic>) noexcept {
  auto p = a * b;
  asm("" : "+m"(p));
  return p;
}

/// a / b and the square root of a, rounded correctly; xsimd has refined estimates for both where the 32-bit Arm had no better.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> quotient(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::generic>) noexcept {
  return a / b;
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> square_root(batch<float, Arch> a, requires_arch<xsimd::generic>) noexcept {
  return xsimd::sqrt(a);
}

}  // namespace lowbit::simd

#include <lowbit/simd/arm_neon.hpp>
#include <lowbit/simd/x86_amx.hpp>
#include <lowbit/simd/x86_avx2.hpp>
#include <lowbit/simd/x86_avx512.hpp>
#include <lowbit/simd/x86_sse.hpp>
