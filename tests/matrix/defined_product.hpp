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

/// A weight's level in integer products, and what a level is worth: codebooks of floats are rounded to 2 * 8064 steps of their range.
inline std::pair<long long, float> defined_level(const format_spec& s, unsigned code, int zero_point) {
  if (!s.values.present() || s.values.fits_int8()) return {static_cast<long long>(level_of(s, code, zero_point)), 1.0f};
  float largest = 0.0f;
  for (std::size_t i = 0; i < s.values.size; ++i) largest = std::max(largest, std::fabs(s.values.values[i]));
  return {std::llround(static_cast<double>(s.values.values[code]) / static_cast<double>(largest) * 8064), largest / 8064};
}

/// The largest 16-bit activation: 32,767, or less where the sum of a block of products would need more than 31 bits, or that of a sub-block
/// with zero-points of its own more than 22. 0: the format has no products with such activations.
inline int defined_int16_levels(const format_spec& s) {
  if (s.is_float() || s.values.present() || s.codes.bits() < 6 || s.sub_minimum.present()) return 0;
  long long level = 0, sub_scale = 1;
  for (const unsigned code : {0u, (1u << s.codes.bits()) - 1, 1u << (s.codes.bits() - 1), (1u << (s.codes.bits() - 1)) - 1})
    for (const int zero : {0, s.zero_point.present() ? (1 << s.codes.bits()) - 1 : 0})
      level = std::max(level, std::llabs(static_cast<long long>(level_of(s, code, zero))));
  const bool numbered = s.sub_number != number::none;
  if (s.sub_scale.present() && !numbered) sub_scale = 128;
  const long long together = static_cast<long long>(numbered ? s.sub_block() : s.block);
  long long most = std::min(32767LL, 0x7fff'ffffLL / (level * sub_scale * together));
  if (s.zero_point.present()) most = std::min(most, 0x3f'ffffLL / static_cast<long long>(s.sub_block()));
  return static_cast<int>(most);
}

/// The integer product as lowbit defines it, one output, with plain loops over the codec's fields: activations are integers up to `levels`.
inline float defined_product(const packed_matrix& w, std::size_t row, const float* x, int levels = 127) {
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
    const float most = static_cast<float>(levels), x_scale = largest / most, inverse = largest > 0 ? most / largest : 0.0f;
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
