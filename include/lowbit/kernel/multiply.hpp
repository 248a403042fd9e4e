// The products: y = x Wᵀ on panels, with int8 or float activations, written once for every format and every instruction set.
//
// A tile is `Vectors` registers of rows by `Tokens` tokens. Integer path, for each block: int32 accumulators begin with what a shared
// zero-point takes away; per step one unpack for each row vector and one dot4 for each token; then once for the block the stored
// zero-points, sub-scales, minima and scales. The order of the float additions is that of the blocks, and no product is fused with a
// sum, so the result has the same bits on every architecture and for every split of the work. Exact path: levels are converted to float
// and multiplied with unrounded activations.
#pragma once

#include <lowbit/kernel/activation.hpp>
#include <lowbit/kernel/panel_reader.hpp>

namespace lowbit::kernel {

/// What becomes of a tile of results that is not simply stored: values[t * stride + r] is that of row `row` + r for column `token` + t
/// of the activations, r < rows, t < tokens. Each row has room up to a multiple of 16 values, of which those past `rows` mean nothing.
using finish_function = void (*)(const void* context, float* values, std::size_t stride, std::size_t row, std::size_t rows,
                                 std::size_t token, std::size_t tokens) noexcept;

struct multiply_args {
  const panel_layout* layout;
  const std::uint8_t* panels;
  std::size_t rows, cols;                  ///< of the matrix
  std::size_t panel_begin, panel_end;
  activation_buffers x;
  std::size_t tokens;                      ///< columns of x
  float* y;                                ///< [tokens, rows]; not used where there is a `finish`
  std::size_t y_stride;
  finish_function finish = nullptr;        ///< one call for a tile costs nothing beside it, and lets epilogues be compiled elsewhere
  const void* context = nullptr;           ///< what finish is called with
};

namespace detail {

/// A tile of rows and tokens: `panel[v]` is the panel of row vector v, `row[v]` the vector's first row within it.
template <class Arch, std::size_t Tokens, std::size_t Vectors>
struct tile {
  const std::uint8_t* panel[Vectors];
  std::size_t row[Vectors];
  floats<Arch> y[Vectors][Tokens];
};

/// Prepared activations of one token tile, int8 path.
struct tile_activations {
  const std::int32_t* words;
  const float* scales;
  const std::int32_t *sums, *starts, *pairs;
};

/// Steps whose products an architecture adds up in 16-bit lanes, levels of so many bits: a power of two, at most `most`. A lane takes two
/// products a step, so that 4-bit codes have room for eight steps (8 * 2 * 15 * 127 = 30,480), 5-bit codes for four, 6-bit codes for two.
template <class Arch>
constexpr std::size_t steps_of_pairs(unsigned bits, std::size_t most) noexcept {
  if (!simd::dots_by_pairs<Arch> || simd::exact_u8s8<Arch>) return 1;
  const std::size_t room = 32767 / (2 * 127 * ((std::size_t{1} << bits) - 1));
  while (most > room) most /= 2;
  return most;
}

template <std::uint32_t Key, class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_int8(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, tile_activations x) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  constexpr bool is_signed = shape.has_signed_levels();
  constexpr bool biased = is_signed && simd::exact_u8s8<Arch>;  // signed levels are fed as level + 128
  constexpr bool two_level = shape.sub != sub_kind::none;
  constexpr bool split = shape.level == level_kind::table_float;   // a level is two bytes, with sums of their own
  // Without a dot product of bytes, sums of pairs of products stay in 16-bit lanes for `run` steps before they are widened.
  constexpr std::size_t run = is_signed || shape.step == stepping::steps ? 1
                              : steps_of_pairs<Arch>(shape.level_bits(), shape.step == stepping::slabs ? slab_steps : slab_steps / 2);
  // One token hides neither a dot's latency nor memory's. Two chains of sums do the first; for the second, lines are read in the order
  // in which they lie, so that the processor's prefetcher can follow: planes read by turns cost two thirds of the bandwidth.
  constexpr std::size_t chains = Tokens == 1 && shape.step == stepping::slabs && run == 1 && !split ? 2 : 1, sums = split ? 2 : chains;
  constexpr bool in_order = Tokens == 1 && shape.step != stepping::steps && plane_widths(shape.bits)[1] != 0;
  // Sums over 16 weights of at most 3 bits fit in 16 bits, and so do sub-scales: one multiply-add instead of two instructions.
  constexpr bool narrow = two_level && shape.level == level_kind::unsigned_code && shape.bits <= 3 && shape.step == stepping::half_slabs;
  const panel_layout& p = *a.layout;
  const std::size_t blocks = p.blocks(a.cols);
  alignas(16) std::uint8_t table[16];
  if constexpr (shape.has_table())
    for (std::size_t i = 0; i < 16; ++i)
      table[i] = static_cast<std::uint8_t>(is_signed ? (&p.table[0])[i] ^ (biased ? 128u : 0u) : static_cast<unsigned>((&p.table[0])[i] + p.zero));

