// A tile of a product on floats: levels are converted and multiplied with unrounded activations.
#pragma once

#include <lowbit/kernel/tile.hpp>

namespace lowbit::kernel::detail {

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
      prefetch_after<Arch, Tokens>(tile.panel[0] + c * column_bytes, 1);
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
      if (first_step == 0) prefetch_after<Arch, Tokens>(tile.panel[0] + header, p.unit_headers());
      const auto enters = [&](std::size_t slab) LOWBIT_INLINE_LAMBDA { prefetch_after<Arch, Tokens>(tile.panel[0] + codes + slab, shape.bits * step_bytes); };
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

}  // namespace lowbit::kernel::detail
