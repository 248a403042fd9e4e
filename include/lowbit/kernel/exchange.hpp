// Codes out of and into the exchange layout, and whole rows to floats, vectorised from a plane's strides.
//
// Planes come in few patterns: bytes side by side (stride 8: most of GGUF), dense streams (stride = bits: uniform codes, the high bits
// of q5), nibbles (uniform codes of 4 bits; with the first on top, bitsandbytes). The pattern is read from the spec at run time, once
// for all the blocks of a call, so that one compiled function serves every format, a user's own too. Anything else goes by the
// codec's definition.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Codes that a caller with a buffer on the stack takes at once: of several small blocks, or a piece of a large one.
inline constexpr std::size_t piece = 2048;

namespace detail {

using bytes16 = xsimd::make_sized_batch_t<std::uint8_t, 16>;

/// Shifts bytes right (positive) or left, bits that cross into a neighbour are for the caller to mask.
template <class B>
LOWBIT_ALWAYS_INLINE B shift_bytes(B v, int right) noexcept {
  using words = xsimd::batch<std::uint32_t, typename B::arch_type>;
  const auto w = xsimd::bitwise_cast<std::uint32_t>(v);
  return xsimd::bitwise_cast<std::uint8_t>(right >= 0 ? words(w >> right) : words(w << -right));
}

/// Where codes go: out of the block, or into one whose code bits are zero.
enum class direction : std::uint8_t { unpack, pack };

/// Moves 16 codes between a byte each and a plane whose codes lie side by side in bytes, at bit `right` of each (less the place in the
/// code). The first plane of a field overwrites, the others add their bits.
template <direction To>
LOWBIT_ALWAYS_INLINE void move_bytes(std::uint8_t* block, std::uint8_t* codes, int right, bytes16 mask, bool first) noexcept {
  if constexpr (To == direction::unpack) {
    auto code = shift_bytes(bytes16::load_unaligned(block), right) & mask;
    if (!first) code |= bytes16::load_unaligned(codes);
    code.store_unaligned(codes);
  } else {
    const auto part = shift_bytes(bytes16::load_unaligned(codes) & mask, -right);
    (bytes16::load_unaligned(block) | part).store_unaligned(block);
  }
}

/// Moves eight codes of a plane of `Bits`-bit codes packed one after the other.
template <class Arch, direction To, unsigned Bits>
LOWBIT_ALWAYS_INLINE void move_dense(std::uint8_t* block, std::uint8_t* codes, unsigned shift, bool first) noexcept {
  std::uint64_t packed = 0, bytes;
  std::memcpy(&packed, block, Bits);
  std::memcpy(&bytes, codes, 8);
  if constexpr (To == direction::unpack) {
    const std::uint64_t spread = simd::spread_bits<Bits>(packed, Arch{}) << shift;
    bytes = first ? spread : bytes | spread;
    std::memcpy(codes, &bytes, 8);
  } else {
    packed |= simd::gather_bits<Bits>((bytes >> shift) & simd::low_bits<Bits>, Arch{});
    std::memcpy(block, &packed, Bits);
  }
}

/// Moves 32 codes of nibbles; `top` is 1 where the first of two is the one on top.
template <direction To>
LOWBIT_ALWAYS_INLINE void move_nibbles(std::uint8_t* block, std::uint8_t* codes, unsigned top) noexcept {
  if constexpr (To == direction::unpack) {
    const bytes16 mask(15);
    const auto v = bytes16::load_unaligned(block);
    const auto low = v & mask, high = shift_bytes(v, 4) & mask;
    const auto first = top != 0 ? high : low, second = top != 0 ? low : high;
    xsimd::zip_lo(first, second).store_unaligned(codes);
    xsimd::zip_hi(first, second).store_unaligned(codes + 16);
  } else {
    for (std::size_t i = 0; i < 16; ++i) block[i] = static_cast<std::uint8_t>(codes[2 * i + top] | codes[2 * i + 1 - top] << 4);
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

enum class pattern : std::uint8_t { bytes, dense, nibbles, other };

LOWBIT_ALWAYS_INLINE pattern pattern_of(const plane& p, bool is_first) noexcept {
  const auto* extent = &p.digits.extent[0];
  const auto* stride = &p.digits.stride[0];
  const bool dense = stride[0] == static_cast<int>(p.bits) && extent[1] == 0 && p.base % 8 == 0;
  if (stride[0] == 8 && extent[0] % 16 == 0) return pattern::bytes;
  if (is_first && p.bits == 4 && p.shift == 0) {
    if (dense && extent[0] % 32 == 0) return pattern::nibbles;
    if (extent[0] == 2 && stride[0] == -4 && stride[1] == 8 && extent[2] == 0 && extent[1] % 16 == 0 && p.base % 8 == 4) return pattern::nibbles;
  }
  return dense ? pattern::dense : pattern::other;
}

/// Codes [first, first + count) of `blocks` consecutive blocks. The const of one of the two pointers is taken off by the callers below.
template <class Arch, direction To>
LOWBIT_ALWAYS_INLINE void move_codes(const format_spec& s, std::uint8_t* block, std::size_t blocks, std::size_t first, std::size_t count,
                                     std::uint8_t* codes) noexcept {
  for (const plane& p : s.codes.planes) {
    if (p.bits == 0) break;
    const bool is_first = &p == &s.codes.planes[0];
    std::size_t done = 0;
    switch (pattern_of(p, is_first)) {
      case pattern::bytes: {
        const std::size_t run = p.digits.extent[0];
        const bytes16 mask(static_cast<std::uint8_t>(((1u << p.bits) - 1) << p.shift));
        for (; done + run <= count; done += run) {
          const std::size_t bit = p.position(first + done);
          const int right = static_cast<int>(bit % 8) - static_cast<int>(p.shift);
          for (std::size_t b = 0; b < blocks; ++b)
            for (std::size_t i = 0; i < run; i += 16)
              move_bytes<To>(block + b * s.bytes + bit / 8 + i, codes + b * count + done + i, right, mask, is_first);
        }
        break;
      }
      case pattern::dense:
        with_width(p.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
          const std::size_t at = p.position(first) / 8;
          for (std::size_t b = 0; b < blocks; ++b)
            for (std::size_t g = 0; g < count / 8; ++g)
              move_dense<Arch, To, bits()>(block + b * s.bytes + at + g * bits(), codes + b * count + g * 8, p.shift, is_first);
        });
        done = count / 8 * 8;
        break;
      case pattern::nibbles: {
        const unsigned top = (&p.digits.stride[0])[0] < 0 ? 1 : 0;
        for (std::size_t b = 0; b < blocks; ++b)
          for (std::size_t i = 0; i + 32 <= count; i += 32)
            move_nibbles<To>(block + b * s.bytes + p.base / 8 + (first + i) / 2, codes + b * count + i, top);
        done = count / 32 * 32;
        break;
      }
      case pattern::other: break;
    }
    for (std::size_t i = done; i < count; ++i) {
      const std::size_t bit = p.position(first + i);
      for (std::size_t b = 0; b < blocks; ++b) {
        std::uint8_t& code = codes[b * count + i];
        std::uint8_t* const at = block + b * s.bytes;
        if constexpr (To == direction::unpack)
          code = static_cast<std::uint8_t>((is_first ? 0u : code) | read_bits(at, bit, p.bits) << p.shift);
        else
          write_bits(at, bit, p.bits, read_bits(at, bit, p.bits) | static_cast<unsigned>(code >> p.shift));
      }
    }
  }
}

/// An integer field with one element for each sub-block, its places worked out once for many blocks.
class sub_block_field {
 public:
  LOWBIT_ALWAYS_INLINE sub_block_field(const integer_field& f, std::size_t count) noexcept : field_(f) {
    for (std::size_t k = 0; k < f.planes.size() && (&f.planes[0])[k].bits != 0; ++k)
      for (std::size_t j = 0; j < count; ++j) at_[k][j] = static_cast<std::uint32_t>((&f.planes[0])[k].position(j));
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE int value(const std::uint8_t* block, std::size_t j) const noexcept {
    unsigned raw = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      const plane& p = (&field_.planes[0])[k];
      if (p.bits == 0) break;
      const unsigned bit = at_[k][j] % 8u;
      unsigned v = static_cast<unsigned>(block[at_[k][j] / 8u]) >> bit;
      if (bit + p.bits > 8) v |= static_cast<unsigned>(block[at_[k][j] / 8u + 1]) << (8 - bit);
      raw |= (v & ((1u << p.bits) - 1)) << p.shift;
    }
    return field_.value(raw);
  }

 private:
  const integer_field& field_;
  std::uint32_t at_[3][max_sub_blocks];
};

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

namespace detail {

/// How codes become levels: the difference is made once for a row.
enum class level_rule : std::uint8_t { table, signed_code, unsigned_code };

template <class Arch, level_rule Rule, bool Offset>
LOWBIT_ALWAYS_INLINE void dequantise_codes(const format_spec& s, const std::uint8_t* codes, std::size_t count, affine a, int zero,
                                           float* out) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>;
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  const int unused = static_cast<int>(32 - s.codes.bits());
  std::size_t i = 0;
  for (; i + n <= count; i += n) {
    const auto code = simd::load_widened<Arch>(codes + i, Arch{});
    floats level;
    if constexpr (Rule == level_rule::table) level = simd::lookup16<Arch>(code, &s.values.values[0], Arch{});
    else if constexpr (Rule == level_rule::signed_code) level = xsimd::to_float(ints((code << unused) >> unused));
    else level = xsimd::to_float(ints(code - ints(zero)));
    auto v = simd::rounded_product<Arch>(floats(a.scale), level, Arch{});
    if constexpr (Offset) v += floats(a.offset);
    v.store_unaligned(out + i);
  }
  for (; i < count; ++i) {
    const float v = lowbit::rounded_product(a.scale, level_of(s, codes[i], zero - s.codes.zero));
    out[i] = Offset ? v + a.offset : v;
  }
}

template <class Arch, level_rule Rule, bool Offset>
void dequantise_blocks(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float* out) noexcept {
  const sub_block_field sub_scale(s.sub_scale, s.sub_blocks()), sub_minimum(s.sub_minimum, s.sub_blocks());
  const std::size_t sub = s.sub_block(), length = s.block < piece ? s.block : piece, group = piece / length;
  std::uint8_t codes[piece];
  for (std::size_t c = 0; c < cols; c += group * s.block, blocks += group * s.bytes) {
    const std::size_t left = ceil_div(cols - c, s.block), count = left < group ? left : group;
    for (std::size_t first = 0; first < s.block; first += length) {
      const std::size_t here = s.block - first < length ? s.block - first : length;
      unpack_codes<Arch>(s, blocks, count, first, here, codes);
      for (std::size_t b = 0; b < count; ++b) {
        const std::uint8_t* const block = blocks + b * s.bytes;
        const std::size_t begin = c + b * s.block, valid = cols - begin < first + here ? cols - begin : first + here;
        const int zero = zero_point_of(s, block) + s.codes.zero;
        const float scale = read_scalar(s.scale, block), minimum = Offset ? read_scalar(s.minimum, block) : 0.0f;
        for (std::size_t i = first; i < valid;) {
          const std::size_t j = i / sub, end = (j + 1) * sub < valid ? (j + 1) * sub : valid;
          affine a{scale, minimum};
          if (s.sub_scale.present()) a.scale = lowbit::rounded_product(scale, static_cast<float>(sub_scale.value(block, j)));
          if (Offset && s.sub_minimum.present())
            a.offset = -lowbit::rounded_product(minimum, static_cast<float>(sub_minimum.value(block, j)));
          dequantise_codes<Arch, Rule, Offset>(s, codes + b * here + (i - first), end - i, a, zero, out + begin + i);
          i = end;
        }
      }
    }
  }
}

}  // namespace detail

/// The weights [0, cols) of a row of blocks as floats: the codec's values, bit for bit.
template <class Arch>
void dequantise_row(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float* out) noexcept {
  using detail::level_rule;
  if (s.is_float()) {
    for (std::size_t c = 0; c < cols; ++c, blocks += s.bytes) out[c] = read_scalar({s.element, 0}, blocks);
    return;
  }
  const auto run = [&](auto rule) LOWBIT_INLINE_LAMBDA {
    if (s.minimum.present()) detail::dequantise_blocks<Arch, rule(), true>(s, blocks, cols, out);
    else detail::dequantise_blocks<Arch, rule(), false>(s, blocks, cols, out);
  };
  if (s.values.present()) run(std::integral_constant<level_rule, level_rule::table>{});
  else if (s.codes.is_signed) run(std::integral_constant<level_rule, level_rule::signed_code>{});
  else run(std::integral_constant<level_rule, level_rule::unsigned_code>{});
}

}  // namespace lowbit::kernel