  for_each_block(p, blocks, [&](std::size_t header, std::size_t codes, std::size_t first_step) LOWBIT_INLINE_LAMBDA {
    if constexpr (in_order) {
      if (first_step == 0) touch_lines(tile.panel[0] + header, p.unit_headers());
    }
    ints<Arch> acc[sums][Vectors][Tokens], total[split ? 2 : 1][Vectors][Tokens];
    simd::batch<std::int16_t, Arch> pairs[Vectors][Tokens];
    const auto each = [](auto&& f) LOWBIT_INLINE_LAMBDA {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) f(v, t);
      }
    };
    if constexpr (two_level) {
      LOWBIT_UNROLL
      for (auto& half : total) each([&](std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA { half[v][t] = ints<Arch>(0); });
    }

    const auto begins = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
      each([&](std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA {
        acc[0][v][t] = ints<Arch>(x.starts[j * Tokens + t]);
        LOWBIT_UNROLL
        for (std::size_t c = 1; c < sums; ++c) acc[c][v][t] = ints<Arch>(0);
      });
    };
    bytes<Arch> line[Vectors][in_order ? shape.bits : 1];
    const auto enters = [&](std::size_t slab) LOWBIT_INLINE_LAMBDA {
      if constexpr (in_order) {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          const auto lines = lines_in_memory<Arch>(tile.panel[v] + codes + slab + tile.row[v] * step_weights);
          LOWBIT_UNROLL
          for (std::size_t i = 0; i < shape.bits; ++i) line[v][i] = simd::loaded_now<Arch>(lines(i), Arch{});
        }
      }
    };
    const auto step = [&](std::size_t slab, std::size_t s, std::size_t k) LOWBIT_INLINE_LAMBDA {
      bytes<Arch> w[Vectors], low[Vectors];
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        if constexpr (in_order)
          w[v] = load_step<Arch, shape.bits>([&](std::size_t i) LOWBIT_INLINE_LAMBDA { return line[v][i]; }, s);
        else
          w[v] = load_step<Arch, shape.bits>(lines_in_memory<Arch>(tile.panel[v] + codes + slab + tile.row[v] * step_weights), s);
        if constexpr (shape.has_table()) {
          w[v] = simd::lookup16<Arch>(w[v], table, Arch{});
        } else if constexpr (split) {
          low[v] = simd::lookup16<Arch>(w[v], &p.split.low[0], Arch{});
          w[v] = simd::lookup16<Arch>(w[v], &p.split.high[0], Arch{});
        } else if constexpr (biased) w[v] ^= bytes<Arch>(std::uint8_t{128});
      }
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto xs = xsimd::bitwise_cast<std::int8_t>(ints<Arch>(x.words[k * Tokens + t]));
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          ints<Arch>& sum = acc[s % chains][v][t];
          if constexpr (run > 1) {
            using int16s = simd::batch<std::int16_t, Arch>;
            pairs[v][t] = simd::dot2_u7s8<Arch>(s % run == 0 ? int16s(std::int16_t{0}) : pairs[v][t], w[v], xs, Arch{});
            if (s % run == run - 1) sum = simd::dot2_s16<Arch>(sum, xsimd::bitwise_cast<std::int32_t>(pairs[v][t]), ints<Arch>(0x0001'0001), Arch{});
          } else if constexpr (is_signed && !biased) sum = simd::dot4_s8s8<Arch>(sum, xsimd::bitwise_cast<std::int8_t>(w[v]), xs, Arch{});
          else sum = simd::dot4_u7s8<Arch>(sum, w[v], xs, Arch{});
          if constexpr (split) acc[1][v][t] = simd::dot4_u7s8<Arch>(acc[1][v][t], low[v], xs, Arch{});
        }
      }
    };
    // acc[0] becomes the exact integer sum of levels times activations, or of their high bytes.
    const auto ends = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
      each([&](std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA {
        LOWBIT_UNROLL
        for (std::size_t c = 1; c < chains; ++c) acc[0][v][t] += acc[c][v][t];
      });
      if (p.stored_zero) {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          const auto zero = load_zero_pairs<Arch>(p, tile.panel[v] + header, tile.row[v]);
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t)
            acc[0][v][t] = simd::dot2_s16<Arch>(acc[0][v][t], zero, ints<Arch>(x.pairs[j * Tokens + t]), Arch{});
        }
      }
      if constexpr (two_level) {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          auto sub_scale = load_sub_scale<Arch, shape.sub>(p, tile.panel[v] + header, j, tile.row[v]);
          if constexpr (narrow && shape.sub != sub_kind::nibbles) sub_scale &= ints<Arch>(0xffff);  // the upper of the two products is 0
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t) {
            if constexpr (narrow) total[0][v][t] = simd::dot2_s16<Arch>(total[0][v][t], acc[0][v][t], sub_scale, Arch{});
            else total[0][v][t] += acc[0][v][t] * sub_scale;
            if constexpr (split) total[1][v][t] += acc[1][v][t] * sub_scale;
          }
        }
      }
    };
    walk_block<shape.step, two_level>(p, first_step, enters, begins, step, ends);

    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
      const std::uint8_t* const head = tile.panel[v] + header;
      auto scale = load_numbers<Arch, shape.scale>(head, tile.row[v]);
      if constexpr (split) scale = simd::rounded_product<Arch>(scale, floats<Arch>(p.split.step), Arch{});
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto both = simd::rounded_product<Arch>(scale, floats<Arch>(x.scales[t]), Arch{});
        auto sum = xsimd::to_float(two_level ? total[0][v][t] : acc[0][v][t]);
        if constexpr (split) sum = sum * floats<Arch>(128.0f) + xsimd::to_float(two_level ? total[1][v][t] : acc[1][v][t]);  // fused or not: 128 x is exact
        tile.y[v][t] += simd::rounded_product<Arch>(sum, both, Arch{});
      }
    }
    if constexpr (shape.minimum) {
      // Σ over sub-blocks of minimum * sum is a product of its own, two sub-blocks at a time, when the accumulators are free again.
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        const std::uint8_t* const head = tile.panel[v] + header;
        if constexpr (two_level) {
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t) acc[0][v][t] = ints<Arch>(0);
          for (std::size_t j = 0; j < p.sum_pairs(); ++j) {
            const auto two = load_sub_minima<Arch, shape.sub>(p, head, j, tile.row[v]);
            LOWBIT_UNROLL
            for (std::size_t t = 0; t < Tokens; ++t) acc[0][v][t] = simd::dot2_s16<Arch>(acc[0][v][t], two, ints<Arch>(x.pairs[j * Tokens + t]), Arch{});
          }
        }
        const auto minimum = load_numbers<Arch, shape.scale>(head + p.minimum_at, tile.row[v]);
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) {
          const auto both = simd::rounded_product<Arch>(minimum, floats<Arch>(x.scales[t]), Arch{});
          if constexpr (two_level) tile.y[v][t] -= simd::rounded_product<Arch>(xsimd::to_float(acc[0][v][t]), both, Arch{});
          else tile.y[v][t] += simd::rounded_product<Arch>(floats<Arch>(static_cast<float>(x.sums[t])), both, Arch{});
        }
      }
    }
    x.words += p.block_steps() * Tokens;
    x.scales += Tokens;
    x.sums += p.sub_blocks * Tokens;
    x.starts += p.sub_blocks * Tokens;
    x.pairs += p.sum_pairs() * Tokens;
  });
}

