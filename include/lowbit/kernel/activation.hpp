// Activations laid out for the kernels: tiles of tokens, within a tile [step][token], so that a product takes them as broadcasts.
//
// Integer path: each block of a token (the weights' block) gets a scale of its own, x ~ scale * q with q = x * 127 / max|x| rounded to
// nearest even (a NaN or an infinity makes the block's scale NaN, and so the outputs), and the sum of q over every sub-block. A zero-point
// that the whole format shares is taken away before the first product: accumulators start from -zero * sum. Exact path: floats, with
// float sums where minima need them. A tile has `tile_tokens` columns, the last one as few as tile_width says.
#pragma once

#include <lowbit/kernel/panel.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// Tokens that a kernel holds in registers at once.
template <class Arch>
inline constexpr std::size_t tile_tokens = simd::includes<Arch, xsimd::avx512f> ? 6 : 4;

/// Where prepared activations lie, in memory that place_activations divides.
struct activation_buffers {
  std::int32_t* words = nullptr;  ///< [tile][step][token], four int8 each
  float* floats = nullptr;        ///< [tile][padded column][token] (exact path; in the place of words)
  float* scales = nullptr;        ///< [tile][block][token]
  std::int32_t* sums = nullptr;   ///< [tile][sub-block][token]
  std::int32_t* starts = nullptr; ///< [tile][sub-block][token], what accumulators begin with
  std::int32_t* pairs = nullptr;  ///< [tile][pair][token], the sums as 16-bit numbers: of two sub-blocks, or one as low + 128 * high
  float* float_sums = nullptr;    ///< the same (exact path; in the place of sums)
};

struct activation_args {
  const panel_layout* layout;
  const float* x;               ///< [tokens, cols]
  std::size_t x_stride;
  const std::uint32_t* from;    ///< token t is row from[t] of x; null: row t
  std::size_t tokens, cols;
  std::size_t tile_begin, tile_end;
  activation_buffers out;
};

/// Divides `memory` (64-byte aligned) among the buffers of `tokens` tokens, and says how many bytes they take: a multiple of 64. With
/// null, only the latter.
inline std::size_t place_activations(const panel_layout& p, std::size_t tokens, std::size_t cols, std::size_t tile_tokens, bool exact,
                                     std::uint8_t* memory, activation_buffers* out) noexcept {
  const std::size_t columns = round_up(tokens, tile_tokens);
  const std::size_t blocks = p.shape.level == level_kind::plain ? 0 : p.blocks(cols), subs = blocks * p.sub_blocks;
  std::size_t at = 0;
  const auto take = [&](std::size_t bytes) {
    std::uint8_t* const here = memory == nullptr ? nullptr : memory + at;
    at += round_up(bytes, 64);
    return here;
  };
  activation_buffers b;
  if (exact) {
    b.floats = reinterpret_cast<float*>(take(columns * p.padded_cols(cols) * sizeof(float)));
    b.float_sums = reinterpret_cast<float*>(take(columns * subs * sizeof(float)));
  } else {
    b.words = reinterpret_cast<std::int32_t*>(take(columns * p.padded_cols(cols)));
    b.scales = reinterpret_cast<float*>(take(columns * blocks * sizeof(float)));
    b.sums = reinterpret_cast<std::int32_t*>(take(columns * subs * sizeof(std::int32_t)));
    b.starts = reinterpret_cast<std::int32_t*>(take(columns * subs * sizeof(std::int32_t)));
    b.pairs = reinterpret_cast<std::int32_t*>(take(columns * blocks * p.sum_pairs() * sizeof(std::int32_t)));
  }
  if (out != nullptr) *out = b;
  return at;
}

/// Whether activations prepared for one layout serve the other, with the same kernels and precision.
LOWBIT_ALWAYS_INLINE constexpr bool share_activations(const panel_layout& a, const panel_layout& b) noexcept {
  if (a.shape.level == level_kind::plain || b.shape.level == level_kind::plain) return a.shape.level == b.shape.level;
  return a.block == b.block && a.sub_block == b.sub_block && a.sum_pairs() == b.sum_pairs() && a.stored_zero == b.stored_zero &&
         a.zero == b.zero && a.shape.has_signed_levels() == b.shape.has_signed_levels();
}

/// The columns of a tile: all, or for the last tokens as few as a kernel exists for (1, 4 or all).
LOWBIT_ALWAYS_INLINE constexpr std::size_t tile_width(std::size_t tile, std::size_t tokens, std::size_t full) noexcept {
  const std::size_t rest = tokens - tile * full;
  return rest == 1 ? 1 : rest <= 4 && full > 4 ? 4 : full;
}

/// What unsigned bytes hold more than the levels they stand for, on every row: the format's own zero, and 128 where signed levels are
/// fed as level + 128. A zero-point that is stored for each row comes on top.
template <class Arch>
LOWBIT_ALWAYS_INLINE constexpr int shared_zero(const panel_layout& p) noexcept {
  return (p.stored_zero ? 0 : p.zero) + (p.shape.has_signed_levels() && simd::exact_u8s8<Arch> ? 128 : 0);
}

/// Blocks of activations whose largest magnitude is not above this count as zero (127 / max must not overflow).
inline constexpr float smallest_activation = 0x1p-100f;

/// The activations of a token, wherever they are.
LOWBIT_ALWAYS_INLINE const float* row_of_token(const activation_args& a, std::size_t token) noexcept {
  return a.x + (a.from != nullptr ? a.from[token] : token) * a.x_stride;
}

