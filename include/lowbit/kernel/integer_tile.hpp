// A tile of a product on integers. For each block: int32 accumulators begin with what a shared zero-point takes away; per step one unpack
// for each row vector and one dot4 for each token; then once for the block the stored zero-points, sub-scales, minima and scales. The order of
// the float additions is that of the blocks, and no product is fused with a sum, so the result has the same bits on every architecture and
// for every split of the work.
#pragma once

#include <lowbit/kernel/tile.hpp>

namespace lowbit::kernel::detail {

/// Prepared activations of one token tile, from some block on: integer path.
struct tile_activations {
  const std::int32_t* words;
  const float* scales;
  const std::int32_t *sums, *starts, *pairs;

  /// `before`: blocks of tokens that come first, those of other tiles included.
  static LOWBIT_ALWAYS_INLINE tile_activations at(const activation_buffers& x, const panel_layout& p, activation_kind kind, std::size_t before) noexcept {
    tile_activations begin{x.words, x.scales, x.sums, x.starts, x.pairs};
    begin.pass(p, kind, before);
    return begin;
  }
  LOWBIT_ALWAYS_INLINE void pass(const panel_layout& p, activation_kind kind, std::size_t token_blocks) noexcept {
    words += token_blocks * p.block_steps() * step_words(kind);
    scales += token_blocks;
    sums += token_blocks * p.sub_blocks;
    starts += token_blocks * p.sub_blocks;
    pairs += token_blocks * p.sum_pairs();
  }
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

/// The codes of a step at places 0 and 2, and at 1 and 3, as 16-bit numbers.
template <class Arch, bool Signed>
LOWBIT_ALWAYS_INLINE std::array<ints<Arch>, 2> widen(const bytes<Arch>& codes) noexcept {
  using numbers = std::conditional_t<Signed, std::int16_t, std::uint16_t>;
  const auto both = xsimd::bitwise_cast<numbers>(codes);
  const auto even = [&]() LOWBIT_INLINE_LAMBDA {
    if constexpr (Signed) return (both << 8) >> 8;
    else return both & simd::batch<numbers, Arch>(numbers{255});
  };
  return {xsimd::bitwise_cast<std::int32_t>(even()), xsimd::bitwise_cast<std::int32_t>(both >> 8)};
}

/// How a token's sums for a register of rows become its results: sums of sub-blocks those of blocks, and these floats.
template <std::uint32_t Key, class Arch>
struct block_sums {
  static constexpr code_shape shape = code_shape::from_key(Key);
  static constexpr bool two_level = shape.sub != sub_kind::none;
  static constexpr bool split = shape.level == level_kind::table_float;  // a level is two bytes, with sums of their own
  // Sums over 16 weights of at most 3 bits fit in 16 bits, and so do sub-scales: one multiply-add instead of two instructions.
  static constexpr bool narrow = two_level && shape.level == level_kind::unsigned_code && shape.bits <= 3 && shape.step == stepping::half_slabs;