template <std::uint32_t Key, class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_exact(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, const float* x,
                                     const float* x_sums) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  const panel_layout& p = *a.layout;
  // A token alone has few sums, which would wait for one another: it gets four for each row, by the column's place in a step.
  constexpr std::size_t chains = Tokens == 1 ? 4 : 1;
  const auto clear = [](floats<Arch> (&acc)[chains][Vectors][Tokens]) LOWBIT_INLINE_LAMBDA {
    LOWBIT_UNROLL
    for (std::size_t i = 0; i < chains * Vectors * Tokens; ++i) acc[i / (Vectors * Tokens)][i / Tokens % Vectors][i % Tokens] = floats<Arch>(0.0f);
  };
  const auto total = [](const floats<Arch> (&acc)[chains][Vectors][Tokens], std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA {
    if constexpr (chains == 1) return acc[0][v][t];
    else return floats<Arch>((acc[0][v][t] + acc[1][v][t]) + (acc[2][v][t] + acc[3][v][t]));
  };
  // One column of weights times the tokens. Each activation is loaded once for all rows: as many loads as multiply-adds would be the limit.
  const auto accumulate = [&](auto& acc, const floats<Arch> (&w)[Vectors], const float* column) LOWBIT_INLINE_LAMBDA {
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      const floats<Arch> factor(column[t]);
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) acc[v][t] = xsimd::fma(w[v], factor, acc[v][t]);
    }
  };
  if constexpr (shape.level == level_kind::plain) {
    constexpr std::size_t column_bytes = panel_rows * size_of(shape.scale);
    floats<Arch> acc[chains][Vectors][Tokens];
    clear(acc);
    const auto column = [&](auto& sums, std::size_t c) LOWBIT_INLINE_LAMBDA {
      floats<Arch> w[Vectors];
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) w[v] = load_numbers<Arch, shape.scale>(tile.panel[v] + c * column_bytes, tile.row[v]);
      accumulate(sums, w, x + c * Tokens);
    };
    std::size_t c = 0;
    for (; c + chains <= a.cols; c += chains) {
      LOWBIT_UNROLL
      for (std::size_t i = 0; i < chains; ++i) column(acc[i], c + i);
    }
    for (; c < a.cols; ++c) column(acc[0], c);
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) tile.y[v][t] = total(acc, v, t);
    }
  } else {
    const std::size_t blocks = p.blocks(a.cols);
    for_each_block(p, blocks, [&](std::size_t header, std::size_t codes, std::size_t first_step) LOWBIT_INLINE_LAMBDA {
      floats<Arch> acc[chains][Vectors][Tokens];
      const auto enters = [](std::size_t) LOWBIT_INLINE_LAMBDA {};
      const auto begins = [&](std::size_t) LOWBIT_INLINE_LAMBDA { clear(acc); };
      const auto step = [&](std::size_t slab, std::size_t s, std::size_t k) LOWBIT_INLINE_LAMBDA {
        ints<Arch> four[Vectors];
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          auto w = load_step<Arch, shape.bits>(lines_in_memory<Arch>(tile.panel[v] + codes + slab + tile.row[v] * step_weights), s);
          if constexpr (shape.has_table()) w = simd::lookup16<Arch>(w, &p.table[0], Arch{});
          four[v] = xsimd::bitwise_cast<std::int32_t>(w);
        }
        LOWBIT_UNROLL
        for (int i = 0; i < 4; ++i) {
          floats<Arch> level[Vectors];  // times 2^n, see activation_factor
          LOWBIT_UNROLL
          for (std::size_t v = 0; v < Vectors; ++v) {
            if constexpr (shape.level == level_kind::unsigned_code) {
              level[v] = xsimd::to_float(ints<Arch>(four[v] & ints<Arch>(static_cast<std::int32_t>(0x7fu << (8 * i)))));
            } else if constexpr (shape.level == level_kind::table_float) {
              level[v] = simd::lookup16<Arch>(ints<Arch>((four[v] >> (8 * i)) & ints<Arch>(15)), &p.float_table[0], Arch{});
            } else {
              const ints<Arch> top = i == 3 ? four[v] : ints<Arch>(four[v] << (24 - 8 * i));
              level[v] = xsimd::to_float(i == 0 ? top : ints<Arch>(top & ints<Arch>(static_cast<std::int32_t>(0xff00'0000u))));
            }
          }
          const float* const column = x + (k * step_weights + static_cast<std::size_t>(i)) * Tokens;
          accumulate(acc[static_cast<std::size_t>(i) % chains], level, column);
        }
      };
      const auto ends = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          const std::uint8_t* const head = tile.panel[v] + header;
          auto scale = load_numbers<Arch, shape.scale>(head, tile.row[v]);
          floats<Arch> offset;
          if constexpr (shape.minimum) offset = load_numbers<Arch, shape.scale>(head + p.minimum_at, tile.row[v]);
          if constexpr (shape.sub != sub_kind::none) {
            scale *= xsimd::to_float(load_sub_scale<Arch, shape.sub>(p, head, j, tile.row[v]));
            if constexpr (shape.minimum) offset *= -xsimd::to_float(load_sub_minimum<Arch, shape.sub>(p, head, j, tile.row[v]));
          }
          if (p.has_zero()) {
            const floats<Arch> zero = xsimd::to_float(load_zero<Arch>(p, head, tile.row[v]));
            LOWBIT_UNROLL
            for (std::size_t t = 0; t < Tokens; ++t) acc[0][v][t] = xsimd::fnma(zero, floats<Arch>(x_sums[j * Tokens + t]), acc[0][v][t]);
          }
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t) {
            tile.y[v][t] = xsimd::fma(total(acc, v, t), scale, tile.y[v][t]);
            if constexpr (shape.minimum) tile.y[v][t] = xsimd::fma(offset, floats<Arch>(x_sums[j * Tokens + t]), tile.y[v][t]);
          }
        }
      };
      walk_block<shape.step, shape.sub != sub_kind::none>(p, first_step, enters, begins, step, ends);
      x += p.block_steps() * step_weights * Tokens;
      x_sums += p.sub_blocks * Tokens;
    });
  }
}

