// Vectors of 16 floats for the engine's own loops, and how those are compiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// Before a loop: it is compiled for several instruction sets, and the program picks one when it starts.
#if defined(__x86_64__)
#define LLM_FOR_EACH_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LLM_FOR_EACH_MACHINE
#endif

namespace llm {

using vector = float __attribute__((vector_size(64)));
using integers = std::int32_t __attribute__((vector_size(64)));

// By reference: how a vector is passed by value depends on the instruction set.
inline __attribute__((always_inline)) void load(const float* from, vector& v) { std::memcpy(&v, from, sizeof v); }
inline __attribute__((always_inline)) void store(const vector& v, float* to) { std::memcpy(to, &v, sizeof v); }

}  // namespace llm
