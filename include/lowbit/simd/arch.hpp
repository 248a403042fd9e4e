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
#elif defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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
/// Dots of pairs of bfloat16 on top (AVX512_BF16).
struct avx512bf16 : avx512vnni {
  static constexpr const char* name() noexcept { return "avx512bf16"; }
};
/// Matrix registers of sixteen rows of 64 bytes on top, with products of bytes and of bfloat16 (AMX-TILE, AMX-INT8, AMX-BF16), and matrices of bits for
/// bytes (GFNI).
struct amx : avx512bf16 {
  static constexpr const char* name() noexcept { return "amx"; }
};

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

/// The most capable instruction set that this translation unit is compiled for. (But matrix registers are for units alone.)
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
#elif XSIMD_WITH_AVX512VNNI_AVX512BW && defined(__AVX512BF16__)
using native = isa::avx512bf16;
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
#if defined(__x86_64__)
namespace detail {
struct cpuid_registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};
inline cpuid_registers cpuid_of(unsigned leaf, unsigned sub_leaf) noexcept {
  cpuid_registers r;
  __get_cpuid_count(leaf, sub_leaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}
}  // namespace detail
template <>
inline bool available<isa::avx512bf16>() noexcept {
  return available<isa::avx512vnni>() && (detail::cpuid_of(7, 1).eax & 1u << 5) != 0;
}
template <>
inline bool available<isa::amx>() noexcept {
  constexpr unsigned bf16_tile_int8 = 1u << 22 | 1u << 24 | 1u << 25, gfni = 1u << 8;
  const auto has = detail::cpuid_of(7, 0);
  return available<isa::avx512bf16>() && (has.edx & bf16_tile_int8) == bf16_tile_int8 && (has.ecx & gfni) != 0;
}
#endif
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

/// Whether an architecture has matrix registers, on which products of many tokens run.
template <class Arch>
inline constexpr bool has_matrix_registers = includes<Arch, isa::amx>;

/// Whether this process may use them: asks the system when it is first called. (Linux gives the 8 KB of state to a process that asks, to all of its
/// threads, and refuses alternate signal stacks that are too small for it from then on: Documentation/arch/x86/xstate, ARCH_REQ_XCOMP_PERM.)
template <class Arch>
  requires has_matrix_registers<Arch>
inline bool may_use_matrix_registers() noexcept {
#if defined(__x86_64__) && defined(__linux__)
  static const bool granted = syscall(SYS_arch_prctl, 0x1023L, 18L) == 0;
  return granted;
#else
  return false;
#endif
}

/// Whether what a product of one token will read is asked for ahead. The processors that have matrix registers stream memory at half its speed
/// otherwise (docs/kernels.md); others prefetch better by themselves, and are slowed.
template <class Arch>
inline constexpr bool prefetches = has_matrix_registers<Arch>;

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
#if XSIMD_WITH_AVX512VNNI_AVX512BW && defined(__AVX512BF16__)
XSIMD_DECLARE_SIMD_REGISTER_ALIAS(lowbit::simd::isa::avx512bf16, lowbit::simd::isa::avx512vnni);
XSIMD_DECLARE_SIMD_REGISTER_ALIAS(lowbit::simd::isa::amx, lowbit::simd::isa::avx512vnni);
template <class T>
struct get_bool_simd_register<T, lowbit::simd::isa::avx512bf16> {
  using type = simd_avx512_bool_register<T>;
};
template <class T>
struct get_bool_simd_register<T, lowbit::simd::isa::amx> {
  using type = simd_avx512_bool_register<T>;
};
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
