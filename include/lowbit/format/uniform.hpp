// Uniform formats of any width and any group size: `struct q3_g40 { static constexpr auto spec = uniform({.bits = 3, .group = 40}); };`
//
// The exchange layout of a block: the scale, the zero-point byte (asymmetric only), then the codes as a dense stream, lowest bits
// first. Symmetric codes have their zero in the middle of the range (2^(bits-1)), as GPTQ and compressed-tensors store them; a
// symmetric single bit means -1 and +1. Asymmetric zero-points are integers within the range of the codes (GPTQ, AWQ).
#pragma once

#include <lowbit/format/spec.hpp>

namespace lowbit {

struct uniform_options {
  unsigned bits = 4;             ///< 1 to 8
  unsigned group = 128;          ///< weights that share a scale; any number from 1
  bool symmetric = false;        ///< without: an integer zero-point for each group
  number scale = number::f16;    ///< how the scale is stored
  std::string_view name = "uniform";
};

/// The spec of a uniform format.
constexpr format_spec uniform(const uniform_options& o) noexcept {
  format_spec s{};
  s.name = o.name;
  s.block = o.group;
  s.scale = {o.scale, 0};
  unsigned at = size_of(o.scale);
  if (!o.symmetric) s.zero_point.planes[0] = {8, 0, byte(at++), {{1}, {8}}};
  s.codes.planes[0] = {o.bits, 0, byte(at), {{o.group}, {static_cast<int>(o.bits)}}};
  if (o.symmetric && o.bits == 1) s.values = make_codebook(2, {-1.0f, 1.0f});
  else if (o.symmetric) s.codes.zero = 1 << (o.bits - 1);
  const unsigned code_bits = o.bits * o.group;
  s.bytes = at + static_cast<unsigned>(ceil_div(code_bits, 8));
  s.unused_bits = 8 * static_cast<unsigned>(ceil_div(code_bits, 8)) - code_bits;
  return s;
}

namespace detail {
/// "s4_g128" as static storage.
template <char Kind, unsigned Bits, unsigned Group>
struct uniform_name {
  static constexpr auto text = [] {
    std::array<char, 16> t{Kind, static_cast<char>('0' + Bits), '_', 'g'};
    unsigned digits = 1;
    for (unsigned g = Group; g >= 10; g /= 10) ++digits;
    for (unsigned i = digits, g = Group; i-- > 0; g /= 10) t[4 + i] = static_cast<char>('0' + g % 10);
    return t;
  }();
  static constexpr std::string_view value{text.data()};
};
}  // namespace detail

/// Symmetric b-bit codes in groups: `s4_g128` on the command line.
template <unsigned Bits, unsigned Group>
struct symmetric {
  static constexpr format_spec spec =
      uniform({.bits = Bits, .group = Group, .symmetric = true, .name = detail::uniform_name<'s', Bits, Group>::value});
};

/// Asymmetric b-bit codes in groups, with integer zero-points: `u4_g128`.
template <unsigned Bits, unsigned Group>
struct asymmetric {
  static constexpr format_spec spec =
      uniform({.bits = Bits, .group = Group, .symmetric = false, .name = detail::uniform_name<'u', Bits, Group>::value});
};

}  // namespace lowbit