template <class Arch>
void quantise_activations(const activation_args& a) noexcept {
  constexpr std::size_t full = tile_tokens<Arch>, n = simd::lanes<Arch>;
  using floats = simd::batch<float, Arch>;
  const panel_layout& p = *a.layout;
  const int zero = shared_zero<Arch>(p);
  const std::size_t blocks = p.blocks(a.cols), subs = blocks * p.sub_blocks, steps = blocks * p.block_steps();
  for (std::size_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
    const std::size_t width = tile_width(tile, a.tokens, full);
    std::int32_t* const words = a.out.words + tile * full * steps;
    float* const scales = a.out.scales + tile * full * blocks;
    std::int32_t* const sums = a.out.sums + tile * full * subs;
    std::int32_t* const starts = a.out.starts + tile * full * subs;
    std::int32_t* const pairs = a.out.pairs + tile * full * blocks * p.sum_pairs();
    for (std::size_t t = 0; t < width; ++t) {
      const std::size_t token = tile * full + t;
      const bool present = token < a.tokens;
      const float* const x = row_of_token(a, present ? token : 0);
      for (std::size_t b = 0; b < blocks; ++b) {
        const std::size_t begin = b * p.block, end = !present ? begin : begin + p.block < a.cols ? begin + p.block : a.cols;
        // A maximum may lose a NaN; x * 0 does not, nor an infinity.
        floats most(0.0f), probes(0.0f);
        std::size_t c = begin;
        for (; c + n <= end; c += n) {
          const auto v = floats::load_unaligned(x + c);
          most = xsimd::max(most, xsimd::abs(v));
          probes += v * floats(0.0f);
        }
        float largest = xsimd::reduce_max(most), probe = xsimd::reduce_add(probes);
        for (; c < end; ++c) {
          const float v = x[c] < 0 ? -x[c] : x[c];
          largest = v > largest ? v : largest;
          probe += v * 0.0f;
        }
        scales[b * width + t] = largest / 127.0f + probe;
        const float inverse = largest > smallest_activation ? 127.0f / largest : 0.0f;
        for (std::size_t j = 0; j < p.sub_blocks; ++j) {
          const std::size_t from = begin + j * p.sub_block;
          const std::size_t stop = from + p.sub_block < end ? from + p.sub_block : end;
          std::int32_t sum = 0;
          std::size_t k = from;
          std::int32_t* word = words + (b * p.block_steps() + j * p.sub_steps) * width + t;
          for (std::size_t step = 0; step < p.sub_steps; step += n / step_weights) {
            // n values at a time; past the end they are zero.
            alignas(64) float values[n];
            floats v;
            if (k + n <= stop) {
              v = floats::load_unaligned(x + k);
            } else {
              for (std::size_t i = 0; i < n; ++i) values[i] = k + i < stop ? x[k + i] : 0.0f;
              v = floats::load_aligned(values);
            }
            k += n;
            const auto q = xsimd::nearbyint_as_int(floats(v * floats(inverse)));
            sum += xsimd::reduce_add(q);
            alignas(64) std::int8_t narrow[n];
            simd::store_narrowed<Arch>(narrow, q, Arch{});
            for (std::size_t i = 0; i < n / step_weights && step + i < p.sub_steps; ++i, word += width)
              std::memcpy(word, narrow + i * step_weights, step_weights);
          }
          sums[(b * p.sub_blocks + j) * width + t] = sum;
          starts[(b * p.sub_blocks + j) * width + t] = -zero * sum;
        }
        for (std::size_t j = 0; j < p.sum_pairs(); ++j) {
          int low, high;
          if (p.stored_zero) {
            const int sum = sums[(b * p.sub_blocks + j) * width + t];
            low = sum & 127;
            high = sum >> 7;
          } else {
            const std::int32_t* const two = sums + (b * p.sub_blocks + 2 * j) * width + t;
            low = two[0];
            high = 2 * j + 1 < p.sub_blocks ? two[width] : 0;
          }
          pairs[(b * p.sum_pairs() + j) * width + t] = static_cast<std::int32_t>((static_cast<unsigned>(low) & 0xffffu) | static_cast<unsigned>(high) << 16);
        }
      }
    }
  }
}

template <class Arch>
void copy_activations(const activation_args& a) noexcept {
  constexpr std::size_t full = tile_tokens<Arch>;
  const panel_layout& p = *a.layout;
  const bool plain = p.shape.level == level_kind::plain;
  const std::size_t padded = p.padded_cols(a.cols);
  const std::size_t subs = plain ? 0 : p.blocks(a.cols) * p.sub_blocks;
  for (std::size_t tile = a.tile_begin; tile < a.tile_end; ++tile) {
    const std::size_t width = tile_width(tile, a.tokens, full);
    float* const floats = a.out.floats + tile * full * padded;
    for (std::size_t t = 0; t < width; ++t) {
      const std::size_t token = tile * full + t;
      const bool present = token < a.tokens;
      const float* const x = row_of_token(a, present ? token : 0);
      if (plain) {
        for (std::size_t c = 0; c < a.cols; ++c) floats[c * width + t] = present ? x[c] : 0.0f;
        continue;
      }
      float* const sums = a.out.float_sums + tile * full * subs;
      const std::size_t sub_padded = p.sub_steps * step_weights;
      for (std::size_t j = 0; j < subs; ++j) {
        float sum = 0.0f;
        for (std::size_t i = 0; i < sub_padded; ++i) {
          const std::size_t c = j * p.sub_block + i;
          const float v = present && i < p.sub_block && c < a.cols ? x[c] : 0.0f;
          floats[(j * sub_padded + i) * width + t] = v;
          sum += v;
        }
        sums[j * width + t] = sum;
      }
    }
  }
}

}  // namespace lowbit::kernel
