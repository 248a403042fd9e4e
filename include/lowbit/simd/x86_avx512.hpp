// 512-bit x86: AVX-512 with BW, and VNNI.
#pragma once

#include <lowbit/simd/primitives.hpp>

#if XSIMD_WITH_AVX512BW

namespace lowbit::simd {

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> loaded_now(batch<std::uint8_t, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  __m512i r = v;
  asm volatile("" : "+v"(r));
  return r;
}

template <class Arch, class T>
LOWBIT_ALWAYS_INLINE batch<T, Arch> in_order(batch<T, Arch> sum, requires_arch<xsimd::avx512f>) noexcept {
  __m512i s = sum;
  asm("" : "+v"(s));
  return s;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> rounded_product(batch<float, Arch> a, batch<float, Arch> b,
                                                        requires_arch<xsimd::avx512f>) noexcept {
  __m512 p = _mm512_mul_ps(a, b);
  asm("" : "+v"(p));
  return p;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<xsimd::avx512bw>) noexcept {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
}

template <class Arch>
  requires includes<Arch, xsimd::avx512bw>
inline constexpr bool dots_by_pairs<Arch> = true;

// Saturation: see the 128-bit forms.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int16_t, Arch> dot2_u7s8(batch<std::int16_t, Arch> acc, batch<std::uint8_t, Arch> w, batch<std::int8_t, Arch> x,
                                                         requires_arch<xsimd::avx512bw>) noexcept {
  return _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, x));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::avx512bw>) noexcept {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
}
// AVX-512 lost vpsignb: negate x under the mask of w's signs (a zero w contributes nothing either way).
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::avx512bw>) noexcept {
  const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  return _mm512_add_epi32(
      acc, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x), _mm512_set1_epi16(1)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> lookup16(batch<std::uint8_t, Arch> index, const std::uint8_t* table,
                                                        requires_arch<xsimd::avx512bw>) noexcept {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), index);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup16(batch<std::int32_t, Arch> index, const float* table,
                                                 requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup8(batch<std::int32_t, Arch> index, const float* table, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(table)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint8_t* p, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::int8_t* p, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint16_t* p, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// See the 128-bit forms.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lesser(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_min_ps(a, b);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> greater(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_max_ps(a, b);
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> load_f16(const std::uint16_t* p, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_f16(std::uint16_t* p, batch<float, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_narrowed(std::int8_t* p, batch<std::int32_t, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE std::int32_t sum_of_lanes(batch<std::int32_t, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// Two registers become one at each step, halves beside halves: 46 instructions, where turning the square alone takes 64.
template <class Arch, class F>
LOWBIT_ALWAYS_INLINE batch<float, Arch> across(const batch<float, Arch> (&rows)[16], F&& combine, requires_arch<xsimd::avx512f>) noexcept {
  using floats = batch<float, Arch>;
  floats eight[8], four[4], two[2];
  LOWBIT_UNROLL
  for (std::size_t i = 0; i < 8; ++i)
    eight[i] = combine(floats(_mm512_shuffle_f32x4(rows[i], rows[i + 8], 0x44)), floats(_mm512_shuffle_f32x4(rows[i], rows[i + 8], 0xee)));
  LOWBIT_UNROLL
  for (std::size_t i = 0; i < 4; ++i)
    four[i] = combine(floats(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0x88)), floats(_mm512_shuffle_f32x4(eight[i], eight[i + 4], 0xdd)));
  LOWBIT_UNROLL
  for (std::size_t i = 0; i < 2; ++i)
    two[i] = combine(floats(_mm512_shuffle_ps(four[i], four[i + 2], 0x44)), floats(_mm512_shuffle_ps(four[i], four[i + 2], 0xee)));
  const floats one = combine(floats(_mm512_shuffle_ps(two[0], two[1], 0x88)), floats(_mm512_shuffle_ps(two[0], two[1], 0xdd)));
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), one);
}

// See the 128-bit forms for what does not fit.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> nearest_int(batch<float, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  return _mm512_cvtps_epi32(v);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_held(std::uint8_t* p, const batch<std::int32_t, Arch> (&v)[4], int add, std::uint8_t most, std::uint8_t flip,
                                     requires_arch<xsimd::avx512bw>) noexcept {
  const auto two = [&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    return _mm512_adds_epi16(_mm512_packs_epi32(v[k], v[k + 1]), _mm512_set1_epi16(static_cast<short>(add)));
  };
  const __m512i held = _mm512_min_epu8(_mm512_packus_epi16(two(0), two(2)), _mm512_set1_epi8(static_cast<char>(most)));
  const __m512i bytes = _mm512_xor_si512(held, _mm512_set1_epi8(static_cast<char>(flip)));  // words of the four registers, four times
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE std::array<batch<std::uint32_t, Arch>, 4> load_transposed(const std::uint8_t* p, std::size_t stride,
                                                                               requires_arch<xsimd::avx512f>) noexcept {
  const auto row = [&](std::size_t r) LOWBIT_INLINE_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + r * stride)); };
  const auto rows = [&](std::size_t r) LOWBIT_INLINE_LAMBDA {
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(row(r)), row(r + 4), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, row(r + 8), 2), row(r + 12), 3);
  };
  const __m512i even_low = _mm512_unpacklo_epi32(rows(0), rows(2)), odd_low = _mm512_unpacklo_epi32(rows(1), rows(3));
  const __m512i even_high = _mm512_unpackhi_epi32(rows(0), rows(2)), odd_high = _mm512_unpackhi_epi32(rows(1), rows(3));
  return {_mm512_unpacklo_epi32(even_low, odd_low), _mm512_unpackhi_epi32(even_low, odd_low), _mm512_unpacklo_epi32(even_high, odd_high),
          _mm512_unpackhi_epi32(even_high, odd_high)};
}

