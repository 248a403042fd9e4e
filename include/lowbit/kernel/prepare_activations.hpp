// Rounds activations, or copies them, into what the kernels take: see activation.hpp, which says how they lie.
#pragma once

#include <lowbit/kernel/activation.hpp>

namespace lowbit::kernel {

/// Blocks of activations whose largest magnitude is not above this count as zero (127 / max and 32767 / max must not overflow).
inline constexpr float smallest_activation = 0x1p-100f;

/// The activations of a token, wherever they are.
LOWBIT_ALWAYS_INLINE const float* row_of_token(const activation_args& a, std::size_t token) noexcept {
  return a.x + (a.from != nullptr ? a.from[token] : token) * a.x_stride;
}

namespace detail {

/// Two 16-bit numbers as a word, the first in its low half.
LOWBIT_ALWAYS_INLINE constexpr std::int32_t two_int16(int low, int high) noexcept {
  return static_cast<std::int32_t>((static_cast<unsigned>(low) & 0xffffu) | static_cast<unsigned>(high) << 16);
}

/// Rounds tokens into the columns of a tile, `width` of them, for matrix registers or not. What the layout says is kept in members: behind a
/// reference it would be loaded anew after every store of bytes.
template <class Arch, activation_kind Kind>
class tile_rounding {
 public:
  /// out: the tile's.
  tile_rounding(const panel_layout& p, const activation_buffers& out, std::size_t width, bool matrices) noexcept
      : out_(out), width_(width), block_(p.block), block_words_(width * p.block_steps()), sub_block_(p.sub_block), sub_steps_(p.sub_steps),
        sub_blocks_(p.sub_blocks), pairs_(p.sum_pairs()), strides_(strides_of(p.block_steps(), width)), matrices_(matrices), stored_zero_(p.stored_zero),
        zero_(static_cast<std::uint32_t>(shared_zero<Arch, Kind>(p, matrices))),
        levels_(Kind == activation_kind::int16 ? static_cast<float>(p.largest_int16()) : 127.0f) {}

  /// Column t: `cols` values at x, and zeros up to the end of the last block.
  LOWBIT_ALWAYS_INLINE void run(const float* x, std::size_t cols, std::size_t t, std::size_t blocks) const noexcept {
    const std::size_t whole = sub_block_ % n != 0 ? 0 : cols / block_;
    for (std::size_t b = 0; b < whole; ++b) round<true>(x, b * block_, (b + 1) * block_, t, b);
    for (std::size_t b = whole; b < blocks; ++b) {
      const std::size_t begin = b * block_ < cols ? b * block_ : cols;
      round<false>(x, begin, begin + block_ < cols ? begin + block_ : cols, t, b);
    }
  }

 private:
  static constexpr std::size_t n = simd::lanes<Arch>, words = step_words(Kind), steps_of_register = n / step_weights;
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;

