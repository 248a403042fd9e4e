// ggml's quantisers for GGUF's block types, byte for byte (ggml-quants.c), one block at a time: those of kernel/ggml_blocks.hpp in a single
// lane, and those of kernel/range_fit.hpp.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/kernel/dispatch.hpp>

namespace lowbit {

namespace ggml {

/// The types that are not searched: by the block's range.
template <block_format F>
void quantise_unsearched(const float* x, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  float low, high;
  LOWBIT_BEST_KERNEL(find_range)(x, s.block, &low, &high);
  float extreme = -low > high ? low : high;
  kernel::ggml::find_first(x, s.block, &low, &extreme);
  const auto f = kernel::ggml::fit_unsearched(s, low, high, extreme);
  p.scale = number_bits(s.scale.type, f.scale);
  p.minimum = number_bits(s.minimum.type, f.offset);
  const kernel::grid_map map{f.scale, f.offset, f.inverse, 0, f.bias};
  LOWBIT_BEST_KERNEL(round_weights)({&s, x, s.block, &map, false, p.codes.data(), nullptr, kernel::ggml::rule_of(s)});
}

/// One block in a lane of its own.
template <block_format F>
void quantise_one(const float* x, const float* importance, float row_mean_square, block_parts<F>& p) noexcept {
  constexpr const format_spec& s = spec_of<F>;
  kernel::ggml::lane_blocks<F, float> b;
  kernel::ggml::quantise_lanes(kernel::ggml::lane_weights<float>{x, importance, row_mean_square}, b);
  p.scale = number_bits(s.scale.type, b.scale);
  p.minimum = number_bits(s.minimum.type, b.minimum);
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    if (s.sub_scale.present()) p.sub_scale[j] = static_cast<std::uint8_t>(s.sub_scale.stored(static_cast<int>(b.sub_scale[j])));
    if (s.sub_minimum.present()) p.sub_minimum[j] = static_cast<std::uint8_t>(s.sub_minimum.stored(static_cast<int>(b.sub_minimum[j])));
  }
  for (std::size_t i = 0; i < s.block; ++i) p.codes[i] = static_cast<std::uint8_t>(b.codes[i]);
}

}  // namespace ggml

/// Whether ggml has a reference quantiser for this format.
template <class F>
concept has_ggml_reference = kernel::ggml::in_lanes<F> || kernel::ggml::unsearched(spec_of<F>);

/// Chooses scales and codes of one block of finite weights as ggml does: with importance (one number for each weight, >= 0, some above 0 in
/// every sub-block) where it is given and the type heeds it. `row_mean_square` is the mean of x² over the whole row, summed from
/// its first weight on, which q4_0 … q5_1 use with importance.
template <block_format F>
  requires has_ggml_reference<F>
void ggml_quantise_block(const float* x, block_parts<F>& p, const float* importance = nullptr, float row_mean_square = 0) noexcept {
  if constexpr (kernel::ggml::unsearched(spec_of<F>)) {
    if constexpr (kernel::ggml::weighted<F>)
      if (importance != nullptr) return ggml::quantise_one<F>(x, importance, row_mean_square, p);
    ggml::quantise_unsearched<F>(x, p);
  } else {
    ggml::quantise_one<F>(x, kernel::ggml::weighted<F> ? importance : nullptr, row_mean_square, p);
  }
}

}  // namespace lowbit
