// The 4-bit formats of bitsandbytes: NF4 (QLoRA, Dettmers et al. 2023, appendix E) and its FP4, in blocks of 64 with float scales.
//
// Two codes share a byte, the first in the high nibble. In bitsandbytes' files the scales ("absmax") and the codes of a tensor are
// arrays of their own; in memory lowbit keeps a block's scale before its codes. Tables: bitsandbytes functional.py, kernels.cu.
#pragma once

#include <lowbit/format/spec.hpp>

#include <bit>

namespace lowbit {

/// The quantiles of a normal distribution that NF4 codes stand for, and bitsandbytes' decision bounds, which are not quite midpoints.
inline constexpr codebook nf4_values{16, {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {-0.8480964004993439f, -0.6106329262256622f, -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f, 0.2035212516784668f,
    0.2920137718319893f, 0.3893125355243683f, 0.5016634166240692f, 0.6427869200706482f, 0.8614784181118011f}};

/// Sign and magnitude; the magnitudes are not in the order of their codes (kernels.cu, dQuantizeFP4 and dDequantizeFP4).
inline constexpr codebook fp4_values = [] {
  constexpr std::array<float, 8> magnitudes{0.0f, 0.0625f / 12, 0.6666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f};
  constexpr std::array<std::uint8_t, 8> ascending{0, 1, 6, 7, 4, 5, 2, 3};
  constexpr std::array<float, 7> bounds{0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
  // |x| > bound decides, so a negative value on a bound keeps the smaller magnitude: the bound moves one float down.
  constexpr auto below = [](float negative) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(negative) + 1); };
  codebook c{16, {}, {}, {}};
  for (unsigned k = 0; k < 8; ++k) {
    c.values[k] = magnitudes[k];
    c.values[8 + k] = -magnitudes[k];
    c.order[8 + k] = ascending[k];
    c.order[7 - k] = static_cast<std::uint8_t>(8 + ascending[k]);
  }
  c.bounds[7] = below(-0.0f);  // any negative number has the sign bit
  for (unsigned k = 0; k < 7; ++k) {
    c.bounds[8 + k] = bounds[k];
    c.bounds[6 - k] = below(-bounds[k]);
  }
  return c;
}();

struct nf4 {
  static constexpr format_spec spec{.name = "nf4", .block = 64, .bytes = 36,
      .codes = {{plane{4, 0, byte(4) + 4, {{2, 32}, {-4, 8}}}}}, .scale = {number::f32, 0}, .values = nf4_values};
};
struct fp4 {
  static constexpr format_spec spec{.name = "fp4", .block = 64, .bytes = 36,
      .codes = nf4::spec.codes, .scale = {number::f32, 0}, .values = fp4_values};
};

}  // namespace lowbit
