// Codes out of and into the exchange layout, and whole rows to floats, vectorised from a plane's strides.
//
// Planes come in few patterns: bytes side by side (stride 8: most of GGUF), dense streams (stride = bits: uniform codes, the high bits
// of q5), nibbles with the first on top (bitsandbytes). The pattern is read from the spec at run time, once per run of 16 codes or
// more, so that one compiled function serves every format, a user's own too. Anything else goes by the codec's definition.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Codes are taken from a block in pieces of at most this many, so that buffers can live on the stack.
inline constexpr std::size_t piece = 256;

namespace detail {

using bytes16 = xsimd::make_sized_batch_t<std::uint8_t, 16>;

/// Shifts bytes right (positive) or left, bits that cross into a neighbour are for the caller to mask.
template <class B>
LOWBIT_ALWAYS_INLINE B shift_bytes(B v, int right) noexcept {
  using words = xsimd::batch<std::uint32_t, typename B::arch_type>;
  const auto w = xsimd::bitwise_cast<std::uint32_t>(v);
  return xsimd::bitwise_cast<std::uint8_t>(right >= 0 ? words(w >> right) : words(w << -right));
}

/// Eight codes of `Bits` bits, packed in the low bytes of a word, one to a byte.
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t spread(std::uint64_t x) noexcept {
  if constexpr (Bits == 8) return x;
  constexpr auto mask = [](unsigned n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; };
  constexpr std::uint64_t four = mask(4 * Bits), two = mask(2 * Bits) * 0x1'0000'0001u, one = mask(Bits) * 0x1'0001'0001'0001u;
  x = (x & four) | ((x & (four << (4 * Bits))) << (32 - 4 * Bits));
  x = (x & two) | ((x & (two << (2 * Bits))) << (16 - 2 * Bits));
  return (x & one) | ((x & (one << Bits)) << (8 - Bits));
}
/// The inverse.
template <unsigned Bits>
LOWBIT_ALWAYS_INLINE std::uint64_t gather(std::uint64_t x) noexcept {
  if constexpr (Bits == 8) return x;
  constexpr auto mask = [](unsigned n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; };
  constexpr std::uint64_t four = mask(4 * Bits), two = mask(2 * Bits) * 0x1'0000'0001u, one = mask(Bits) * 0x1'0001'0001'0001u;
  x = (x & one) | ((x >> (8 - Bits)) & (one << Bits));
  x = (x & two) | ((x >> (16 - 2 * Bits)) & (two << (2 * Bits)));
  return (x & four) | ((x >> (32 - 4 * Bits)) & (four << (4 * Bits)));
}

template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE void unpack_dense(const std::uint8_t* from, unsigned shift, std::uint8_t* codes, std::size_t groups) noexcept {
  for (std::size_t g = 0; g < groups; ++g, from += Bits, codes += 8) {
    std::uint64_t x = 0, old;
    std::memcpy(&x, from, Bits);
    std::memcpy(&old, codes, 8);
    old |= spread<Bits>(x) << shift;
    std::memcpy(codes, &old, 8);
  }
}
template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE void pack_dense(const std::uint8_t* codes, unsigned shift, std::uint8_t* to, std::size_t groups) noexcept {
  constexpr std::uint64_t low = ((1u << Bits) - 1) * 0x0101'0101'0101'0101u;
  for (std::size_t g = 0; g < groups; ++g, to += Bits, codes += 8) {
    std::uint64_t x, old = 0;
    std::memcpy(&x, codes, 8);
    std::memcpy(&old, to, Bits);
    old |= gather<Bits>((x >> shift) & low);
    std::memcpy(to, &old, Bits);
  }
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

enum class pattern : std::uint8_t { bytes, dense, high_nibble_first, other };

LOWBIT_ALWAYS_INLINE pattern pattern_of(const plane& p) noexcept {
  const auto* extent = &p.digits.extent[0];
  const auto* stride = &p.digits.stride[0];
  if (stride[0] == 8 && extent[0] % 16 == 0) return pattern::bytes;
  if (stride[0] == static_cast<int>(p.bits) && extent[1] == 0 && p.base % 8 == 0) return pattern::dense;
  if (p.bits == 4 && extent[0] == 2 && stride[0] == -4 && stride[1] == 8 && extent[2] == 0 && extent[1] % 16 == 0)
    return pattern::high_nibble_first;
  return pattern::other;
}

}  // namespace detail

/// The raw codes [first, first + count) of a block, a byte each. `first` is a multiple of 256; count <= 256 and reaches the next
/// multiple or the end of the block.
template <class Arch>
void unpack_codes(const format_spec& s, const std::uint8_t* block, std::size_t first, std::size_t count, std::uint8_t* codes) noexcept {
  using detail::bytes16;
  std::memset(codes, 0, count);
  for (const plane& p : s.codes.planes) {
    if (p.bits == 0) break;
    std::size_t done = 0;
    switch (detail::pattern_of(p)) {
      case detail::pattern::bytes: {
        const std::size_t run = p.digits.extent[0];
        const bytes16 mask(static_cast<std::uint8_t>(((1u << p.bits) - 1) << p.shift));
        for (; done + run <= count; done += run) {
          const std::size_t bit = p.position(first + done);
          for (std::size_t i = 0; i < run; i += 16) {
            const auto v = bytes16::load_unaligned(block + bit / 8 + i);
            const auto code = detail::shift_bytes(v, static_cast<int>(bit % 8) - static_cast<int>(p.shift)) & mask;
            (bytes16::load_unaligned(codes + done + i) | code).store_unaligned(codes + done + i);
          }
        }
        break;
      }
      case detail::pattern::dense:
        detail::with_width(p.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
          detail::unpack_dense<Arch, bits()>(block + p.position(first) / 8, p.shift, codes, count / 8);
        });
        done = count / 8 * 8;
        break;
      case detail::pattern::high_nibble_first:
        for (; done + 32 <= count; done += 32) {
          const auto v = bytes16::load_unaligned(block + (p.base / 8) + (first + done) / 2);
          const auto high = detail::shift_bytes(v, 4) & bytes16(15), low = v & bytes16(15);
          xsimd::zip_lo(high, low).store_unaligned(codes + done);
          xsimd::zip_hi(high, low).store_unaligned(codes + done + 16);
        }
        break;
      case detail::pattern::other: break;
    }
    for (; done < count; ++done)
      codes[done] = static_cast<std::uint8_t>(codes[done] | read_bits(block, p.position(first + done), p.bits) << p.shift);
  }
}