template <class Arch>
LOWBIT_ALWAYS_INLINE void store_streamed(float* p, batch<float, Arch> v, requires_arch<xsimd::avx512f>) noexcept {
  _mm512_stream_ps(p, v);
}

LOWBIT_ALWAYS_INLINE void fence_streamed(requires_arch<xsimd::avx512f>) noexcept { _mm_sfence(); }

#if defined(__BMI2__)  // as with AVX2
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t spread_bits(std::uint64_t x, requires_arch<xsimd::avx512f>) noexcept {
  return _pdep_u64(x, low_bits<Bits>);
}
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t gather_bits(std::uint64_t x, requires_arch<xsimd::avx512f>) noexcept {
  return _pext_u64(x, low_bits<Bits>);
}
#endif

#if XSIMD_WITH_AVX512VNNI_AVX512BW
template <class Base>
inline constexpr bool exact_u8s8<xsimd::avx512vnni<Base>> = true;
template <class Arch>
  requires includes<Arch, isa::avx512bf16>
inline constexpr bool exact_u8s8<Arch> = true;

// vpdpbusd does not saturate, and multiplies all of 0 … 255. The tag's parameter differs between versions of xsimd.
template <class Arch, class Base>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, const xsimd::avx512vnni<Base>&) noexcept {
  return _mm512_dpbusd_epi32(acc, w, x);
}
template <class Arch, class Base>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, const xsimd::avx512vnni<Base>&) noexcept {
  return _mm512_dpwssd_epi32(acc, a, b);
}
#endif

// A product of a matrix of bits by every byte is a shift and a mask in one (GFNI, which processors with matrix registers have).
#if defined(__GFNI__)
template <unsigned Mask, class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> moved_bits(batch<std::uint8_t, Arch> v, int right, requires_arch<isa::amx>) noexcept {
  constexpr std::uint64_t rows = [] {  // bit i of the result is the parity of the matrix' byte 7 - i and the argument
    std::uint64_t all = 0;
    for (unsigned i = 0; i < 8; ++i)
      if ((Mask >> i & 1) != 0) all |= std::uint64_t{1} << (8 * (7 - i) + i);
    return all;
  }();
  const std::uint64_t moved = right < 0 ? rows >> -right : rows << right;
  return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(static_cast<long long>(moved)), 0);
}
#endif

#if defined(__AVX512BF16__)
template <class Arch>
  requires includes<Arch, isa::avx512bf16>
inline constexpr bool dots_bf16<Arch> = true;

// Two fused multiply-adds, the upper numbers first, subnormal ones as zeros.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> dot2_bf16(batch<float, Arch> acc, batch<std::int32_t, Arch> a, batch<std::int32_t, Arch> b,
                                                  requires_arch<isa::avx512bf16>) noexcept {
  return _mm512_dpbf16_ps(acc, std::bit_cast<__m512bh>(static_cast<__m512i>(a)), std::bit_cast<__m512bh>(static_cast<__m512i>(b)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> paired(batch<std::int32_t, Arch> columns, requires_arch<isa::avx512bf16>) noexcept {
  alignas(64) static constexpr std::uint16_t order[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), columns);
}
#endif

}  // namespace lowbit::simd

#endif
