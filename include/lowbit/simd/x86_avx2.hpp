// 256-bit x86: AVX2, with FMA and F16C where the compiler may use them.
#pragma once

#include <lowbit/simd/primitives.hpp>

#if XSIMD_WITH_AVX2

namespace lowbit::simd {

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> loaded_now(batch<std::uint8_t, Arch> v, requires_arch<xsimd::avx2>) noexcept {
  __m256i r = v;
  asm volatile("" : "+x"(r));
  return r;
}

template <class Arch, class T>
LOWBIT_ALWAYS_INLINE batch<T, Arch> in_order(batch<T, Arch> sum, requires_arch<xsimd::avx2>) noexcept {
  __m256i s = sum;
  asm("" : "+x"(s));
  return s;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> rounded_product(batch<float, Arch> a, batch<float, Arch> b,
                                                        requires_arch<xsimd::avx2>) noexcept {
  __m256 p = _mm256_mul_ps(a, b);
  asm("" : "+x"(p));
  return p;
}

// See the 128-bit forms.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lesser(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_min_ps(a, b);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> greater(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_max_ps(a, b);
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}

template <class Arch>
  requires includes<Arch, xsimd::avx2>
inline constexpr bool dots_by_pairs<Arch> = true;

// Saturation: see the 128-bit forms.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int16_t, Arch> dot2_u7s8(batch<std::int16_t, Arch> acc, batch<std::uint8_t, Arch> w, batch<std::int8_t, Arch> x,
                                                         requires_arch<xsimd::avx2>) noexcept {
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_add_epi32(
      acc, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> lookup16(batch<std::uint8_t, Arch> index, const std::uint8_t* table,
                                                        requires_arch<xsimd::avx2>) noexcept {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), index);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup16(batch<std::int32_t, Arch> index, const float* table,
                                                 requires_arch<xsimd::avx2>) noexcept {
  // vpermps reads the low three bits; bit 3, moved to the sign, chooses between the halves of the table.
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup8(batch<std::int32_t, Arch> index, const float* table, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint8_t* p, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::int8_t* p, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint16_t* p, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE std::array<batch<std::uint32_t, Arch>, 4> load_transposed(const std::uint8_t* p, std::size_t stride,
                                                                               requires_arch<xsimd::avx2>) noexcept {
  const auto row = [&](std::size_t r) LOWBIT_INLINE_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + r * stride)); };
  const auto rows = [&](std::size_t r) LOWBIT_INLINE_LAMBDA { return _mm256_inserti128_si256(_mm256_castsi128_si256(row(r)), row(r + 4), 1); };
  const __m256i even_low = _mm256_unpacklo_epi32(rows(0), rows(2)), odd_low = _mm256_unpacklo_epi32(rows(1), rows(3));
  const __m256i even_high = _mm256_unpackhi_epi32(rows(0), rows(2)), odd_high = _mm256_unpackhi_epi32(rows(1), rows(3));
  return {_mm256_unpacklo_epi32(even_low, odd_low), _mm256_unpackhi_epi32(even_low, odd_low), _mm256_unpacklo_epi32(even_high, odd_high),
          _mm256_unpackhi_epi32(even_high, odd_high)};
}

template <class Arch>
LOWBIT_ALWAYS_INLINE void store_narrowed(std::int8_t* p, batch<std::int32_t, Arch> v, requires_arch<xsimd::avx2>) noexcept {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
// See the 128-bit forms for what does not fit.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> nearest_int(batch<float, Arch> v, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_cvtps_epi32(v);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_held(std::uint8_t* p, const batch<std::int32_t, Arch> (&v)[4], int add, std::uint8_t most, std::uint8_t flip,
                                     requires_arch<xsimd::avx2>) noexcept {
  const auto two = [&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    return _mm256_adds_epi16(_mm256_packs_epi32(v[k], v[k + 1]), _mm256_set1_epi16(static_cast<short>(add)));
  };
  const __m256i held = _mm256_min_epu8(_mm256_packus_epi16(two(0), two(2)), _mm256_set1_epi8(static_cast<char>(most)));
  const __m256i bytes = _mm256_xor_si256(held, _mm256_set1_epi8(static_cast<char>(flip)));  // words of the four registers, twice
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_streamed(float* p, batch<float, Arch> v, requires_arch<xsimd::avx2>) noexcept {
  _mm256_stream_ps(p, v);
}

LOWBIT_ALWAYS_INLINE void fence_streamed(requires_arch<xsimd::avx2>) noexcept { _mm_sfence(); }

#if XSIMD_WITH_AVXVNNI && XSIMD_WITH_FMA3_AVX2
template <>
inline constexpr bool exact_u8s8<isa::avxvnni> = true;

// The VEX form of vpdpbusd and vpdpwssd: exact for all of 0 … 255.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<isa::avxvnni>) noexcept {
  return _mm256_dpbusd_avx_epi32(acc, w, x);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<isa::avxvnni>) noexcept {
  return _mm256_dpwssd_avx_epi32(acc, a, b);
}
#endif

#if defined(__F16C__)
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> load_f16(const std::uint16_t* p, requires_arch<xsimd::avx2>) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_f16(std::uint16_t* p, batch<float, Arch> v, requires_arch<xsimd::avx2>) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined(__BMI2__)  // every processor with AVX2 has it
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t spread_bits(std::uint64_t x, requires_arch<xsimd::avx2>) noexcept {
  return _pdep_u64(x, low_bits<Bits>);
}
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t gather_bits(std::uint64_t x, requires_arch<xsimd::avx2>) noexcept {
  return _pext_u64(x, low_bits<Bits>);
}
#endif

}  // namespace lowbit::simd

#endif
