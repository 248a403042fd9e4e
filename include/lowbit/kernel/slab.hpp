// Slabs of panels: 32 codes of each of 16 rows as planes, from codes a byte each, or from words that hold them side by side.
#pragma once

#include <lowbit/format/spec.hpp>
#include <lowbit/kernel/panel.hpp>
#include <lowbit/simd/primitives.hpp>

#include <array>
#include <bit>
#include <utility>

namespace lowbit::kernel::detail {

/// 32 codes of each of 16 rows, `stride` bytes from row to row, as a slab of planes. `flip`: bits that change in every code.
template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE void build_slab(const std::uint8_t* rows, std::size_t stride, std::uint8_t flip, std::uint8_t* slab) noexcept {
  using words = simd::batch<std::uint32_t, Arch>;
  constexpr std::size_t lane_bytes = simd::lanes<Arch> * step_weights;
  const auto everywhere = [](unsigned byte) LOWBIT_INLINE_LAMBDA { return words(byte * 0x0101'0101u); };
  const words flips = everywhere(flip);
  for (std::size_t lane = 0; lane < step_bytes; lane += lane_bytes) {
    const std::uint8_t* const from = rows + lane / step_weights * stride;
    const auto first = simd::load_transposed<Arch>(from, stride, Arch{}), second = simd::load_transposed<Arch>(from + 16, stride, Arch{});
    words step[slab_steps];
    LOWBIT_UNROLL
    for (std::size_t k = 0; k < 4; ++k) {
      step[k] = first[k] ^ flips;
      step[4 + k] = second[k] ^ flips;
    }
    const auto store = [&](std::size_t vector, words v) LOWBIT_INLINE_LAMBDA {
      xsimd::bitwise_cast<std::uint8_t>(v).store_unaligned(slab + vector * step_bytes + lane);
    };
    if constexpr (Bits == 8) {
      LOWBIT_UNROLL
      for (std::size_t k = 0; k < slab_steps; ++k) store(k, step[k]);
    } else {
      const auto plane = [&](auto width, auto place) LOWBIT_INLINE_LAMBDA {
        constexpr unsigned per_vector = 8 / width();
        for (std::size_t v = 0; v < width(); ++v) {
          words packed(0u);
          LOWBIT_UNROLL
          for (unsigned n = 0; n < per_vector; ++n) {
            const int right = static_cast<int>(place()) - static_cast<int>(n * width());
            words part = step[v * per_vector + n];
            if constexpr (width() != Bits) part &= everywhere(((1u << width()) - 1) << place());
            packed |= right == 0 ? part : right > 0 ? words(part >> right) : words(part << -right);
          }
          store(place() + v, packed);
        }
      };
      if constexpr ((Bits & 4u) != 0) plane(std::integral_constant<unsigned, 4>{}, std::integral_constant<unsigned, 0>{});
      if constexpr ((Bits & 2u) != 0) plane(std::integral_constant<unsigned, 2>{}, std::integral_constant<unsigned, Bits & 4u>{});
      if constexpr ((Bits & 1u) != 0) plane(std::integral_constant<unsigned, 1>{}, std::integral_constant<unsigned, Bits & 6u>{});
    }
  }
}

/// Whether a block's codes are whole words of 1, 2 or 4 bits side by side: a word of a row is a word of a slab then, in another order.
LOWBIT_ALWAYS_INLINE constexpr bool is_packed_in_words(const format_spec& s) noexcept {
  const plane& p = (&s.codes.planes[0])[0];
  return (p.bits == 1 || p.bits == 2 || p.bits == 4) && (&s.codes.planes[0])[1].bits == 0 && p.shift == 0 && p.base % 8 == 0 && s.block * p.bits % 32 == 0 &&
         (&p.digits.extent[0])[0] == s.block && (&p.digits.stride[0])[0] == static_cast<int>(p.bits);
}

/// The codes of some blocks of a row, without what lies between them.
LOWBIT_ALWAYS_INLINE void copy_packed(const format_spec& s, const std::uint8_t* row, std::size_t blocks, std::uint8_t* to) noexcept {
  const plane& p = (&s.codes.planes[0])[0];
  row += p.base / 8;
  const auto copy = [&](auto bytes) LOWBIT_INLINE_LAMBDA {
    for (std::size_t b = 0; b < blocks; ++b, row += s.bytes, to += bytes) std::memcpy(to, row, bytes);
  };
  switch (const std::size_t bytes = s.block * p.bits / 8; bytes) {
    case 4: return copy(std::integral_constant<std::size_t, 4>{});
    case 8: return copy(std::integral_constant<std::size_t, 8>{});
    case 16: return copy(std::integral_constant<std::size_t, 16>{});
    case 32: return copy(std::integral_constant<std::size_t, 32>{});
    case 64: return copy(std::integral_constant<std::size_t, 64>{});
    default: return copy(bytes);
  }
}

/// Words of codes in a row's order (step by step, four places each) become those of a plane: a byte for each place, the steps side by side in it.
/// So the binary number of a code in its word is turned by two digits: two of these change places at a time, by `distance` bits where `mask` has any.
template <unsigned Bits>
struct plane_order {
  static constexpr unsigned digits = std::bit_width(32 / Bits) - 1;
  struct exchange {
    int distance;
    std::uint32_t mask;
  };
  static constexpr auto exchanges = [] {
    std::array<exchange, digits - 1> all{};
    unsigned held[digits], count = 0;  // the digit that stands at a place
    for (unsigned k = 0; k < digits; ++k) held[k] = k;
    for (unsigned low = 0; low < digits; ++low) {
      unsigned high = low;
      while (held[high] != (low + 2) % digits) ++high;
      if (high == low) continue;
      std::swap(held[low], held[high]);
      std::uint32_t mask = 0;
      for (unsigned i = 0; i < 32 / Bits; ++i)
        if ((i >> low & 1) == 1 && (i >> high & 1) == 0) mask |= ((1u << Bits) - 1) << (i * Bits);
      all[count++] = {static_cast<int>(((1u << high) - (1u << low)) * Bits), mask};
    }
    return all;  // those of no mask change nothing
  }();
};

template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE simd::batch<std::uint32_t, Arch> to_plane(simd::batch<std::uint32_t, Arch> v) noexcept {
  using words = simd::batch<std::uint32_t, Arch>;
  [&]<std::size_t... I>(std::index_sequence<I...>) LOWBIT_INLINE_LAMBDA {
    const auto change = [&](auto i) LOWBIT_INLINE_LAMBDA {
      constexpr auto of = plane_order<Bits>::exchanges[i()];
      if constexpr (of.mask != 0) {
        const words differ = (words(v >> of.distance) ^ v) & words(of.mask);
        v ^= differ ^ words(differ << of.distance);
      }
    };
    (change(std::integral_constant<std::size_t, I>{}), ...);
  }(std::make_index_sequence<plane_order<Bits>::digits - 1>{});
  return v;
}

/// `slabs` slabs of rows as copy_packed leaves them, `stride` bytes from row to row. `next()` is where the next line of 16 words goes.
template <class Arch, unsigned Bits, class F>
LOWBIT_ALWAYS_INLINE void build_packed_slabs(const std::uint8_t* rows, std::size_t stride, std::size_t slabs, std::uint8_t flip, F&& next) noexcept {
  using words = simd::batch<std::uint32_t, Arch>;
  constexpr std::size_t lane_bytes = simd::lanes<Arch> * step_weights;
  const words flips(static_cast<std::uint32_t>(flip) * (0xffff'ffffu / ((1u << Bits) - 1)));
  for (std::size_t word = 0; word < slabs * Bits; word += 4) {
    const std::size_t count = slabs * Bits - word < 4 ? slabs * Bits - word : 4;
    std::uint8_t* to[4];
    for (std::size_t i = 0; i < count; ++i) to[i] = next();
    for (std::size_t lane = 0; lane < step_bytes; lane += lane_bytes) {
      const auto four = simd::load_transposed<Arch>(rows + lane / step_weights * stride + word * sizeof(std::uint32_t), stride, Arch{});
      LOWBIT_UNROLL
      for (std::size_t i = 0; i < 4; ++i)
        if (i < count) xsimd::bitwise_cast<std::uint8_t>(to_plane<Arch, Bits>(four[i] ^ flips)).store_unaligned(to[i] + lane);
    }
  }
}

}  // namespace lowbit::kernel::detail
