// 128-bit Arm: NEON of AArch64, and the byte dots that came with Armv8.2 and Armv8.6.
#pragma once

#include <lowbit/simd/primitives.hpp>

#if XSIMD_WITH_NEON64

namespace lowbit::simd {

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> loaded_now(batch<std::uint8_t, Arch> v, requires_arch<xsimd::neon64>) noexcept {
  uint8x16_t r = v;
  asm volatile("" : "+w"(r));
  return r;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> rounded_product(batch<float, Arch> a, batch<float, Arch> b,
                                                        requires_arch<xsimd::neon64>) noexcept {
  float32x4_t p = vmulq_f32(a, b);
  asm("" : "+w"(p));
  return p;
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> quotient(batch<float, Arch> a, batch<float, Arch> b, requires_arch<xsimd::neon64>) noexcept {
  return vdivq_f32(a, b);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> square_root(batch<float, Arch> a, requires_arch<xsimd::neon64>) noexcept {
  return vsqrtq_f32(a);
}

// Sums of two products fit in 16 bits (2 * 128 * 127 = 32,512): they are paired there, and once more when they are added to the lanes.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::neon64>) noexcept {
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
}
// Bytes up to 127 are the same numbers signed.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<xsimd::neon64>) noexcept {
  return dot4_s8s8<Arch>(acc, xsimd::bitwise_cast<std::int8_t>(w), x, Arch{});
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot2_s16(batch<std::int32_t, Arch> acc, batch<std::int32_t, Arch> a,
                                                        batch<std::int32_t, Arch> b, requires_arch<xsimd::neon64>) noexcept {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vaddq_s32(acc, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::uint8_t, Arch> lookup16(batch<std::uint8_t, Arch> index, const std::uint8_t* table,
                                                        requires_arch<xsimd::neon64>) noexcept {
  return vqtbl1q_u8(vld1q_u8(table), index);
}
// The table's 64 bytes, four of them for each lane.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> lookup16(batch<std::int32_t, Arch> index, const float* table,
                                                 requires_arch<xsimd::neon64>) noexcept {
  const auto* const at = reinterpret_cast<const std::uint8_t*>(table);
  const uint8x16x4_t bytes = {{vld1q_u8(at), vld1q_u8(at + 16), vld1q_u8(at + 32), vld1q_u8(at + 48)}};
  const uint32x4_t first = vmulq_n_u32(vreinterpretq_u32_s32(index), 0x0404'0404u);
  return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x0302'0100u)))));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint8_t* p, requires_arch<xsimd::neon64>) noexcept {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::int8_t* p, requires_arch<xsimd::neon64>) noexcept {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> load_widened(const std::uint16_t* p, requires_arch<xsimd::neon64>) noexcept {
  return vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(p)))));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<float, Arch> load_f16(const std::uint16_t* p, requires_arch<xsimd::neon64>) noexcept {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(p))));
}

template <class Arch>
LOWBIT_ALWAYS_INLINE void store_narrowed(std::int8_t* p, batch<std::int32_t, Arch> v, requires_arch<xsimd::neon64>) noexcept {
  const int16x4_t half = vmovn_s32(v);
  const std::uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(half, half))), 0);
  std::memcpy(p, &four, sizeof four);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> nearest_int(batch<float, Arch> v, requires_arch<xsimd::neon64>) noexcept {
  return vcvtnq_s32_f32(v);
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_held(std::uint8_t* p, const batch<std::int32_t, Arch> (&v)[4], int add, std::uint8_t most, std::uint8_t flip,
                                     requires_arch<xsimd::neon64>) noexcept {
  const auto two = [&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    return vqaddq_s16(vcombine_s16(vqmovn_s32(v[k]), vqmovn_s32(v[k + 1])), vdupq_n_s16(static_cast<std::int16_t>(add)));
  };
  const uint8x16_t held = vminq_u8(vcombine_u8(vqmovun_s16(two(0)), vqmovun_s16(two(2))), vdupq_n_u8(most));
  vst1q_u8(p, veorq_u8(held, vdupq_n_u8(flip)));
}
template <class Arch>
LOWBIT_ALWAYS_INLINE void store_low_bytes(std::uint8_t* p, batch<std::uint16_t, Arch> a, batch<std::uint16_t, Arch> b,
                                          requires_arch<xsimd::neon64>) noexcept {
  vst1q_u8(p, vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b)));
}

#if defined(__ARM_FEATURE_DOTPROD)
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_s8s8(batch<std::int32_t, Arch> acc, batch<std::int8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<isa::dotprod>) noexcept {
  return vdotq_s32(acc, w, x);
}
#endif
#if defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8)
// Exact for all of 0 … 255. Signed codes stay signed all the same: sdot takes them as they are, without the addition of 128.
template <class Arch>
LOWBIT_ALWAYS_INLINE batch<std::int32_t, Arch> dot4_u7s8(batch<std::int32_t, Arch> acc, batch<std::uint8_t, Arch> w,
                                                         batch<std::int8_t, Arch> x, requires_arch<isa::i8mm>) noexcept {
  return vusdotq_s32(acc, w, x);
}
#endif

}  // namespace lowbit::simd

#endif
