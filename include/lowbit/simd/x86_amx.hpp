// Matrix registers of x86 (AMX): eight of up to sixteen rows of 64 bytes, and products of one by another that are added to a third.
//
// Written as assembly, because compilers do not know that these instructions read and write memory, nor how much of it a configuration is.
#pragma once

#include <lowbit/simd/primitives.hpp>

namespace lowbit::simd {
template <class Arch>
  requires has_matrix_registers<Arch>
class matrix_registers;
}

#if (defined(__AMX_INT8__) && defined(__AMX_BF16__)) || (defined(__AMXINT8__) && defined(__AMXBF16__))  // g++'s names, and older clang's

namespace lowbit::simd {

/// The shapes of the eight registers, for the calling thread while this lives; those that somebody else's code had set up come back after it, without
/// what was in them. (Registers in use make switching threads dearer.)
template <class Arch>
  requires has_matrix_registers<Arch>
class matrix_registers {
 public:
  /// Sums have 16 rows of 64 bytes, `left` has 16 rows of `steps` words, and `right` has `steps` rows of 64 bytes.
  explicit matrix_registers(std::size_t steps) noexcept {
    shapes own{};
    own.palette = 1;
    for (std::size_t i = 0; i < 8; ++i) {
      own.row_bytes[i] = static_cast<std::uint16_t>(i == left ? 4 * steps : 64);
      own.rows[i] = static_cast<std::uint8_t>(i == right ? steps : 16);
    }
    asm volatile("sttilecfg %0\n\tldtilecfg %1" : "=m"(before_) : "m"(own));
  }
  matrix_registers(const matrix_registers&) = delete;
  matrix_registers& operator=(const matrix_registers&) = delete;
  ~matrix_registers() {
    if (before_.palette == 0) asm volatile("tilerelease");
    else asm volatile("ldtilecfg %0" : : "m"(before_));
  }

  static constexpr int sums = 6;              ///< registers 0 … 5
  static constexpr int left = 6, right = 7;

  template <int Register>
  LOWBIT_ALWAYS_INLINE static void clear() noexcept {
    asm volatile("tilezero %%tmm%c0" : : "i"(Register));
  }
  template <int Register>
  LOWBIT_ALWAYS_INLINE static void load(const void* rows, std::size_t stride) noexcept {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(Register) : "memory");
  }
  template <int Register>
  LOWBIT_ALWAYS_INLINE static void store(void* rows, std::size_t stride) noexcept {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(Register) : "memory");
  }
  /// Sum[t][r] += the products of four signed bytes, left[t][k] times right[k][r], over all k.
  template <int Sum>
  LOWBIT_ALWAYS_INLINE static void multiply_s8s8() noexcept {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(left), "i"(right));
  }
  /// The same, of unsigned bytes on the left.
  template <int Sum>
  LOWBIT_ALWAYS_INLINE static void multiply_u8s8() noexcept {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(left), "i"(right));
  }
  /// The same, of two bfloat16.
  template <int Sum>
  LOWBIT_ALWAYS_INLINE static void multiply_bf16() noexcept {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(left), "i"(right));
  }

 private:
  struct shapes {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
  };
  shapes before_;
};

}  // namespace lowbit::simd

#endif