  /// Columns [begin, end), which are block b. `Whole`: all that a block has, and its sub-blocks are whole registers.
  template <bool Whole>
  LOWBIT_ALWAYS_INLINE void round(const float* x, std::size_t begin, std::size_t end, std::size_t t, std::size_t b) const noexcept {
    // n values from column k; past `stop` they are zero.
    const auto load = [&](std::size_t k, std::size_t stop) LOWBIT_INLINE_LAMBDA {
      if (Whole || k + n <= stop) return floats(floats::load_unaligned(x + k));
      alignas(64) float values[n];
      for (std::size_t i = 0; i < n; ++i) values[i] = k + i < stop ? x[k + i] : 0.0f;
      return floats(floats::load_aligned(values));
    };
    // As integers magnitudes have the order of their floats, and infinity and NaN come after all others.
    ints most(0);
    for (std::size_t c = begin; c < end; c += n) most = xsimd::max(most, ints(xsimd::bitwise_cast<std::int32_t>(load(c, end)) & ints(0x7fff'ffff)));
    const std::int32_t bits = xsimd::reduce_max(most);
    const float largest = std::bit_cast<float>(bits < 0x7f80'0000 ? bits : 0x7fc0'0000);
    const floats inverse(largest > smallest_activation ? levels_ / largest : 0.0f);
    out_.scales[b * width_ + t] = largest / levels_;
    std::int32_t* const first = out_.words + b * block_words_ * words + t * (matrices_ ? strides_.token : words);
    std::int32_t* const block_sums = out_.sums + b * sub_blocks_ * width_ + t;
    std::int32_t* const block_starts = out_.starts + b * sub_blocks_ * width_ + t;
    for (std::size_t j = 0; j < sub_blocks_; ++j) {
      const std::size_t from = begin + j * sub_block_, stop = from + sub_block_ < end ? from + sub_block_ : end;
      ints sums(0);
      for (std::size_t step = 0; step < sub_steps_; step += steps_of_register) {
        const auto q = xsimd::nearbyint_as_int(floats(load(from + step * step_weights, stop) * inverse));
        sums += q;
        const std::size_t left = sub_steps_ - step;
        store_steps(first, j * sub_steps_ + step, Whole || left > steps_of_register ? steps_of_register : left, q);
      }
      const auto sum = static_cast<std::uint32_t>(simd::sum_of_lanes<Arch>(sums, Arch{}));  // codes of a NaN may be any numbers
      block_sums[j * width_] = static_cast<std::int32_t>(sum);
      block_starts[j * width_] = static_cast<std::int32_t>(0u - zero_ * sum);
    }
    for (std::size_t j = 0; j < pairs_; ++j) {
      int low, high;
      if (stored_zero_) {
        low = block_sums[j * width_] & 127;
        high = block_sums[j * width_] >> 7;
      } else {
        low = block_sums[2 * j * width_];
        high = 2 * j + 1 < sub_blocks_ ? block_sums[(2 * j + 1) * width_] : 0;
      }
      out_.pairs[(b * pairs_ + j) * width_ + t] = two_int16(low, high);
    }
  }

  /// `steps` steps of a token's block at `first`, the one after `at` others.
  LOWBIT_ALWAYS_INLINE void store_steps(std::int32_t* first, std::size_t at, std::size_t steps, const ints& q) const noexcept {
    std::int32_t* const word = first + (matrices_ ? at / matrix_steps * strides_.piece + at % matrix_steps : at * width_ * words);
    const auto store_bytes = [&](std::int32_t* to, const ints& narrow) LOWBIT_INLINE_LAMBDA {
      if (matrices_ && steps == steps_of_register) return simd::store_narrowed<Arch>(reinterpret_cast<std::int8_t*>(to), narrow, Arch{});
      alignas(64) std::int8_t all[n];
      simd::store_narrowed<Arch>(all, narrow, Arch{});
      for (std::size_t i = 0; i < steps; ++i) std::memcpy(to + i * (matrices_ ? 1 : width_), all + i * step_weights, step_weights);
    };
    if constexpr (Kind == activation_kind::int8) {
      store_bytes(word, q);
    } else if (matrices_) {
      store_bytes(word, q >> 8);
      store_bytes(word + block_words_, (q << 24) >> 24);  // the low bytes follow the high ones
    } else {
      alignas(64) std::int32_t wide[n];
      q.store_aligned(wide);
      for (std::size_t i = 0; i < steps; ++i)
        for (std::size_t h = 0; h < words; ++h) word[i * width_ * words + h] = two_int16(wide[i * step_weights + h], wide[i * step_weights + h + 2]);
    }
  }

  const activation_buffers out_;
  const std::size_t width_, block_, block_words_, sub_block_, sub_steps_, sub_blocks_, pairs_;
  const matrix_strides strides_;
  const bool matrices_, stored_zero_;
  const std::uint32_t zero_;
  const float levels_;
};

}  // namespace detail

/// Integer activations of a tile after the other; Kind is int8 or int16.
template <class Arch, activation_kind Kind>
void quantise_activations(const activation_args& a) noexcept {
  constexpr std::size_t words = step_words(Kind);
  const panel_layout& p = *a.layout;
  const std::size_t full = tile_tokens<Arch>(p, Kind, a.tokens);
  const std::size_t blocks = p.blocks(a.cols), subs = blocks * p.sub_blocks;
  for (std::size_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
    const std::size_t width = tile_width<Kind>(tile, a.tokens, full), first = tile * full;
    const bool matrices = width == matrix_rows;
    activation_buffers out;
    out.words = a.out.words + first * blocks * p.block_steps() * words;
    out.scales = a.out.scales + first * blocks;
    out.sums = a.out.sums + first * subs;
    out.starts = a.out.starts + first * subs;
    out.pairs = a.out.pairs + first * blocks * p.sum_pairs();
    const detail::tile_rounding<Arch, Kind> tokens(p, out, width, matrices);
    for (std::size_t t = 0; t < width; ++t) {
      const bool present = first + t < a.tokens;
      tokens.run(row_of_token(a, present ? first + t : 0), present ? a.cols : 0, t, blocks);
    }
  }
}

/// Pairs of bfloat16, rounded to nearest even.
template <class Arch>
void round_activations(const activation_args& a) noexcept {
  constexpr activation_kind kind = activation_kind::bf16;
  const std::size_t full = tile_tokens<Arch>(*a.layout, kind, a.tokens);
  const std::size_t steps = pair_steps(a.cols);
  for (std::size_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
    const std::size_t width = tile_width<kind>(tile, a.tokens, full), first = tile * full;
    const bool matrices = width == matrix_rows;
    for (std::size_t t = 0; t < width; ++t) {
      const bool present = first + t < a.tokens;
      const float* const x = row_of_token(a, present ? first + t : 0);
      std::int32_t* const words = a.out.words + first * steps;
      const matrix_strides strides = strides_of(steps, width);
      for (std::size_t s = 0; s < steps; s += matrix_steps) {
        std::uint16_t numbers[matrix_steps * pair_weights] = {};
        const std::size_t c = s * pair_weights, left = present && c < a.cols ? a.cols - c : 0;
        if (left >= std::size(numbers))
          for (std::size_t i = 0; i < std::size(numbers); ++i) numbers[i] = to_bf16(x[c + i]).bits;
        else
          for (std::size_t i = 0; i < left; ++i) numbers[i] = to_bf16(x[c + i]).bits;
        if (matrices) std::memcpy(words + s / matrix_steps * strides.piece + t * strides.token, numbers, sizeof numbers);
        else
          for (std::size_t i = 0; i < matrix_steps; ++i) words[(s + i) * width + t] = detail::two_int16(numbers[pair_weights * i], numbers[pair_weights * i + 1]);
      }
    }
  }
}

template <class Arch>
void copy_activations(const activation_args& a) noexcept {
  const panel_layout& p = *a.layout;
  constexpr std::size_t full = register_tokens<Arch>;
  // A plain format is one sub-block of all columns.
  const bool plain = p.shape.level == level_kind::plain;
  const std::size_t subs = plain ? 1 : p.blocks(a.cols) * p.sub_blocks, sub = plain ? a.cols : p.sub_block;
  const std::size_t sub_padded = plain ? a.cols : p.sub_steps * step_weights;
  float factors[step_weights];
  for (std::size_t i = 0; i < step_weights; ++i) factors[i] = is_alone(a.tokens) ? p.shape.activation_factor(i) : 1.0f;
  for (std::size_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
    const std::size_t width = tile_width<activation_kind::floats>(tile, a.tokens, full), first = tile * full;
    float* const floats = a.out.floats + first * p.padded_cols(a.cols);
    for (std::size_t t = 0; t < width; ++t) {
      const bool present = first + t < a.tokens;
      const float* const x = row_of_token(a, present ? first + t : 0);
      for (std::size_t j = 0; j < subs; ++j) {
        const std::size_t begin = j * sub, left = present && begin < a.cols ? a.cols - begin : 0, count = left < sub ? left : sub;
        float* out = floats + j * sub_padded * width + t;
        if (plain && width == 1) {
          if (count != 0) std::memcpy(out, x + begin, count * sizeof(float));
          continue;
        }
        for (std::size_t i = 0; i < sub_padded; ++i, out += width) *out = i < count ? x[begin + i] * factors[i % step_weights] : 0.0f;
        if (!p.has_float_sums() || !is_alone(a.tokens)) continue;
        float sums[step_weights] = {};
        for (std::size_t i = 0; i < count; ++i) sums[i % step_weights] += x[begin + i];
        a.out.float_sums[first * subs + j * width + t] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
    }
  }
}

}  // namespace lowbit::kernel