  static LOWBIT_ALWAYS_INLINE ints<Arch> sub_scale(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
    const auto scale = load_sub_scale<Arch, shape.sub>(p, header, j, row);
    if constexpr (narrow && shape.sub != sub_kind::nibbles) return scale & ints<Arch>(0xffff);  // the upper of the two products is 0
    else return scale;
  }
  static LOWBIT_ALWAYS_INLINE ints<Arch> add_sub_block(const ints<Arch>& total, const ints<Arch>& sum, const ints<Arch>& sub_scale) noexcept {
    if constexpr (narrow) return simd::dot2_s16<Arch>(total, sum, sub_scale, Arch{});
    else return total + sum * sub_scale;
  }
  static LOWBIT_ALWAYS_INLINE floats<Arch> scale(const panel_layout& p, const std::uint8_t* header, std::size_t row) noexcept {
    const auto scale = load_numbers<Arch, shape.scale>(header, row);
    if constexpr (split) return simd::rounded_product<Arch>(scale, floats<Arch>(p.split.step), Arch{});
    else return scale;
  }
  /// `low` is the sum of low bytes, where levels have them.
  static LOWBIT_ALWAYS_INLINE floats<Arch> add_block(const floats<Arch>& y, const ints<Arch>& sum, const ints<Arch>& low, const floats<Arch>& scale,
                                                     float x_scale) noexcept {
    auto value = xsimd::to_float(sum);
    if constexpr (split) value = value * floats<Arch>(128.0f) + xsimd::to_float(low);  // fused or not: 128 x is exact
    return y + simd::rounded_product<Arch>(value, simd::rounded_product<Arch>(scale, floats<Arch>(x_scale), Arch{}), Arch{});
  }
  /// Of a block without sub-blocks: its minimum times its activations.
  static LOWBIT_ALWAYS_INLINE floats<Arch> add_minimum(const floats<Arch>& y, const floats<Arch>& minimum, float x_scale,
                                                       const floats<Arch>& x_sum) noexcept {
    const auto both = simd::rounded_product<Arch>(minimum, floats<Arch>(x_scale), Arch{});
    return y + simd::rounded_product<Arch>(x_sum, both, Arch{});
  }
  /// `minima` is the sum of sub-minima times their activations.
  static LOWBIT_ALWAYS_INLINE floats<Arch> take_minima(const floats<Arch>& y, const floats<Arch>& minimum, float x_scale, const ints<Arch>& minima) noexcept {
    const auto both = simd::rounded_product<Arch>(minimum, floats<Arch>(x_scale), Arch{});
    return y - simd::rounded_product<Arch>(xsimd::to_float(minima), both, Arch{});
  }
};

template <std::uint32_t Key, activation_kind Kind, class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_integer(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, tile_activations x) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  constexpr bool is_signed = shape.has_signed_levels();
  constexpr bool wide = Kind == activation_kind::int16;
  constexpr bool biased = is_signed && !wide && simd::exact_u8s8<Arch>;  // signed levels are fed as level + 128
  using finish = block_sums<Key, Arch>;
  constexpr bool two_level = finish::two_level, split = finish::split;
  // Without a dot product of bytes, sums of pairs of products stay in 16-bit lanes for `run` steps before they are widened.
  constexpr std::size_t run = is_signed || wide || shape.step == stepping::steps ? 1
                              : steps_of_pairs<Arch>(shape.level_bits(), shape.step == stepping::slabs ? slab_steps : slab_steps / 2);
  // One token hides neither a dot's latency nor memory's. Chains of sums do the first, two, or four where dots take five cycles; for the second,
  // lines are read in the order in which they lie, so that the processor's prefetcher can follow: planes read by turns cost two thirds of the bandwidth.
  constexpr bool several = Tokens == 1 && shape.step == stepping::slabs && run == 1 && !split;
  constexpr std::size_t chains = !several ? 1 : simd::has_matrix_registers<Arch> ? 4 : 2, sums = split ? 2 : chains;
  constexpr bool by_address = Tokens == 1 && shape.step != stepping::steps && plane_widths(shape.bits)[1] != 0;
  const panel_layout& p = *a.layout;
  const std::size_t blocks = p.blocks(a.cols);
  alignas(16) std::uint8_t table[16];
  if constexpr (shape.has_table())
    for (std::size_t i = 0; i < 16; ++i)
      table[i] = static_cast<std::uint8_t>(is_signed ? (&p.table[0])[i] ^ (biased ? 128u : 0u) : static_cast<unsigned>((&p.table[0])[i] + p.zero));

