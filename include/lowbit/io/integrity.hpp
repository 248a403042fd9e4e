// What can be wrong with weights that are structurally fine: scales that are not numbers, blocks of nothing but zeros, codes and zero-points
// that no quantiser of the format writes.
#pragma once

#include <lowbit/matrix/dequantise.hpp>

#include <cmath>
#include <vector>

namespace lowbit {

/// What was found in a matrix, counted in blocks (of floats: in weights; where each sub-block has a scale of its own and the block none, in
/// sub-blocks), and where the first of each kind is.
struct weight_findings {
  struct kind {
    std::size_t count = 0;
    std::size_t row = 0, col = 0;  ///< of the first one's first weight

    void add(std::size_t r, std::size_t c) noexcept {
      if (count++ == 0) row = r, col = c;
    }
    /// Adds what was found in rows that come later, from `first_row` on.
    void append(const kind& later, std::size_t first_row) noexcept {
      if (count == 0 && later.count != 0) row = first_row + later.row, col = later.col;
      count += later.count;
    }
  };
  kind not_finite;    ///< a scale or a minimum, and with it a weight, is NaN or infinite
  kind zero;          ///< every weight is zero (not of blocks of fewer than eight)
  kind out_of_range;  ///< of whole blocks: a code, zero-point or scale that means nothing in the format
  std::size_t blocks = 0;

  void append(const weight_findings& later, std::size_t first_row) noexcept {
    not_finite.append(later.not_finite, first_row);
    zero.append(later.zero, first_row);
    out_of_range.append(later.out_of_range, first_row);
    blocks += later.blocks;
  }
};

namespace detail {

/// The largest code that the format's quantisers write.
inline unsigned largest_code(const format_spec& s) noexcept { return s.name == "tq2_0" ? 2 : (1u << s.codes.bits()) - 1; }

inline bool is_out_of_range(const format_spec& s, const std::uint8_t* block) noexcept {
  if (s.is_recoded()) {  // base 3: other bytes than the encoder's mean digits as well
    std::uint8_t planes[max_recoded_bytes], again[max_recoded_bytes];
    if (!s.is_writable()) return false;
    s.recode.decode(block, planes);
    s.recode.encode(planes, again);
    return std::memcmp(block, again, s.bytes) != 0;
  }
  if (s.zero_point.present() && s.zero_point.raw(block, 0) >= 1u << s.codes.bits()) return true;
  if (s.scale.type == number::e8m0_half && block[s.scale.at] == 255) return true;  // NaN (OCP Microscaling v1.0, 5.4.1)
  if (s.sub_number == number::e4m3_half)
    for (std::size_t j = 0; j < s.sub_blocks(); ++j)
      if (s.sub_scale.raw(block, j) >= 127) return true;  // NaN, or negative
  const unsigned largest = largest_code(s);
  if (largest + 1 == 1u << s.codes.bits()) return false;
  for (std::size_t i = 0; i < s.block; ++i)
    if (s.codes.raw(block, i) > largest) return true;
  return false;
}

}  // namespace detail

/// Looks at every weight of a matrix. Of floats, `zero` counts rows. (The unit has no default, which would compile every kernel wherever
/// this file is included.)
inline weight_findings find_in_weights(packed_view w, const kernel::unit& unit) {
  weight_findings found;
  const format_spec& s = *w.spec;
  const std::size_t step = s.is_float() ? w.cols : s.sub_number != number::none ? s.sub_block() : s.block;
  std::vector<float> row(w.cols);
  serial_executor serial;
  for (std::size_t r = 0; r < w.rows; ++r) {
    dequantise({w.spec, 1, w.cols, w.row(r)}, {row.data(), 1, w.cols}, serial, unit);
    for (std::size_t c = 0; c < w.cols; c += step) {
      const std::size_t end = std::min(c + step, w.cols);
      float probe = 0.0f;  // NaN once a weight is not finite
      bool zero = true;
      for (std::size_t i = c; i < end; ++i) {
        probe += row[i] * 0.0f;
        zero = zero && row[i] == 0.0f;
      }
      found.blocks += s.is_float() ? end - c : 1;
      if (zero && (s.is_float() || step >= 8)) found.zero.add(r, c);  // a few weights are zeros by chance
      if (!(probe == 0.0f)) {
        if (!s.is_float()) found.not_finite.add(r, c);
        else
          for (std::size_t i = c; i < end; ++i)
            if (!std::isfinite(row[i])) found.not_finite.add(r, i);
      }
      if (!s.is_float() && c % s.block == 0 && detail::is_out_of_range(s, w.row(r) + c / s.block * s.bytes)) found.out_of_range.add(r, c);
    }
  }
  return found;
}

}  // namespace lowbit
