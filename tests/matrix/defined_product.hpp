// The integer product as a definition: plain loops over the codec's fields, for the kernels to be compared with.
#pragma once

#include <lowbit/matrix/packed_matrix.hpp>

#include <algorithm>
#include <cmath>

namespace lowbit::test {

inline float barrier(float v) {  // keeps a product from being fused with a sum
  volatile float kept = v;
  return kept;
}

/// The integer product as lowbit defines it, one output, with plain loops over the codec's fields.
inline float defined_int8(const packed_matrix& w, std::size_t row, const float* x) {
  const format_spec& s = w.spec();
  // Activations share a scale where weights do: in a block, or in a sub-block whose sub-scale is a number of its own.
  const bool numbered = s.sub_number != number::none;
  const std::size_t together = numbered ? s.sub_block() : s.block;
  float y = 0.0f;
  for (std::size_t begin = 0; begin < w.cols(); begin += together) {
    const std::uint8_t* const block = w.row(row) + begin / s.block * s.bytes;
    const std::size_t end = std::min<std::size_t>(begin + together, w.cols());
    float largest = 0.0f;
    for (std::size_t c = begin; c < end; ++c) largest = std::max(largest, std::fabs(x[c]));
    const float x_scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
    long long total = 0, less = 0, sum = 0;
    for (std::size_t c = begin; c < end; ++c) {
      const std::size_t i = c % s.block, j = i / s.sub_block();
      const auto q = static_cast<long long>(std::nearbyint(barrier(x[c] * inverse)));
      const auto level = static_cast<long long>(level_of(s, s.codes.raw(block, i), zero_point_of(s, block)));
      const int sub = s.sub_scale.present() && !numbered ? s.sub_scale.value(s.sub_scale.raw(block, j)) : 1;
      total += level * q * sub;
      sum += q;
      if (s.sub_minimum.present()) less += s.sub_minimum.value(s.sub_minimum.raw(block, j)) * q;
    }
    const float scale = numbered ? affine_of(s, block, begin % s.block / s.sub_block()).scale : read_scalar(s.scale, block);
    const float both = barrier(scale * x_scale);
    y += barrier(static_cast<float>(total) * both);
    if (s.minimum.present()) {
      const float weight = barrier(read_scalar(s.minimum, block) * x_scale);
      if (s.sub_minimum.present()) y -= barrier(static_cast<float>(less) * weight);
      else y += barrier(static_cast<float>(sum) * weight);
    }
  }
  return y;
}

}  // namespace lowbit::test
