// Activations laid out for the kernels: tiles of tokens, within a tile [step][token], so that a product takes them as broadcasts.
//
// Integer path: each block of a token (the weights' block) gets a scale of its own, x ~ scale * q with q = x * 127 / max|x| rounded to
// nearest even (a NaN or an infinity makes the block's scale NaN, and so the outputs), and the sum of q over every sub-block. A zero-point
// that the whole format shares is taken away before the first product: accumulators start from -zero * sum. With 16 bits the same, but for
// 127, which is panel_layout::largest_int16. Exact path: floats as they are; a token alone times code_shape::activation_factor, with sums where
// minima or zero-points need them. Beside weights of bfloat16, pairs of bfloat16. A tile has `tile_tokens` columns, the last one as few as tile_width
// says. Matrix registers take whole tiles otherwise: within a block [token][step].
#pragma once

#include <lowbit/kernel/panel.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel {

/// What activations are in a product.
enum class activation_kind : std::uint8_t { int8, int16, bf16, floats };
inline constexpr std::size_t activation_kinds = 4;
/// Words that hold one token's numbers for a step: of four weights, or of two of bfloat16.
LOWBIT_ALWAYS_INLINE constexpr std::size_t step_words(activation_kind kind) noexcept { return kind == activation_kind::int16 ? 2 : 1; }
/// Steps of a matrix register, at most.
inline constexpr std::size_t matrix_steps = 16;
/// Columns that a step of bfloat16 multiplies, and the steps of a row, as many as fill matrix registers.
inline constexpr std::size_t pair_weights = 2;
LOWBIT_ALWAYS_INLINE constexpr std::size_t pair_steps(std::size_t cols) noexcept { return round_up(ceil_div(cols, pair_weights), matrix_steps); }

/// How words lie for matrix registers: from token to token, and from one register's steps of a token to the next one's. Whole registers lie in
/// one piece each; rows of any other length lie one after the other.
struct matrix_strides {
  std::size_t token, piece;
};
LOWBIT_ALWAYS_INLINE constexpr matrix_strides strides_of(std::size_t block_steps, std::size_t tokens) noexcept {
  if (block_steps % matrix_steps == 0) return {matrix_steps, matrix_steps * tokens};
  return {block_steps, matrix_steps};
}

/// A zero-point that all rows share, as far as matrix registers are fed levels with it taken away: signed bytes then.
LOWBIT_ALWAYS_INLINE constexpr int zero_of_levels(const panel_layout& p) noexcept {
  return p.stored_zero || p.shape.has_signed_levels() || p.zero < 0 ? 0 : p.zero < 127 ? p.zero : 127;
}

/// Whether there is a product in matrix registers. Sums leave them where a scale changes, and blocks have to end on slabs.
template <class Arch>
LOWBIT_ALWAYS_INLINE constexpr bool has_matrix_products(code_shape shape, activation_kind kind) noexcept {
  if (!simd::has_matrix_registers<Arch> || kind == activation_kind::floats) return false;
  if (kind == activation_kind::bf16) return true;
  if (shape.sub == sub_kind::none) return shape.step == stepping::slabs;
  return kind == activation_kind::int8 && shape.step != stepping::steps && (shape.level == level_kind::unsigned_code || shape.has_table());
}
/// Tokens that a kernel holds in vector registers at once.
template <class Arch>
inline constexpr std::size_t register_tokens = simd::includes<Arch, xsimd::avx512f> ? 6 : 4;
/// Rows, or tokens, of a matrix register.
inline constexpr std::size_t matrix_rows = 16;

/// Whether whole tiles of so many tokens go there: where they are enough to share what is unpacked (more than two tiles without; two of these if a
/// level is unpacked to two bytes, or an int8 product's sum is of less than a register's steps), and the system lets the process. With sub-scales in the
/// levels, sums are of whole registers.
template <class Arch>
LOWBIT_ALWAYS_INLINE bool in_matrix_registers(const panel_layout& p, activation_kind kind, std::size_t tokens) noexcept {
  if constexpr (simd::has_matrix_registers<Arch>) {
    if (!has_matrix_products<Arch>(p.shape, kind)) return false;
    if (kind != activation_kind::bf16) {
      const bool two_level = p.shape.sub != sub_kind::none;
      if (two_level && (p.block_steps() % matrix_steps != 0 || !p.scaled_levels)) return false;
      const bool two_tiles = two_level ? !p.shape.has_byte_products() : kind == activation_kind::int8 && p.sub_steps < matrix_steps;
      if (tokens < (two_tiles ? 2 * matrix_rows : 2 * register_tokens<Arch> + 1)) return false;
    }
    return simd::may_use_matrix_registers<Arch>();
  } else {
    return false;
  }
}

/// The columns of a tile, of so many tokens.
template <class Arch>
LOWBIT_ALWAYS_INLINE std::size_t tile_tokens(const panel_layout& p, activation_kind kind, std::size_t tokens) noexcept {
  return in_matrix_registers<Arch>(p, kind, tokens) ? matrix_rows : register_tokens<Arch>;
}

