// Compiler facts and the contract macro. Everything else in lowbit includes this.
//
// A caller's bug (a wrong size, a null pointer) is a broken contract, not an error value: LOWBIT_EXPECTS traps at once, in
// every build, unless the user defines it otherwise before the first include. Each check is O(1). The library itself never
// prints, throws or calls abort, so the default handler is the compiler's trap instruction.
#pragma once

#include <cstddef>
#include <cstdint>

#define LOWBIT_VERSION_MAJOR 0
#define LOWBIT_VERSION_MINOR 1
#define LOWBIT_VERSION_PATCH 0

/// Checks a precondition; define it yourself (before the first lowbit header) to throw, log or assert instead.
#ifndef LOWBIT_EXPECTS
#define LOWBIT_EXPECTS(condition) ((condition) ? static_cast<void>(0) : __builtin_trap())
#endif

/// For helpers that are used inside per-architecture units: an out-of-line copy of such a helper, compiled with AVX-512 flags,
/// could be the one that the linker keeps for the whole program.
#define LOWBIT_ALWAYS_INLINE inline __attribute__((always_inline))
#define LOWBIT_INLINE_LAMBDA __attribute__((always_inline))
/// Before a loop over a compile-time count whose arrays are meant to live in registers; define it as nothing to compile several times faster
/// what need not be fast.
#if defined(LOWBIT_UNROLL)
#elif defined(__clang__)
#define LOWBIT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LOWBIT_UNROLL _Pragma("GCC unroll 32")
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lowbit reads and writes little-endian layouts in place");
