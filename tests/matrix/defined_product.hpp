// The integer product as a definition: plain loops over the codec's fields, for the kernels to be compared with.
#pragma once

#include <lowbit/matrix/packed_matrix.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace lowbit::test {

inline float barrier(float v) {  // keeps a product from being fused with a sum
  volatile float kept = v;
  return kept;
}

/// What 8-bit activations leave of x for a second column: x - scale * q, block by block.
inline std::vector<float> defined_rest(const format_spec& s, const float* x, std::size_t cols) {
  const std::size_t together = s.sub_number != number::none ? s.sub_block() : s.block;
  std::vector<float> rest(cols);
  for (std::size_t begin = 0; begin < cols; begin += together) {
    const std::size_t end = std::min(begin + together, cols);
    float largest = 0.0f;
    for (std::size_t c = begin; c < end; ++c) largest = std::max(largest, std::fabs(x[c]));
    const float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (std::size_t c = begin; c < end; ++c) rest[c] = x[c] - barrier(std::nearbyint(barrier(x[c] * inverse)) * scale);
  }
  return rest;
}

/// A weight's level in integer products, and what a level is worth: codebooks of floats are rounded to 2 * 8064 steps of their range.
inline std::pair<long long, float> defined_level(const format_spec& s, unsigned code, int zero_point) {
  if (!s.values.present() || s.values.fits_int8()) return {static_cast<long long>(level_of(s, code, zero_point)), 1.0f};
  float largest = 0.0f;
  for (std::size_t i = 0; i < s.values.size; ++i) largest = std::max(largest, std::fabs(s.values.values[i]));
  return {std::llround(static_cast<double>(s.values.values[code]) / static_cast<double>(largest) * 8064), largest / 8064};
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
    float worth = 1.0f;
    for (std::size_t c = begin; c < end; ++c) {
      const std::size_t i = c % s.block, j = i / s.sub_block();
      const auto q = static_cast<long long>(std::nearbyint(barrier(x[c] * inverse)));
      const auto [level, step] = defined_level(s, s.codes.raw(block, i), zero_point_of(s, block));
      worth = step;
      const int sub = s.sub_scale.present() && !numbered ? s.sub_scale.value(s.sub_scale.raw(block, j)) : 1;
      total += level * q * sub;
      sum += q;
      if (s.sub_minimum.present()) less += s.sub_minimum.value(s.sub_minimum.raw(block, j)) * q;
    }
    const float scale = numbered ? affine_of(s, block, begin % s.block / s.sub_block()).scale : read_scalar(s.scale, block);
    const float both = barrier(barrier(scale * worth) * x_scale);
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
