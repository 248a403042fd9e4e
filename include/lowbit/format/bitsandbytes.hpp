// The 4-bit formats of bitsandbytes: NF4 (QLoRA, Dettmers et al. 2023, appendix E) and its FP4, in blocks of 64 with float scales.
//
// Two codes share a byte, the first in the high nibble. In bitsandbytes' files the scales ("absmax") and the codes of a tensor are
// arrays of their own; in memory lowbit keeps a block's scale before its codes. Tables: bitsandbytes functional.py, kernels.cu.
#pragma once

#include <lowbit/format/spec.hpp>

namespace lowbit {

/// The quantiles of a normal distribution that NF4 codes stand for.
inline constexpr codebook nf4_values{16, {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f}};
/// Sign and magnitude; the magnitudes are not in order (kernels.cu, dDequantizeFP4).
inline constexpr codebook fp4_values{16, {0.0f, 0.0625f / 12, 0.6666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f,
    -0.0f, -0.0625f / 12, -0.6666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f}};

struct nf4 {
  static constexpr format_spec spec{.name = "nf4", .block = 64, .bytes = 36,
      .codes = {{plane{4, 0, byte(4) + 4, {{2, 32}, {-4, 8}}}}}, .scale = {number::f32, 0}, .values = nf4_values};
};
struct fp4 {
  static constexpr format_spec spec{.name = "fp4", .block = 64, .bytes = 36,
      .codes = nf4::spec.codes, .scale = {number::f32, 0}, .values = fp4_values};
};

}  // namespace lowbit
