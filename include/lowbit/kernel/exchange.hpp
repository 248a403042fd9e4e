// Codes out of and into the exchange layout, vectorised from a plane's strides.
//
// Planes come in few patterns: bytes side by side (stride 8: most of GGUF), dense streams (stride = bits: uniform codes, the high bits
// of q5), nibbles (uniform codes of 4 bits; with the first on top, bitsandbytes). The pattern is read from the spec at run time, once
// for all the blocks of a call, so that one compiled function serves every format, a user's own too. Anything else goes by the
// codec's definition.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

#include <utility>

namespace lowbit::kernel {

/// Codes that a caller with a buffer on the stack takes at once: of several small blocks, or a piece of a large one.
inline constexpr std::size_t piece = 2048;

namespace detail {

template <class Arch>
using bytes16 = simd::batch<std::uint8_t, simd::arch_128<Arch>>;

/// Shifts bytes right (positive) or left, bits that cross into a neighbour are for the caller to mask.
template <class B>
LOWBIT_ALWAYS_INLINE B shift_bytes(B v, int right) noexcept {
  using words = xsimd::batch<std::uint32_t, typename B::arch_type>;
  const auto w = xsimd::bitwise_cast<std::uint32_t>(v);
  return xsimd::bitwise_cast<std::uint8_t>(right >= 0 ? words(w >> right) : words(w << -right));
}

/// Where codes go: out of the block, or into one whose code bits are zero.
enum class direction : std::uint8_t { unpack, pack };

/// A register of bytes, or eight of them in a word, that are shifted and masked together.
template <class A>
LOWBIT_ALWAYS_INLINE auto load_as(simd::batch<std::uint8_t, A>, const std::uint8_t* p) noexcept {
  return simd::batch<std::uint8_t, A>::load_unaligned(p);
}
LOWBIT_ALWAYS_INLINE std::uint64_t load_as(std::uint64_t v, const std::uint8_t* p) noexcept {
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class A>
LOWBIT_ALWAYS_INLINE void store(simd::batch<std::uint8_t, A> v, std::uint8_t* p) noexcept { v.store_unaligned(p); }
LOWBIT_ALWAYS_INLINE void store(std::uint64_t v, std::uint8_t* p) noexcept { std::memcpy(p, &v, sizeof v); }
LOWBIT_ALWAYS_INLINE std::uint64_t shift_bytes(std::uint64_t v, int right) noexcept { return right >= 0 ? v >> right : v << -right; }

/// Moves codes between a byte each and a plane whose codes lie side by side in bytes, at bit `right` of each (less the place in the
/// code). The first plane of a field overwrites, the others add their bits.
template <direction To, bool First, class Bytes>
LOWBIT_ALWAYS_INLINE void move_bytes(std::uint8_t* block, std::uint8_t* codes, int right, Bytes mask) noexcept {
  if constexpr (To == direction::unpack) {
    auto code = shift_bytes(load_as(mask, block), right) & mask;
    if constexpr (!First) code |= load_as(mask, codes);
    store(code, codes);
  } else {
    const auto part = shift_bytes(load_as(mask, codes) & mask, -right);
    store(load_as(mask, block) | part, block);
  }
}

/// The first N <= 8 bytes of a word. In two overlapping or adjoining pieces: copied into a variable on the stack piece by piece, the
/// word would have to wait until all of them have reached the cache.
template <unsigned N>
LOWBIT_ALWAYS_INLINE std::uint64_t load_word(const std::uint8_t* p) noexcept {
  const auto part = [p](auto type, unsigned at) LOWBIT_INLINE_LAMBDA {
    std::memcpy(&type, p + at, sizeof type);
    return static_cast<std::uint64_t>(type) << (8 * at);
  };
  if constexpr (N == 8) return part(std::uint64_t{}, 0);
  else if constexpr (N > 4) return part(std::uint32_t{}, 0) | part(std::uint32_t{}, N - 4);
  else if constexpr (N == 4) return part(std::uint32_t{}, 0);
  else if constexpr (N > 1) return part(std::uint16_t{}, 0) | part(std::uint16_t{}, N - 2);
  else return *p;
}
template <unsigned N>
LOWBIT_ALWAYS_INLINE void store_word(std::uint64_t word, std::uint8_t* p) noexcept {
  const auto part = [&](auto type, unsigned at) LOWBIT_INLINE_LAMBDA {
    type = static_cast<decltype(type)>(word >> (8 * at));
    std::memcpy(p + at, &type, sizeof type);
  };
  if constexpr (N == 8) part(std::uint64_t{}, 0);
  else if constexpr (N > 4) part(std::uint32_t{}, 0), part(std::uint32_t{}, N - 4);
  else if constexpr (N == 4) part(std::uint32_t{}, 0);
  else if constexpr (N > 1) part(std::uint16_t{}, 0), part(std::uint16_t{}, N - 2);
  else *p = static_cast<std::uint8_t>(word);
}

/// Unpacks sixteen codes of a plane of `Bits`-bit codes packed one after the other. Reads sixteen bytes.
template <class Arch, unsigned Bits, bool First>
LOWBIT_ALWAYS_INLINE void unpack_dense(const std::uint8_t* block, std::uint8_t* codes, unsigned shift) noexcept {
  using bytes = bytes16<Arch>;
  using words = simd::batch<std::uint32_t, simd::arch_128<Arch>>;
  const bytes spread = simd::spread_codes<Bits>(bytes::load_unaligned(block), simd::arch_128<Arch>{});
  bytes code = xsimd::bitwise_cast<std::uint8_t>(words(xsimd::bitwise_cast<std::uint32_t>(spread) << static_cast<int>(shift)));
  if constexpr (!First) code |= bytes::load_unaligned(codes);
  code.store_unaligned(codes);
}
/// Moves eight of them.
template <class Arch, direction To, unsigned Bits, bool First>
LOWBIT_ALWAYS_INLINE void move_dense(std::uint8_t* block, std::uint8_t* codes, unsigned shift) noexcept {
  if constexpr (To == direction::unpack) {
    std::uint64_t code = simd::spread_bits<Bits>(load_word<Bits>(block), Arch{}) << shift;
    if constexpr (!First) code |= load_word<8>(codes);
    store(code, codes);
  } else {
    // Eight codes fill `Bits` bytes, which hold nothing else: the plane begins on a byte.
    store_word<Bits>(simd::gather_bits<Bits>(load_word<8>(codes) >> shift, Arch{}), block);
  }
}

/// Moves 32 codes of nibbles; `top` is 1 where the first of two is the one on top.
template <class Arch, direction To>
LOWBIT_ALWAYS_INLINE void move_nibbles(std::uint8_t* block, std::uint8_t* codes, unsigned top) noexcept {
  using bytes = bytes16<Arch>;
  if constexpr (To == direction::unpack) {
    const bytes mask(15);
    const auto v = bytes::load_unaligned(block);
    const auto low = v & mask, high = shift_bytes(v, 4) & mask;
    const auto first = top != 0 ? high : low, second = top != 0 ? low : high;
    xsimd::zip_lo(first, second).store_unaligned(codes);
    xsimd::zip_hi(first, second).store_unaligned(codes + 16);
  } else {
    // Pairs of codes as 16-bit words, whose halves come together in their low bytes.
    using words = simd::batch<std::uint16_t, simd::arch_128<Arch>>;
    const auto pairs = [&](std::size_t i) LOWBIT_INLINE_LAMBDA {
      const auto w = xsimd::bitwise_cast<std::uint16_t>(bytes::load_unaligned(codes + i) & bytes(15));  // other bits are another plane's
      return top != 0 ? words(w << 4 | w >> 8) : words(w | w >> 4);
    };
    simd::store_low_bytes(block, pairs(0), pairs(16), simd::arch_128<Arch>{});
  }
}

/// Calls f with a number of codes or weights: a constant where it is that of most blocks, so that loops of one round go away.
template <class F>
LOWBIT_ALWAYS_INLINE void with_count(std::size_t count, F&& f) noexcept {
  if (count == 32) f(std::integral_constant<std::size_t, 32>{});
  else f([count]() LOWBIT_INLINE_LAMBDA { return count; });
}

/// Calls f with the width as a constant.
template <class F>
LOWBIT_ALWAYS_INLINE void with_width(unsigned bits, F&& f) noexcept {
  switch (bits) {
    case 1: return f(std::integral_constant<unsigned, 1>{});
    case 2: return f(std::integral_constant<unsigned, 2>{});
    case 3: return f(std::integral_constant<unsigned, 3>{});
    case 4: return f(std::integral_constant<unsigned, 4>{});
    case 5: return f(std::integral_constant<unsigned, 5>{});
    case 6: return f(std::integral_constant<unsigned, 6>{});
    case 7: return f(std::integral_constant<unsigned, 7>{});
    default: return f(std::integral_constant<unsigned, 8>{});
  }
}

/// The places of a plane's elements one after the other, or of its runs: its digits from `lowest` on counted up, since the divisions of
/// plane::position would take longer than what is done at each place.
class places {
 public:
  LOWBIT_ALWAYS_INLINE places(const plane& p, std::size_t lowest, std::size_t first = 0) noexcept
      : digits_(p.digits), lowest_(lowest), bit_(static_cast<std::ptrdiff_t>(p.base)) {
    if (first == 0) return;
    bit_ = static_cast<std::ptrdiff_t>(p.position(first));
    for (std::size_t k = 0; k < 4 && extent(k) != 0; first /= extent(k), ++k) digit_[k] = static_cast<unsigned>(first % extent(k));
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE std::size_t bit() const noexcept { return static_cast<std::size_t>(bit_); }
  LOWBIT_ALWAYS_INLINE void next() noexcept {
    for (std::size_t k = lowest_; k < 4 && extent(k) != 0; ++k) {
      const std::ptrdiff_t stride = (&digits_.stride[0])[k];
      bit_ += stride;
      if (++digit_[k] < extent(k)) return;
      bit_ -= stride * static_cast<std::ptrdiff_t>(extent(k));
      digit_[k] = 0;
    }
  }

 private:
  [[nodiscard]] LOWBIT_ALWAYS_INLINE unsigned extent(std::size_t k) const noexcept { return (&digits_.extent[0])[k]; }
  const axes& digits_;
  std::size_t lowest_;
  std::ptrdiff_t bit_;
  unsigned digit_[4] = {};
};

enum class pattern : std::uint8_t { bytes, dense, nibbles, other };

LOWBIT_ALWAYS_INLINE pattern pattern_of(const plane& p, bool is_first) noexcept {
  const auto* extent = &p.digits.extent[0];
  const auto* stride = &p.digits.stride[0];
  const bool dense = stride[0] == static_cast<int>(p.bits) && extent[1] == 0 && p.base % 8 == 0;
  if (stride[0] == 8 && extent[0] % 8 == 0) return pattern::bytes;
  if (is_first && p.bits == 4 && p.shift == 0) {
    if (dense && extent[0] % 32 == 0) return pattern::nibbles;
    if (extent[0] == 2 && stride[0] == -4 && stride[1] == 8 && extent[2] == 0 && extent[1] % 16 == 0 && p.base % 8 == 4) return pattern::nibbles;
  }
  return dense ? pattern::dense : pattern::other;
}

/// The codes [first, first + count) of one plane of `blocks` consecutive blocks. `First`: the plane is the field's first.
template <class Arch, direction To, bool First>
LOWBIT_ALWAYS_INLINE void move_plane(const plane& p, std::size_t block_bytes, std::uint8_t* block, std::size_t blocks, std::size_t first,
                                     std::size_t count, std::uint8_t* codes) noexcept {
  std::size_t done = 0;
  switch (pattern_of(p, First)) {
    case pattern::bytes: {
      const std::size_t run = p.digits.extent[0];
      if (first % run != 0) break;  // a piece of a large block that begins within a run
      const std::uint8_t mask = static_cast<std::uint8_t>(((1u << p.bits) - 1) << p.shift);
      places run_at(p, 1, first);
      const auto move = [&](auto bytes) LOWBIT_INLINE_LAMBDA {
        for (; done + run <= count && run_at.bit() % 8 + p.bits <= 8; done += run, run_at.next()) {
          const int right = static_cast<int>(run_at.bit() % 8) - static_cast<int>(p.shift);
          for (std::size_t i = 0; i < run; i += sizeof bytes) {
            std::uint8_t* from = block + run_at.bit() / 8 + i;
            std::uint8_t* to = codes + done + i;
            for (std::size_t b = 0; b < blocks; ++b, from += block_bytes, to += count) move_bytes<To, First>(from, to, right, bytes);
          }
        }
      };
      using wide = simd::batch<std::uint8_t, Arch>;
      using half = simd::batch<std::uint8_t, simd::arch_256<Arch>>;  // of AVX-512's; else the same
      if (run % wide::size == 0) move(wide(mask));
      else if (half::size < wide::size && run % half::size == 0) move(half(mask));
      else if (run % 16 == 0) move(bytes16<Arch>(mask));
      else move(mask * std::uint64_t{0x0101'0101'0101'0101u});
      break;
    }
    case pattern::dense:
      with_width(p.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
        const std::size_t at = p.position(first) / 8, last = blocks * block_bytes - at;
        const unsigned shift = p.shift;
        std::size_t b = 0;
        const auto place = [&]() LOWBIT_INLINE_LAMBDA { return std::pair{block + b * block_bytes + at, codes + b * count}; };
        if constexpr (To == direction::unpack && bits() < 8) {
          // Sixteen codes at a time read sixteen bytes, which are there in all but the last blocks.
          const std::size_t to_end = count / 16 * 2 * bits() + 16 - 2 * bits();
          const std::size_t whole = count % 16 != 0 || last < to_end ? 0 : (last - to_end) / block_bytes + 1;
          for (; b < blocks && b < whole; ++b) {
            auto [packed, to] = place();
            for (std::size_t i = 0; i < count; i += 16, packed += 2 * bits()) unpack_dense<Arch, bits(), First>(packed, to + i, shift);
          }
        }
        const auto move = [&](auto all) LOWBIT_INLINE_LAMBDA {
          for (; b < blocks; ++b) {
            auto [packed, to] = place();
            std::size_t i = 0;
            if constexpr (To == direction::unpack && bits() < 8) {
              const std::size_t left = last - b * block_bytes, end = left < 16 ? 0 : ((left - 16) / (2 * bits()) + 1) * 16;
              for (; i + 16 <= all() && i < end; i += 16, packed += 2 * bits()) unpack_dense<Arch, bits(), First>(packed, to + i, shift);
            }
            for (; i + 8 <= all(); i += 8, packed += bits()) move_dense<Arch, To, bits(), First>(packed, to + i, shift);
          }
        };
        if constexpr (To == direction::pack) with_count(count, move);
        else move([count]() LOWBIT_INLINE_LAMBDA { return count; });
      });
      done = count / 8 * 8;
      break;
    case pattern::nibbles: {
      const unsigned top = (&p.digits.stride[0])[0] < 0 ? 1 : 0;
      const std::size_t at = p.base / 8 + first / 2;
      const auto move = [&](auto all) LOWBIT_INLINE_LAMBDA {
        std::uint8_t* from = block + at;
        std::uint8_t* to = codes;
        for (std::size_t b = 0; b < blocks; ++b, from += block_bytes, to += count)
          for (std::size_t i = 0; i + 32 <= all(); i += 32) move_nibbles<Arch, To>(from + i / 2, to + i, top);
      };
      with_count(count, move);
      done = count / 32 * 32;
      break;
    }
    case pattern::other: break;
  }
  if (done == count) return;
  places element(p, 0, first + done);
  for (std::size_t i = done; i < count; ++i, element.next()) {
    const std::size_t bit = element.bit();
    for (std::size_t b = 0; b < blocks; ++b) {
      std::uint8_t& code = codes[b * count + i];
      std::uint8_t* const at = block + b * block_bytes;
      if constexpr (To == direction::unpack)
        code = static_cast<std::uint8_t>((First ? 0u : code) | read_bits(at, bit, p.bits) << p.shift);
      else
        write_bits(at, bit, p.bits, read_bits(at, bit, p.bits) | static_cast<unsigned>(code >> p.shift));
    }
  }
}

/// All planes. The const of one of the two pointers is taken off by the callers below.
template <class Arch, direction To>
LOWBIT_ALWAYS_INLINE void move_codes(const format_spec& s, std::uint8_t* block, std::size_t blocks, std::size_t first, std::size_t count,
                                     std::uint8_t* codes) noexcept {
  for (const plane& p : s.codes.planes) {
    if (p.bits == 0) break;
    if (&p == &s.codes.planes[0]) move_plane<Arch, To, true>(p, s.bytes, block, blocks, first, count, codes);
    else move_plane<Arch, To, false>(p, s.bytes, block, blocks, first, count, codes);
  }
}

}  // namespace detail

/// The raw codes [first, first + count) of each of `blocks` consecutive blocks, a byte each, [blocks, count]. `first` is a multiple of
/// `piece`; first + count is the next multiple or the end of the block.
template <class Arch>
void unpack_codes(const format_spec& s, const std::uint8_t* block, std::size_t blocks, std::size_t first, std::size_t count,
                  std::uint8_t* codes) noexcept {
  detail::move_codes<Arch, detail::direction::unpack>(s, const_cast<std::uint8_t*>(block), blocks, first, count, codes);
}

/// Writes raw codes into blocks whose code bits are zero; the inverse of unpack_codes, with the same conditions.
template <class Arch>
void pack_codes(const format_spec& s, const std::uint8_t* codes, std::size_t blocks, std::size_t first, std::size_t count,
                std::uint8_t* block) noexcept {
  detail::move_codes<Arch, detail::direction::pack>(s, block, blocks, first, count, const_cast<std::uint8_t*>(codes));
}

}  // namespace lowbit::kernel