template <std::uint32_t Key, class Arch, bool Exact, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void multiply_tile(const multiply_args& a, std::size_t first_vector, std::size_t end_vector,
                                        std::size_t token_tile) noexcept {
  constexpr std::size_t per_panel = panel_rows / simd::lanes<Arch>;
  const panel_layout& p = *a.layout;
  const std::size_t panel_bytes = p.panel_bytes(a.cols), first_token = token_tile * tile_tokens<Arch>;
  tile<Arch, Tokens, Vectors> tile;
  LOWBIT_UNROLL
  for (std::size_t v = 0; v < Vectors; ++v) {
    // A last vector without a neighbour is computed twice: cheaper than code of its own.
    const std::size_t vector = first_vector + v < end_vector ? first_vector + v : first_vector;
    tile.panel[v] = a.panels + vector / per_panel * panel_bytes;
    tile.row[v] = vector % per_panel * simd::lanes<Arch>;
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) tile.y[v][t] = floats<Arch>(0.0f);
  }
  const std::size_t blocks = p.shape.level == level_kind::plain ? 0 : p.blocks(a.cols), subs = blocks * p.sub_blocks;
  if constexpr (Exact)
    tile_exact<Key>(a, tile, a.x.floats + first_token * p.padded_cols(a.cols), a.x.float_sums + first_token * subs);
  else
    tile_int8<Key>(a, tile, {a.x.words + first_token * blocks * p.block_steps(), a.x.scales + first_token * blocks,
                             a.x.sums + first_token * subs, a.x.starts + first_token * subs,
                             a.x.pairs + first_token * blocks * p.sum_pairs()});
  const std::size_t row = first_vector * simd::lanes<Arch>;
  const std::size_t vectors = end_vector - first_vector < Vectors ? end_vector - first_vector : Vectors;
  const std::size_t rows = row >= a.rows ? 0 : a.rows - row < vectors * simd::lanes<Arch> ? a.rows - row : vectors * simd::lanes<Arch>;
  const std::size_t tokens = a.tokens - first_token < Tokens ? a.tokens - first_token : Tokens;
  if (rows == Vectors * simd::lanes<Arch> && a.finish == nullptr) {
    for (std::size_t t = 0; t < tokens; ++t) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v)
        tile.y[v][t].store_unaligned(a.y + (first_token + t) * a.y_stride + row + v * simd::lanes<Arch>);
    }
  } else if (rows != 0) {
    constexpr std::size_t stride = round_up(Vectors * simd::lanes<Arch>, panel_rows);
    alignas(64) float values[Tokens * stride] = {};
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) tile.y[v][t].store_aligned(values + t * stride + v * simd::lanes<Arch>);
    }
    if (a.finish != nullptr) return a.finish(a.context, values, stride, row, rows, first_token, tokens);
    for (std::size_t t = 0; t < tokens; ++t) std::memcpy(a.y + (first_token + t) * a.y_stride + row, values + t * stride, rows * sizeof(float));
  }
}

}  // namespace detail

