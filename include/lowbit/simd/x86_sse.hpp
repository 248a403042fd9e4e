// 128-bit x86: SSE2, and the byte operations that came with SSSE3 and SSE4.1.
#pragma once

#include <lowbit/simd/primitives.hpp>

#if XSIMD_WITH_SSE2

namespace lowbit::simd {

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> loaded_now(batch<std::uint8_t, Arch> v, requires_arch<xsimd::sse2>) noexcept {
  __m128i r = v;
  asm volatile("" : "+x"(r));
  return r;
}

template <class Arch, class T>
LOWBIT_ALWAYS_INLINE batch<T, Arch> in_order(batch<T, Arch> sum, requires_arch<xsimd::sse2>) noexcept {
  __m128i s = sum;
  asm("" : "+x"(s));
  return s;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> rounded_product(batch<float, Arch> a, batch<float, Arch> b,
                                                        requires_arch<xsimd::sse2>) noexcept {
  __m128 p = _mm_mul_ps(a, b);
  asm("" : "+x"(p));
  return p;
}

// minps and maxps give the second operand for equal zeros and NaN, as the comparison does.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lesser(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::sse2>) noexcept {
  return xsimd::min(a, b);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> greater(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::sse2>) noexcept {
  return xsimd::max(a, b);
}

// SSE2 has no byte multiply: widen to 16 bits, where 127 * 127 fits and pmaddwd sums pairs into 32 bits.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::sse2>) noexcept {
  const __m128i w_even = _mm_srai_epi16(_mm_slli_epi16(w, 8), 8), w_odd = _mm_srai_epi16(w, 8);
  const __m128i x_even = _mm_srai_epi16(_mm_slli_epi16(x, 8), 8), x_odd = _mm_srai_epi16(x, 8);
  return _mm_add_epi32(acc, _mm_add_epi32(_mm_madd_epi16(w_even, x_even), _mm_madd_epi16(w_odd, x_odd)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::sse2>) noexcept {
  return dot4_s8s8<Arch>(acc, xsimd::bitwise_cast<std::int8_t>(w), x, requires_arch<xsimd::sse2>{});
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<xsimd::sse2>) noexcept {
  return _mm_add_epi32(acc, _mm_madd_epi16(a, b));
}

template <class Arch>
  requires(batch<std::int32_t, Arch>::size == 4)
LOWBIT_ALWAYS_INLINE void store_narrowed(std::int8_t* p, batch<std::int32_t, Arch> v, requires_arch<xsimd::sse2>) noexcept {
  const __m128i words = _mm_packs_epi32(v, v);
  _mm_storeu_si32(p, _mm_packs_epi16(words, words));
}
// cvtps2dq gives the least integer for what fits in none; sums saturate on their way to bytes.
template <class Arch>
  requires(batch<float, Arch>::size == 4)
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> nearest_int(batch<float, Arch> v, requires_arch<xsimd::sse2>) noexcept {
  return _mm_cvtps_epi32(v);
}
template <class Arch>
  requires(batch<std::int32_t, Arch>::size == 4)
LOWBIT_ALWAYS_INLINE void store_held(std::uint8_t* p, const batch<std::int32_t, Arch> (&v)[4], int add, std::uint8_t most, std::uint8_t flip,
                                     requires_arch<xsimd::sse2>) noexcept {
  const auto two = [&](std::size_t k) LOWBIT_INLINE_LAMBDA { return _mm_adds_epi16(_mm_packs_epi32(v[k], v[k + 1]), _mm_set1_epi16(static_cast<short>(add))); };
  const __m128i held = _mm_min_epu8(_mm_packus_epi16(two(0), two(2)), _mm_set1_epi8(static_cast<char>(most)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(held, _mm_set1_epi8(static_cast<char>(flip))));
}
template <class Arch>
  requires(batch<std::uint16_t, Arch>::size == 8)
LOWBIT_ALWAYS_INLINE void store_low_bytes(std::uint8_t* p, batch<std::uint16_t, Arch> a, batch<std::uint16_t, Arch> b,
                                          requires_arch<xsimd::sse2>) noexcept {
  const __m128i low = _mm_set1_epi16(255);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(_mm_and_si128(a, low), _mm_and_si128(b, low)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_streamed(float* p, batch<float, Arch> v, requires_arch<xsimd::sse2>) noexcept {
  _mm_stream_ps(p, v);
}
LOWBIT_ALWAYS_INLINE void fence_streamed(requires_arch<xsimd::sse2>) noexcept { _mm_sfence(); }

#if XSIMD_WITH_SSSE3
template <class Arch>
  requires includes<Arch, xsimd::ssse3>
inline constexpr bool dots_by_pairs<Arch> = true;

// pmaddubsw sums two products with saturation at 32,767; 2 * 127 * 127 = 32,258 stays below.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int16_t, Arch> dot2_u7s8(batch<std::int16_t, Arch> acc, batch<std::uint8_t, Arch> w, batch<std::int8_t, Arch> x,
                                                         requires_arch<xsimd::ssse3>) noexcept {
  return _mm_add_epi16(acc, _mm_maddubs_epi16(w, x));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::ssse3>) noexcept {
  return _mm_add_epi32(acc, _mm_madd_epi16(_mm_maddubs_epi16(w, x), _mm_set1_epi16(1)));
}
// |w| * (x with w's sign): 2 * 128 * 127 = 32,512 stays below the saturation too.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::ssse3>) noexcept {
  return _mm_add_epi32(acc, _mm_madd_epi16(_mm_maddubs_epi16(_mm_abs_epi8(w), _mm_sign_epi8(x, w)), _mm_set1_epi16(1)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> lookup16(batch<std::uint8_t, Arch> index, const std::uint8_t* table,
                                                        requires_arch<xsimd::ssse3>) noexcept {
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), index);
}

// A code's two bytes go to a 16-bit lane, a product moves it to the top of the lane, a shift to the bottom.
template <unsigned Bits, class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> spread_codes(batch<std::uint8_t, Arch> packed, requires_arch<xsimd::ssse3>) noexcept {
  if constexpr (Bits == 1) {  // no code crosses a byte: its bit is left alone in a byte of its own, and counts as 1
    const __m128i repeated = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
    return _mm_min_epu8(_mm_and_si128(repeated, _mm_set1_epi64x(static_cast<long long>(0x8040'2010'0804'0201u))), _mm_set1_epi8(1));
  }

  struct places {
    alignas(16) std::uint8_t byte[2][16];
    alignas(16) std::uint16_t factor[8];  // the same for both halves, which are Bits whole bytes apart
  };
  static constexpr places at = [] {
    places p{};
    for (unsigned i = 0; i < 16; ++i) {
      p.byte[i / 8][2 * (i % 8)] = static_cast<std::uint8_t>(i * Bits / 8);
      p.byte[i / 8][2 * (i % 8) + 1] = static_cast<std::uint8_t>(i * Bits / 8 + 1);
      p.factor[i % 8] = static_cast<std::uint16_t>(1u << (16 - Bits - i * Bits % 8));
    }
    return p;
  }();
  const __m128i factor = _mm_load_si128(reinterpret_cast<const __m128i*>(at.factor));
  const auto half = [&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    const __m128i pairs = _mm_shuffle_epi8(packed, _mm_load_si128(reinterpret_cast<const __m128i*>(at.byte[k])));
    return _mm_srli_epi16(_mm_mullo_epi16(pairs, factor), 16 - Bits);
  };
  return _mm_packus_epi16(half(0), half(1));
}
#endif

#if XSIMD_WITH_SSE4_1
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint8_t* p, requires_arch<xsimd::sse4_1>) noexcept {
  return _mm_cvtepu8_epi32(_mm_loadu_si32(p));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::int8_t* p, requires_arch<xsimd::sse4_1>) noexcept {
  return _mm_cvtepi8_epi32(_mm_loadu_si32(p));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint16_t* p, requires_arch<xsimd::sse4_1>) noexcept {
  return _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
#endif

}  // namespace lowbit::simd

#endif
