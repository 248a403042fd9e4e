// The instruction sets lowbit has kernels for, as short names for architecture tags: xsimd's, and made as xsimd makes them where it has
// none or one that says too little.
//
// A tag can be named anywhere; batch<T, Arch> exists only in a translation unit that is compiled with that architecture's flags. To
// add an instruction set: a name here, its primitives in a file beside this one, its flags in cmake/lowbit_isa_units.cmake.
#pragma once

// The portable floor is part of xsimd only where this is defined before its first include.
#ifndef XSIMD_WITH_EMULATED
#define XSIMD_WITH_EMULATED 1
#endif
#include <xsimd/xsimd.hpp>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if XSIMD_VERSION_MAJOR < 13 || (XSIMD_VERSION_MAJOR == 13 && XSIMD_VERSION_MINOR < 2)
#error "lowbit needs xsimd 13.2 or newer"
#endif

namespace xsimd {
template <std::size_t Bits>
struct emulated;
}

namespace lowbit::simd {

/// Names as LOWBIT_ISA_UNIT and the build system use them.
namespace isa {
using emulated = xsimd::emulated<128>;  ///< plain loops over arrays: any processor
using sse2 = xsimd::sse2;
using sse4_1 = xsimd::sse4_1;
using avx2 = xsimd::fma3<xsimd::avx2>;
/// 256-bit vpdpbusd. xsimd::avxvnni has no fused multiply-add; every processor that has the one has the other.
struct avxvnni : avx2 {
  static constexpr const char* name() noexcept { return "avxvnni"; }
};
using avx512bw = xsimd::avx512bw;
using avx512vnni = xsimd::avx512vnni<xsimd::avx512bw>;

using neon64 = xsimd::neon64;
/// Armv8.2's sdot: four signed bytes times four for each 32-bit lane (FEAT_DotProd).
struct dotprod : neon64 {
  static constexpr const char* name() noexcept { return "neon64+dotprod"; }
};
/// Armv8.6's usdot, the same for unsigned times signed bytes (FEAT_I8MM). xsimd::i8mm<neon64> does not include sdot.
struct i8mm : dotprod {
  static constexpr const char* name() noexcept { return "neon64+dotprod+i8mm"; }
};
}  // namespace isa

/// The most capable instruction set that this translation unit is compiled for.
#if defined(XSIMD_DEFAULT_ARCH)
using native = xsimd::default_arch;
#elif defined(XSIMD_NO_SUPPORTED_ARCHITECTURE)
using native = isa::emulated;
#elif XSIMD_WITH_NEON64 && defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8)
using native = isa::i8mm;
#elif XSIMD_WITH_NEON64 && defined(__ARM_FEATURE_DOTPROD)
using native = isa::dotprod;
#elif XSIMD_WITH_AVXVNNI && XSIMD_WITH_FMA3_AVX2 && !XSIMD_WITH_AVX512F
using native = isa::avxvnni;
#else
using native = xsimd::default_arch;
#endif

/// Whether this machine, and its operating system, can run code of an architecture.
template <class Arch>
inline bool available() noexcept {
  return xsimd::available_architectures().has(Arch{});
}
template <>
inline bool available<isa::emulated>() noexcept {
  return true;
}
template <>
inline bool available<isa::avxvnni>() noexcept {
  return available<isa::avx2>() && available<xsimd::avxvnni>();
}
// Bits of the Linux kernel's documented interface (arch/arm64/elf_hwcaps): HWCAP_ASIMDDP, HWCAP2_I8MM. Other systems fall back to NEON.
template <>
inline bool available<isa::dotprod>() noexcept {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & 1u << 20) != 0;
#else
  return false;
#endif
}
template <>
inline bool available<isa::i8mm>() noexcept {
#if defined(__aarch64__) && defined(__linux__)
  return available<isa::dotprod>() && (getauxval(AT_HWCAP2) & 1u << 13) != 0;
#else
  return false;
#endif
}

template <class T, class Arch>
using batch = xsimd::batch<T, Arch>;

/// Whether Arch derives from (or is) Base, xsimd's way of saying that its instructions include Base's. Its tags for SSE, AVX2 and AVX-512
/// do not include one another: a primitive that all three have stands in each one's file, or is the portable one.
template <class Arch, class Base>
inline constexpr bool includes = std::is_base_of_v<Base, Arch>;

/// 32-bit lanes of an architecture's register.
template <class Arch>
inline constexpr std::size_t lanes = batch<std::int32_t, Arch>::size;

/// An architecture with registers of 128 bits, for what is done 16 bytes at a time: Arch itself, or what it includes.
template <class Arch>
using arch_128 = typename std::conditional_t<batch<std::uint8_t, Arch>::size == 16, std::type_identity<batch<std::uint8_t, Arch>>,
                                             xsimd::make_sized_batch<std::uint8_t, 16>>::type::arch_type;
/// The same of at most 256 bits.
template <class Arch>
using arch_256 = std::conditional_t<(lanes<Arch> > 8), isa::avx2, Arch>;

}  // namespace lowbit::simd

namespace xsimd::types {
#if XSIMD_WITH_AVXVNNI && XSIMD_WITH_FMA3_AVX2
XSIMD_DECLARE_SIMD_REGISTER_ALIAS(lowbit::simd::isa::avxvnni, lowbit::simd::isa::avx2);
#endif
#if XSIMD_WITH_NEON64 && defined(__ARM_FEATURE_DOTPROD)
XSIMD_DECLARE_SIMD_REGISTER_ALIAS(lowbit::simd::isa::dotprod, neon64);
template <class T>
struct get_bool_simd_register<T, lowbit::simd::isa::dotprod> : detail::neon_bool_simd_register<T, lowbit::simd::isa::dotprod> {};
#if defined(__ARM_FEATURE_MATMUL_INT8)
XSIMD_DECLARE_SIMD_REGISTER_ALIAS(lowbit::simd::isa::i8mm, neon64);
template <class T>
struct get_bool_simd_register<T, lowbit::simd::isa::i8mm> : detail::neon_bool_simd_register<T, lowbit::simd::isa::i8mm> {};
#endif
#endif
}  // namespace xsimd::types