  for_each_block(p, blocks, [&](std::size_t header, std::size_t codes, std::size_t first_step) LOWBIT_INLINE_LAMBDA {
    if (first_step == 0) prefetch_after<Arch, Tokens>(tile.panel[0] + header, p.unit_headers());
    if constexpr (by_address) {
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
    // With several tokens, registers are too few for a tree of sums.
    const auto placed = [](const ints<Arch>& sum) LOWBIT_INLINE_LAMBDA {
      if constexpr (Tokens > 1) return simd::in_order<Arch>(sum, Arch{});
      else return sum;
    };
    bytes<Arch> line[Vectors][by_address ? shape.bits : 1];
    const auto enters = [&](std::size_t slab) LOWBIT_INLINE_LAMBDA {
      prefetch_after<Arch, Tokens>(tile.panel[0] + codes + slab, shape.bits * step_bytes);
      if constexpr (by_address) {
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
        if constexpr (by_address)
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
      if constexpr (wide) {
        std::array<ints<Arch>, 2> halves[Vectors];
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) halves[v] = widen<Arch, is_signed>(w[v]);
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) {
          LOWBIT_UNROLL
          for (std::size_t h = 0; h < 2; ++h) {
            const ints<Arch> xs(x.words[(k * Tokens + t) * 2 + h]);
            LOWBIT_UNROLL
            for (std::size_t v = 0; v < Vectors; ++v) acc[s % chains][v][t] = placed(simd::dot2_s16<Arch>(acc[s % chains][v][t], halves[v][h], xs, Arch{}));
          }
        }
        return;
      }
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto xs = xsimd::bitwise_cast<std::int8_t>(ints<Arch>(x.words[k * Tokens + t]));
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          ints<Arch>& sum = acc[s % chains][v][t];
          if constexpr (run > 1) {
            using int16s = simd::batch<std::int16_t, Arch>;
            pairs[v][t] = simd::in_order<Arch>(simd::dot2_u7s8<Arch>(s % run == 0 ? int16s(std::int16_t{0}) : pairs[v][t], w[v], xs, Arch{}), Arch{});
            if (s % run == run - 1) sum = placed(simd::dot2_s16<Arch>(sum, xsimd::bitwise_cast<std::int32_t>(pairs[v][t]), ints<Arch>(0x0001'0001), Arch{}));
          } else if constexpr (is_signed && !biased) sum = placed(simd::dot4_s8s8<Arch>(sum, xsimd::bitwise_cast<std::int8_t>(w[v]), xs, Arch{}));
          else sum = placed(simd::dot4_u7s8<Arch>(sum, w[v], xs, Arch{}));
          if constexpr (split) acc[1][v][t] = placed(simd::dot4_u7s8<Arch>(acc[1][v][t], low[v], xs, Arch{}));
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
          const auto sub_scale = finish::sub_scale(p, tile.panel[v] + header, j, tile.row[v]);
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t) {
            total[0][v][t] = finish::add_sub_block(total[0][v][t], acc[0][v][t], sub_scale);
            if constexpr (split) total[1][v][t] = finish::add_sub_block(total[1][v][t], acc[1][v][t], sub_scale);
          }
        }
      }
    };
    walk_block<shape.step, two_level>(p, first_step, enters, begins, step, ends);

    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
      const auto scale = finish::scale(p, tile.panel[v] + header, tile.row[v]);
      constexpr std::size_t low = split ? 1 : 0;
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t)
        tile.y[v][t] = finish::add_block(tile.y[v][t], two_level ? total[0][v][t] : acc[0][v][t], two_level ? total[low][v][t] : acc[low][v][t],
                                         scale, x.scales[t]);
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
          if constexpr (two_level) tile.y[v][t] = finish::take_minima(tile.y[v][t], minimum, x.scales[t], acc[0][v][t]);
          else tile.y[v][t] = finish::add_minimum(tile.y[v][t], minimum, x.scales[t], xsimd::to_float(ints<Arch>(x.sums[t])));
        }
      }
    }
    x.pass(p, Kind, Tokens);
  });
}

}  // namespace lowbit::kernel::detail
