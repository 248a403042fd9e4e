// The instruction sets lowbit has kernels for, as short names for xsimd's architecture tags.
//
// A tag can be named anywhere; batch<T, Arch> exists only in a translation unit that is compiled with that architecture's flags. To
// add an instruction set: a line here, its primitives in a file beside this one, its flags in cmake/lowbit_isa_units.cmake.
#pragma once

#include <xsimd/xsimd.hpp>

#if XSIMD_VERSION_MAJOR < 13 || (XSIMD_VERSION_MAJOR == 13 && XSIMD_VERSION_MINOR < 2)
#error "lowbit needs xsimd 13.2 or newer"
#endif

namespace lowbit::simd {

/// Names as LOWBIT_ISA_UNIT and the build system use them.
namespace isa {
using sse2 = xsimd::sse2;
using sse4_1 = xsimd::sse4_1;
using avx2 = xsimd::fma3<xsimd::avx2>;
using avx512bw = xsimd::avx512bw;
using avx512vnni = xsimd::avx512vnni<xsimd::avx512bw>;
}  // namespace isa

template <class T, class Arch>
using batch = xsimd::batch<T, Arch>;

/// Whether Arch derives from (or is) Base, xsimd's way of saying that its instructions include Base's.
template <class Arch, class Base>
inline constexpr bool includes = std::is_base_of_v<Base, Arch>;

/// 32-bit lanes of an architecture's register.
template <class Arch>
inline constexpr std::size_t lanes = batch<std::int32_t, Arch>::size;

}  // namespace lowbit::simd
