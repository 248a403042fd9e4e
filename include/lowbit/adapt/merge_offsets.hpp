// Exact merging into the offsets of blocks: QA-LoRA (Xu et al. 2024).
//
// An adapter that sees its inputs summed over each block of the weights changes all weights of a block by the same number. In a format that
// stores a block's offset as a number of its own (value = scale * code + minimum), that number is added to the offset, and codes and scales
// stay as they are: nothing is quantised again.
#pragma once

#include <lowbit/core/error.hpp>
#include <lowbit/matrix/low_rank.hpp>

#include <cmath>
#include <cstring>
#include <optional>
#include <string>

namespace lowbit {

/// Whether a format's blocks have an offset that any number can be added to: a minimum, and no sub-minima that share it.
constexpr bool has_offsets(const format_spec& s) noexcept { return s.minimum.present() && !s.sub_minimum.present(); }

/// The first block (of inputs, as the columns lie) for which A is not the same at all inputs; nothing: the adapter is pooled over blocks.
inline std::optional<std::size_t> find_unpooled(const low_rank_factors& f, std::size_t block,
                                                const std::uint32_t* inputs = nullptr) noexcept {
  const auto input = [&](std::size_t c) { return inputs != nullptr ? inputs[c] : c; };
  for (std::size_t c = 0; c < f.cols; ++c)
    for (std::size_t k = 0; k < f.rank; ++k)
      if (f.a[k * f.cols + input(c)] != f.a[k * f.cols + input(c / block * block)]) return c / block;
  return std::nullopt;
}

/// Adds scale * B A to the offsets of w. Returns the largest change of a weight by the rounding of an offset to how it is stored (float16
/// in q4_1). Fails (unsupported) where the format has no offsets, (bad_value) where the adapter is not pooled over blocks or an offset
/// overflows, and leaves w as it was. Expects equal shapes.
inline result<double> merge_offsets(const low_rank_factors& f, packed_matrix& w) {
  const format_spec& s = w.spec();
  LOWBIT_EXPECTS(f.rows == w.rows() && f.cols == w.cols());
  if (!has_offsets(s)) return failure{errc::unsupported, "the blocks of " + std::string(s.name) + " have no offset of their own to merge into"};
  const std::uint32_t* const inputs = w.view().inputs;
  if (const auto b = find_unpooled(f, s.block, inputs))
    return failure{errc::bad_value, "the adapter changes the weights of block " + std::to_string(*b) +
                                        " by different amounts; only one that is pooled over blocks of " + std::to_string(s.block) +
                                        " inputs goes into their offsets"};
  double rounding = 0;
  const std::size_t blocks = s.row_blocks(w.cols());
  std::vector<std::uint32_t> offsets(w.rows() * blocks);
  for (std::size_t r = 0; r < w.rows(); ++r)
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t input = inputs != nullptr ? inputs[b * s.block] : b * s.block;
      double delta = 0;
      for (std::size_t k = 0; k < f.rank; ++k)
        delta += static_cast<double>(f.b[r * f.rank + k]) * static_cast<double>(f.a[k * f.cols + input]);
      const double was = static_cast<double>(read_scalar(s.minimum, w.row(r) + b * s.bytes));
      const double wanted = was + delta * static_cast<double>(f.scale) / w.factor();
      const std::uint32_t bits = offsets[r * blocks + b] = number_bits(s.minimum.type, static_cast<float>(wanted));
      const double stored = static_cast<double>(number_value(s.minimum.type, bits));
      if (!std::isfinite(stored))
        return failure{errc::bad_value, "row " + std::to_string(r) + ", block " + std::to_string(b) + ": the offset is too large for its type"};
      rounding = std::max(rounding, std::fabs(stored - wanted) * std::fabs(w.factor()));
    }
  for (std::size_t r = 0; r < w.rows(); ++r)
    for (std::size_t b = 0; b < blocks; ++b)
      std::memcpy(w.row(r) + b * s.bytes + s.minimum.at, &offsets[r * blocks + b], size_of(s.minimum.type));
  return rounding;
}

}  // namespace lowbit