/// Writes raw codes into a block whose code bits are zero; the inverse of unpack_codes, with the same conditions.
template <class Arch>
void pack_codes(const format_spec& s, const std::uint8_t* codes, std::size_t first, std::size_t count, std::uint8_t* block) noexcept {
  using detail::bytes16;
  for (const plane& p : s.codes.planes) {
    if (p.bits == 0) break;
    std::size_t done = 0;
    switch (detail::pattern_of(p)) {
      case detail::pattern::bytes: {
        const std::size_t run = p.digits.extent[0];
        const bytes16 mask(static_cast<std::uint8_t>(((1u << p.bits) - 1) << p.shift));
        for (; done + run <= count; done += run) {
          const std::size_t bit = p.position(first + done);
          for (std::size_t i = 0; i < run; i += 16) {
            const auto code = bytes16::load_unaligned(codes + done + i) & mask;
            std::uint8_t* to = block + bit / 8 + i;
            (bytes16::load_unaligned(to) | detail::shift_bytes(code, static_cast<int>(p.shift) - static_cast<int>(bit % 8)))
                .store_unaligned(to);
          }
        }
        break;
      }
      case detail::pattern::dense:
        detail::with_width(p.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
          detail::pack_dense<Arch, bits()>(codes, p.shift, block + p.position(first) / 8, count / 8);
        });
        done = count / 8 * 8;
        break;
      case detail::pattern::high_nibble_first:
      case detail::pattern::other: break;
    }
    for (; done < count; ++done) {
      const std::size_t bit = p.position(first + done);
      const unsigned old = read_bits(block, bit, p.bits);
      write_bits(block, bit, p.bits, old | codes[done] >> p.shift);
    }
  }
}

/// The weights [0, cols) of a row of blocks as floats: the codec's values, bit for bit.
template <class Arch>
void dequantise_row(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float* out) noexcept {
  using simd::batch;
  constexpr std::size_t n = simd::lanes<Arch>;
  using floats = batch<float, Arch>;
  if (s.is_float()) {
    for (std::size_t c = 0; c < cols; ++c, blocks += s.bytes) out[c] = read_scalar({s.element, 0}, blocks);
    return;
  }
  const bool offset = s.minimum.present(), table = s.values.present();
  const float* const values = &s.values.values[0];
  std::uint8_t codes[piece];
  for (std::size_t c = 0; c < cols; c += s.block, blocks += s.bytes) {
    const std::size_t in_block = cols - c < s.block ? cols - c : s.block;
    const int zero = zero_point_of(s, blocks) + s.codes.zero;
    std::size_t unpacked = 0, base = 0;  // codes holds [base, unpacked)
    for (std::size_t j = 0; j * s.sub_block() < in_block; ++j) {
      const affine a = affine_of(s, blocks, j);
      const std::size_t end = (j + 1) * s.sub_block() < in_block ? (j + 1) * s.sub_block() : in_block;
      for (std::size_t i = j * s.sub_block(); i < end;) {
        if (i == unpacked) {
          base = unpacked;
          const std::size_t rest = s.block - base;
          unpacked += rest < piece ? rest : piece;
          unpack_codes<Arch>(s, blocks, base, unpacked - base, codes);
        }
        const std::size_t stop = end < unpacked ? end : unpacked;
        for (; i + n <= stop; i += n) {
          const auto code = simd::load_widened<Arch>(codes + (i - base), Arch{});
          floats level;
          if (table) level = simd::lookup16<Arch>(code, values, Arch{});
          else if (s.codes.is_signed) level = xsimd::to_float(batch<std::int32_t, Arch>((code << static_cast<int>(32 - s.codes.bits())) >> static_cast<int>(32 - s.codes.bits())));
          else level = xsimd::to_float(batch<std::int32_t, Arch>(code - batch<std::int32_t, Arch>(zero)));
          auto v = simd::rounded_product<Arch>(floats(a.scale), level, Arch{});
          if (offset) v += floats(a.offset);
          v.store_unaligned(out + c + i);
        }
        for (; i < stop; ++i) {
          const float v = lowbit::rounded_product(a.scale, level_of(s, codes[i - base], zero - s.codes.zero));
          out[c + i] = offset ? v + a.offset : v;
        }
      }
    }
  }
}

}  // namespace lowbit::kernel