/// Whether an exact product takes weights as they are decoded, because there is one token: its activations come times code_shape::activation_factor,
/// with their sums.
LOWBIT_ALWAYS_INLINE constexpr bool is_alone(std::size_t tokens) noexcept { return tokens == 1; }

/// Where prepared activations lie, in memory that place_activations divides.
struct activation_buffers {
  /// [tile][step][token], four int8; or [tile][step][token][2], the int16 of places 0 and 2, and of 1 and 3; or [tile][step][token], two bf16.
  /// For matrix registers [tile][block][token][step], or where 16 divides the steps [tile][block][16 steps][token][step]; int16 as
  /// [tile][block][2]…, four high bytes and four low ones.
  std::int32_t* words = nullptr;
  float* floats = nullptr;        ///< [tile][padded column][token] (exact path; in the place of words)
  float* scales = nullptr;        ///< [tile][block][token]
  std::int32_t* sums = nullptr;   ///< [tile][sub-block][token]
  std::int32_t* starts = nullptr; ///< [tile][sub-block][token], what accumulators begin with
  std::int32_t* pairs = nullptr;  ///< [tile][pair][token], the sums as 16-bit numbers: of two sub-blocks, or one as low + 128 * high
  float* float_sums = nullptr;    ///< the same (exact path; in the place of sums; of a token that is_alone, where has_float_sums)
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

/// A row of a matrix register, as much as the last token's row may be read beyond its end.
inline constexpr std::size_t matrix_row_bytes = 64;

/// Divides `memory` (64-byte aligned) among the buffers of `tokens` columns, and says how many bytes they take: a multiple of 64. With
/// null, only the latter.
inline std::size_t place_activations(const panel_layout& p, std::size_t tokens, std::size_t cols, std::size_t tile_tokens, activation_kind kind,
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
  if (kind == activation_kind::floats) {
    b.floats = reinterpret_cast<float*>(take(columns * p.padded_cols(cols) * sizeof(float)));
    if (is_alone(tokens)) b.float_sums = reinterpret_cast<float*>(take(columns * subs * sizeof(float)));
  } else if (kind == activation_kind::bf16) {
    b.words = reinterpret_cast<std::int32_t*>(take(columns * pair_steps(cols) * sizeof(std::int32_t)));
  } else {
    b.words = reinterpret_cast<std::int32_t*>(take(columns * p.padded_cols(cols) * step_words(kind) + matrix_row_bytes));
    b.scales = reinterpret_cast<float*>(take(columns * blocks * sizeof(float)));
    b.sums = reinterpret_cast<std::int32_t*>(take(columns * subs * sizeof(std::int32_t)));
    b.starts = reinterpret_cast<std::int32_t*>(take(columns * subs * sizeof(std::int32_t)));
    b.pairs = reinterpret_cast<std::int32_t*>(take(columns * blocks * p.sum_pairs() * sizeof(std::int32_t)));
  }
  if (out != nullptr) *out = b;
  return at;
}

/// Whether activations prepared for one layout serve the other, with the same kernels and equal tile_tokens.
LOWBIT_ALWAYS_INLINE constexpr bool share_activations(const panel_layout& a, const panel_layout& b, activation_kind kind) noexcept {
  if (a.shape.level == level_kind::plain || b.shape.level == level_kind::plain) return a.shape.level == b.shape.level;
  if (kind == activation_kind::floats) {  // what a token alone is prepared by
    if (a.has_float_sums() != b.has_float_sums()) return false;
    for (std::size_t i = 0; i < step_weights; ++i)
      if (a.shape.activation_factor(i) != b.shape.activation_factor(i)) return false;
  }
  return a.block == b.block && a.sub_block == b.sub_block && (a.shape.sub == sub_kind::none) == (b.shape.sub == sub_kind::none) &&
         a.scaled_levels == b.scaled_levels && a.sum_pairs() == b.sum_pairs() && a.stored_zero == b.stored_zero && a.zero == b.zero && a.shape.has_signed_levels() == b.shape.has_signed_levels() &&
         (kind != activation_kind::int16 || a.largest_int16() == b.largest_int16());
}

/// The columns of a tile: all, or for the last tokens as few as a kernel exists for: 1, 2 (int8), 4 or all.
template <activation_kind Kind>
LOWBIT_ALWAYS_INLINE constexpr std::size_t tile_width(std::size_t tile, std::size_t tokens, std::size_t full) noexcept {
  const std::size_t rest = tokens - tile * full;
  return rest == 1 || (rest == 2 && Kind == activation_kind::int8) ? rest : rest <= 4 && full > 4 ? 4 : full;
}

/// What bytes hold more than the levels they stand for, on every row: the format's own zero, and 128 where signed levels are
/// fed as level + 128 (int8); or what matrix registers leave of it. A zero-point that is stored for each row comes on top.
template <class Arch, activation_kind Kind>
LOWBIT_ALWAYS_INLINE constexpr int shared_zero(const panel_layout& p, bool matrices) noexcept {
  const int zero = p.stored_zero ? 0 : p.zero;
  if (matrices) return zero - zero_of_levels(p);
  return zero + (Kind == activation_kind::int8 && p.shape.has_signed_levels() && simd::exact_u8s8<Arch> ? 128 : 0);
}

}  // namespace lowbit::kernel