/// y[tokens, rows of panels panel_begin … panel_end) = x Wᵀ. The layout's shape must have the key the function was compiled for.
template <std::uint32_t Key, class Arch, bool Exact>
void multiply(const multiply_args& a) noexcept {
  // Two registers of rows share the broadcasts of activations where there are 32 registers to hold what an integer product holds, and always
  // where only sums are held: four of them alone would wait for one another.
  constexpr std::size_t vectors = Exact || simd::includes<Arch, xsimd::avx512f> ? 2 : 1, full = tile_tokens<Arch>;
  constexpr std::size_t per_panel = panel_rows / simd::lanes<Arch>;
  const std::size_t end = a.panel_end * per_panel, tiles = ceil_div(a.tokens, full);
  for (std::size_t v = a.panel_begin * per_panel; v < end; v += vectors) {
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::size_t width = tile_width<Exact>(i, a.tokens, full);
      if (width == full) {
        detail::multiply_tile<Key, Arch, Exact, full, vectors>(a, v, end, i);
      } else if (width <= 2) {  // bound by memory: one stream of whole lines is what it reads fastest
        if (v % per_panel != 0) continue;
        for (std::size_t one = v; one < v + vectors && one < end; one += per_panel)
          if (width == 1) detail::multiply_tile<Key, Arch, Exact, 1, per_panel>(a, one, end, i);
          else if constexpr (!Exact) detail::multiply_tile<Key, Arch, Exact, 2, per_panel>(a, one, end, i);
      } else if constexpr (full > 4) {
        detail::multiply_tile<Key, Arch, Exact, 4, vectors>(a, v, end, i);
      }
    }
  }
}

}  // namespace lowbit::kernel
