// Rows of floats to blocks of the exchange layout, many blocks at a time: what quantise/ calls for whole matrices.
//
// GGUF's searched types run one block a lane (kernel/lanes.hpp): blocks are transposed into lanes, fitted together, and their codes
// transposed back. The bytes are those of the same source with one lane. What is only rounded is in kernel/nearest.hpp.
#pragma once

#include <lowbit/kernel/ggml_blocks.hpp>
#include <lowbit/kernel/nearest.hpp>

#include <limits>

namespace lowbit::kernel {

namespace detail {

/// The blocks of some rows, in order, as pointers to whole blocks: a ragged one is copied and padded with zeros.
template <std::size_t Block, std::size_t Lanes>
class block_source {
 public:
  LOWBIT_ALWAYS_INLINE explicit block_source(const quantise_args& a) noexcept : a_(a), per_row_(ceil_div(a.cols, Block)) {}
  [[nodiscard]] LOWBIT_ALWAYS_INLINE std::size_t count() const noexcept { return (a_.row_end - a_.row_begin) * per_row_; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE std::size_t row_of(std::size_t block) const noexcept { return a_.row_begin + block / per_row_; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE std::uint8_t* out_of(std::size_t block) const noexcept {
    return a_.out + (a_.row_begin * per_row_ + block) * a_.spec->bytes;
  }
  /// Weights of a block, for a lane; of one that is not there, zeros.
  LOWBIT_ALWAYS_INLINE const float* weights(std::size_t block, std::size_t lane) noexcept {
    if (block >= count()) return whole(nullptr, 0, lane);
    const std::size_t c = block % per_row_ * Block;
    return whole(a_.x + row_of(block) * a_.stride + c, a_.cols - c, lane);
  }
  LOWBIT_ALWAYS_INLINE const float* importance(std::size_t block, std::size_t lane) noexcept {
    if (block >= count()) return whole(nullptr, 0, lane);
    const std::size_t c = block % per_row_ * Block;
    return whole(a_.importance + c, a_.cols - c, lane);
  }

 private:
  LOWBIT_ALWAYS_INLINE const float* whole(const float* p, std::size_t n, std::size_t lane) noexcept {
    if (n >= Block) return p;
    for (std::size_t i = 0; i < Block; ++i) padded_[lane][i] = i < n ? p[i] : 0.0f;
    return padded_[lane];
  }
  const quantise_args& a_;
  std::size_t per_row_;
  float padded_[Lanes][Block];
};

/// Blocks into lanes: v[i] holds weight i of every block.
template <class Arch, std::size_t N>
LOWBIT_ALWAYS_INLINE void transpose_in(const float* const* blocks, lane_floats<Arch, 1>* v) noexcept {
  using batch = simd::batch<float, Arch>;
  constexpr std::size_t n = batch::size;
  static_assert(N % n == 0);
  for (std::size_t i = 0; i < N; i += n) {
    batch square[n];
    for (std::size_t l = 0; l < n; ++l) square[l] = batch::load_unaligned(blocks[l] + i);
    xsimd::transpose(square, square + n);
    for (std::size_t l = 0; l < n; ++l) v[i + l].part[0] = square[l];
  }
}

/// Codes out of lanes: four of a block at a time as one word, words[i / 4][lane].
template <class Arch, std::size_t N>
LOWBIT_ALWAYS_INLINE void codes_to_words(const lane_floats<Arch, 1>* codes, std::int32_t* words) noexcept {
  for (std::size_t i = 0; i < N; i += 4) {
    const auto code = [&](std::size_t j) LOWBIT_INLINE_LAMBDA { return xsimd::to_int(codes[i + j].part[0]); };
    const auto word = code(0) | (code(1) << 8) | (code(2) << 16) | (code(3) << 24);
    word.store_unaligned(words + i / 4 * simd::lanes<Arch>);
  }
}

/// The mean of x² of up to eight rows, each summed from its first weight on; eight sums at once hide the latency of one.
class row_mean_squares {
 public:
  LOWBIT_ALWAYS_INLINE explicit row_mean_squares(const quantise_args& a) noexcept : a_(a) {}
  LOWBIT_ALWAYS_INLINE float operator()(std::size_t row) noexcept {
    if (row >= begin_ + count_) {
      begin_ = row;
      count_ = a_.row_end - row < 8 ? a_.row_end - row : 8;
      const float* rows[8];
      for (std::size_t r = 0; r < 8; ++r) {
        rows[r] = a_.x + (row + (r < count_ ? r : 0)) * a_.stride;
        mean_[r] = 0;
      }
      for (std::size_t c = 0; c < a_.cols; ++c)
        for (std::size_t r = 0; r < 8; ++r) mean_[r] += rounded_product(rows[r][c], rows[r][c]);
      for (float& m : mean_) m /= static_cast<float>(a_.cols);
    }
    return mean_[row - begin_];
  }

 private:
  const quantise_args& a_;
  std::size_t begin_ = 0, count_ = 0;
  float mean_[8] = {};
};

/// One of ggml's types. Returns whether all scales are numbers.
template <class Arch, block_format F>
bool quantise_blocks(const quantise_args& a) noexcept {
  using lanes = lane_floats<Arch, 1>;
  constexpr const format_spec& s = spec_of<F>;
  constexpr std::size_t n = lanes::lanes, size = s.block, subs = s.sub_blocks();
  block_source<size, n> weights(a), importance(a);
  row_mean_squares mean_squares(a);
  lanes x[size], channels[size];
  ggml::lane_blocks<F, lanes> b;
  alignas(64) std::int32_t words[size / 4 * n];
  alignas(64) std::uint8_t codes[n * size];
  bool numbers = true;
  for (std::size_t first = 0; first < weights.count(); first += n) {
    const float* blocks[n];
    float mean_square[n];
    for (std::size_t l = 0; l < n; ++l) blocks[l] = weights.weights(first + l, l);
    transpose_in<Arch, size>(blocks, x);
    if (a.importance != nullptr) {
      for (std::size_t l = 0; l < n; ++l) {
        blocks[l] = importance.importance(first + l, l);
        mean_square[l] = !ggml::searched<F> && first + l < weights.count() ? mean_squares(weights.row_of(first + l)) : 0.0f;
      }
      transpose_in<Arch, size>(blocks, channels);
    } else {
      for (float& m : mean_square) m = 0;
    }
    ggml::quantise_lanes<F, lanes>({x, a.importance != nullptr ? channels : nullptr, lanes::load(mean_square)}, b);

    codes_to_words<Arch, size>(b.codes, words);
    float scale[n], minimum[n], sub_scale[subs][n], sub_minimum[subs][n];
    b.scale.store(scale);
    b.minimum.store(minimum);
    for (std::size_t j = 0; j < subs; ++j) {
      if (s.sub_scale.present()) b.sub_scale[j].store(sub_scale[j]);
      if (s.sub_minimum.present()) b.sub_minimum[j].store(sub_minimum[j]);
    }
    const std::size_t count = weights.count() - first < n ? weights.count() - first : n;
    std::uint8_t* out[n];
    for (std::size_t l = 0; l < count; ++l) {
      std::uint8_t raw_scale[subs] = {}, raw_minimum[subs] = {}, zero_point = 0;
      for (std::size_t j = 0; j < subs; ++j) {
        if (s.sub_scale.present()) raw_scale[j] = static_cast<std::uint8_t>(s.sub_scale.stored(static_cast<int>(sub_scale[j][l])));
        if (s.sub_minimum.present()) raw_minimum[j] = static_cast<std::uint8_t>(s.sub_minimum.stored(static_cast<int>(sub_minimum[j][l])));
      }
      for (std::size_t i = 0; i < size / 4; ++i) std::memcpy(codes + l * size + i * 4, words + i * n + l, 4);
      numbers &= scale[l] == scale[l] && minimum[l] == minimum[l] && mean_square[l] < std::numeric_limits<float>::infinity();
      std::uint32_t scale_bits = number_bits(s.scale.type, scale[l]), minimum_bits = number_bits(s.minimum.type, minimum[l]);
      out[l] = weights.out_of(first + l);
      write_header(s, {&scale_bits, &minimum_bits, &zero_point, raw_scale, raw_minimum, codes + l * size}, out[l]);
    }
    for (std::size_t l = 0, run = 1; l < count; l += run) {  // blocks side by side are packed in one call
      for (run = 1; l + run < count && out[l + run] == out[l] + run * s.bytes; ++run) {
      }
      pack_codes<Arch>(s, codes + l * size, run, 0, size, out[l]);
    }
  }
  return numbers;
}

template <block_format... F>
struct lane_types {
  static constexpr bool has(const format_spec& s, bool importance) noexcept {
    return ((s.gguf == spec_of<F>.gguf && (importance ? ggml::weighted<F> : !ggml::unsearched(spec_of<F>))) || ...);
  }
  template <class Arch>
  static bool quantise(const quantise_args& a) noexcept {
    bool numbers = false;
    (void)((a.spec->gguf == spec_of<F>.gguf && (numbers = quantise_blocks<Arch, F>(a), true)) || ...);
    return numbers;
  }
};
using lane_formats = lane_types<q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4, nvfp4, q1_0>;

}  // namespace detail

/// Whether quantise_rows has a format as ggml quantises it, with or without importance. Expects one of GGUF's types.
LOWBIT_ALWAYS_INLINE constexpr bool can_quantise_as_ggml(const format_spec& s, bool importance) noexcept {
  return detail::lane_formats::has(s, importance) || (!importance && ggml::unsearched(s));
}
/// Whether it has one by its blocks' ranges: plain floats, and blocks with one scale.
LOWBIT_ALWAYS_INLINE constexpr bool can_quantise_by_range(const format_spec& s) noexcept {
  return !s.is_recoded() && s.sub_blocks() == 1 && !s.sub_scale.present() && !s.sub_minimum.present();
}

/// Quantises rows. Returns whether all scales are numbers: with importance, weights above 1e18 can break a search. Expects one of the
/// two above.
template <class Arch>
bool quantise_rows(const quantise_args& a) noexcept {
  if (a.spec->is_float()) {
    detail::narrow_rows<Arch>(a);
  } else if (!a.as_ggml || (a.importance == nullptr && ggml::unsearched(*a.spec))) {
    // Four registers of codes make one of bytes. Where a block is no multiple of them, smaller registers do.
    using smaller = simd::arch_256<Arch>;
    if (std::is_same_v<smaller, Arch> || a.spec->block % (4 * simd::lanes<Arch>) == 0) detail::rows_to_nearest<Arch, Arch>(a).quantise();
    else detail::rows_to_nearest<Arch, smaller>(a).quantise();
  } else {
    return detail::lane_formats::quantise<Arch>(a);
  }
  return true;
}

}  // namespace lowbit::kernel
