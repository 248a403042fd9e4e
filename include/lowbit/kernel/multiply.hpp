// The products: y = x Wᵀ on panels, with int8 or float activations, written once for every format and every instruction set.
//
// A tile is `Vectors` registers of rows by `Tokens` tokens. Integer path, for each block: clear int32 accumulators; per step one
// unpack for each row vector and one dot4 for each token; then once for the block the zero-point, sub-scales and scales. The order of
// the float additions is that of the blocks, and no product is fused with a sum, so the result has the same bits on every
// architecture and for every split of the work. Exact path: levels are converted to float and multiplied with unrounded activations.
#pragma once

#include <lowbit/kernel/activation.hpp>

namespace lowbit::kernel {

struct multiply_args {
  const panel_layout* layout;
  const std::uint8_t* panels;
  std::size_t rows, cols;                  ///< of the matrix
  std::size_t panel_begin, panel_end;
  activation_buffers x;
  std::size_t tokens;
  float* y;                                ///< [tokens, rows]
  std::size_t y_stride;
};

namespace detail {

template <class Arch> using ints = simd::batch<std::int32_t, Arch>;
template <class Arch> using floats = simd::batch<float, Arch>;
template <class Arch> using bytes = simd::batch<std::uint8_t, Arch>;

/// Step s (0 … 7) of a slab: one register of codes. `slab` already points at the register's lanes.
template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE bytes<Arch> load_step(const std::uint8_t* slab, std::size_t s) noexcept {
  if constexpr (Bits == 8) {
    return bytes<Arch>::load_unaligned(slab + s * step_bytes);
  } else {
    // One shift moves a plane's bits to their place in the code; bits of neighbours fall to the mask.
    constexpr auto plane = [](const std::uint8_t* at, std::size_t step, unsigned width, unsigned place) LOWBIT_INLINE_LAMBDA {
      const std::size_t per_vector = 8 / width;
      const int right = static_cast<int>(step % per_vector * width) - static_cast<int>(place);
      const auto v = xsimd::bitwise_cast<std::uint32_t>(bytes<Arch>::load_unaligned(at + step / per_vector * step_bytes));
      using words = simd::batch<std::uint32_t, Arch>;
      const words moved = right == 0 ? v : right > 0 ? words(v >> right) : words(v << -right);
      return xsimd::bitwise_cast<std::uint8_t>(moved & words(((1u << width) - 1) * (1u << place) * 0x0101'0101u));
    };
    constexpr unsigned four = Bits & 4u, two = Bits & 2u, one = Bits & 1u;
    bytes<Arch> code;
    if constexpr (four != 0) code = plane(slab, s, 4, 0);
    if constexpr (two != 0) {
      const auto part = plane(slab + four * step_bytes, s, 2, four);
      if constexpr (four != 0) code |= part;
      else code = part;
    }
    if constexpr (one != 0) {
      const auto part = plane(slab + (four + two) * step_bytes, s, 1, four + two);
      if constexpr (Bits != 1) code |= part;
      else code = part;
    }
    return code;
  }
}

/// The 16 rows' numbers of a header field, those of one register.
template <class Arch, number Type>
LOWBIT_ALWAYS_INLINE floats<Arch> load_numbers(const std::uint8_t* field, std::size_t row) noexcept {
  if constexpr (Type == number::f32) {
    return floats<Arch>::load_unaligned(reinterpret_cast<const float*>(field) + row);
  } else if constexpr (Type == number::f16) {
    return simd::load_f16<Arch>(reinterpret_cast<const std::uint16_t*>(field) + row, Arch{});
  } else if constexpr (Type == number::bf16) {
    const auto h = simd::load_widened<Arch>(reinterpret_cast<const std::uint16_t*>(field) + row, Arch{});
    return xsimd::bitwise_cast<float>(ints<Arch>(h << 16));
  } else {
    // 2^(e - 128): exponents 0 and 1 are the subnormals 2^21 and 2^22 in bits.
    const auto e = simd::load_widened<Arch>(field + row, Arch{});
    const ints<Arch> normal = (e - ints<Arch>(1)) << 23, small = (e + ints<Arch>(1)) << 21;
    return xsimd::bitwise_cast<float>(xsimd::select(e < ints<Arch>(2), small, normal));
  }
}

template <class Arch>
LOWBIT_ALWAYS_INLINE ints<Arch> load_zero(const panel_layout& p, const std::uint8_t* header, std::size_t row) noexcept {
  if (!p.stored_zero) return ints<Arch>(p.zero);
  return simd::load_widened<Arch>(header + p.zero_at + row, Arch{}) - ints<Arch>(p.zero_bias);
}

/// Sub-scale and sub-minimum j of the rows of one register.
template <class Arch, sub_kind Sub>
LOWBIT_ALWAYS_INLINE ints<Arch> load_sub_scale(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
  const std::uint8_t* const at = header + p.sub_scale_at + j * panel_rows + row;
  if constexpr (Sub == sub_kind::nibbles) return simd::load_widened<Arch>(at, Arch{}) & ints<Arch>(15);
  else return simd::load_widened<Arch>(reinterpret_cast<const std::int8_t*>(at), Arch{});
}
template <class Arch, sub_kind Sub>
LOWBIT_ALWAYS_INLINE ints<Arch> load_sub_minimum(const panel_layout& p, const std::uint8_t* header, std::size_t j, std::size_t row) noexcept {
  if constexpr (Sub == sub_kind::nibbles) return simd::load_widened<Arch>(header + p.sub_scale_at + j * panel_rows + row, Arch{}) >> 4;
  else return simd::load_widened<Arch>(header + p.sub_minimum_at + j * panel_rows + row, Arch{});
}

/// Walks the steps of a block, calling step(r's slab offset, step in slab, step in block) and ends(sub-block) where one is complete.
template <stepping Step, class OnStep, class OnEnd>
LOWBIT_ALWAYS_INLINE void walk_block(const panel_layout& p, std::size_t first_step, OnStep&& step, OnEnd&& ends) noexcept {
  const std::size_t slab_bytes = p.slab_bytes();
  if constexpr (Step == stepping::slabs) {
    std::size_t at = first_step / slab_steps * slab_bytes, k = 0;
    for (std::size_t j = 0; j < p.sub_blocks; ++j) {
      for (std::size_t left = p.sub_steps / slab_steps; left != 0; --left, at += slab_bytes, k += slab_steps) {
        LOWBIT_UNROLL
        for (std::size_t s = 0; s < slab_steps; ++s) step(at, s, k + s);
      }
      ends(j);
    }
  } else if constexpr (Step == stepping::half_slabs) {
    std::size_t at = first_step / slab_steps * slab_bytes, k = 0;
    for (std::size_t j = 0; j < p.sub_blocks; j += 2, at += slab_bytes, k += slab_steps) {
      LOWBIT_UNROLL
      for (std::size_t s = 0; s < slab_steps / 2; ++s) step(at, s, k + s);
      ends(j);
      LOWBIT_UNROLL
      for (std::size_t s = slab_steps / 2; s < slab_steps; ++s) step(at, s, k + s);
      ends(j + 1);
    }
  } else {
    std::size_t k = 0;
    for (std::size_t j = 0; j < p.sub_blocks; ++j) {
      for (std::size_t i = 0; i < p.sub_steps; ++i, ++k)
        step((first_step + k) / slab_steps * slab_bytes, (first_step + k) % slab_steps, k);
      ends(j);
    }
  }
}

/// A tile of rows and tokens: `panel[v]` is the panel of row vector v, `row[v]` the vector's first row within it.
template <class Arch, std::size_t Tokens, std::size_t Vectors>
struct tile {
  const std::uint8_t* panel[Vectors];
  std::size_t row[Vectors];
  floats<Arch> y[Vectors][Tokens];
};

template <std::uint32_t Key, class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_int8(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, const std::int32_t* x,
                                    const float* x_scales, const std::int32_t* x_sums) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  constexpr bool is_signed = shape.level != level_kind::unsigned_code;
  constexpr bool biased = is_signed && simd::exact_u8s8<Arch>;  // signed levels are fed as level + 128
  const panel_layout& p = *a.layout;
  const std::size_t blocks = p.blocks(a.cols);
  alignas(16) std::uint8_t table[16];
  if constexpr (shape.level == level_kind::table_int8)
    for (std::size_t i = 0; i < 16; ++i) table[i] = static_cast<std::uint8_t>((&p.table[0])[i] ^ (biased ? 128u : 0u));

  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t header = p.header_at(b), codes = p.codes_at(b);
    ints<Arch> acc[Vectors][Tokens], total[Vectors][Tokens], less[Vectors][Tokens];
    const auto clear = [](auto& v) LOWBIT_INLINE_LAMBDA {
      LOWBIT_UNROLL
      for (std::size_t i = 0; i < Vectors; ++i) {
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) v[i][t] = ints<Arch>(0);
      }
    };
    clear(acc);
    if constexpr (shape.sub != sub_kind::none) clear(total);
    if constexpr (shape.sub != sub_kind::none && shape.minimum) clear(less);

    const auto step = [&](std::size_t slab, std::size_t s, std::size_t k) LOWBIT_INLINE_LAMBDA {
      bytes<Arch> w[Vectors];
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        w[v] = load_step<Arch, shape.bits>(tile.panel[v] + codes + slab + tile.row[v] * step_weights, s);
        if constexpr (shape.level == level_kind::table_int8) w[v] = simd::lookup16<Arch>(w[v], table, Arch{});
        else if constexpr (biased) w[v] ^= bytes<Arch>(std::uint8_t{128});
      }
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto xs = xsimd::bitwise_cast<std::int8_t>(ints<Arch>(x[k * Tokens + t]));
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          if constexpr (is_signed && !biased) acc[v][t] = simd::dot4_s8s8<Arch>(acc[v][t], xsimd::bitwise_cast<std::int8_t>(w[v]), xs, Arch{});
          else acc[v][t] = simd::dot4_u7s8<Arch>(acc[v][t], w[v], xs, Arch{});
        }
      }
    };
    // acc - zero * sum(x): the exact integer sum of levels times activations.
    const auto ends = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        const std::uint8_t* const head = tile.panel[v] + header;
        ints<Arch> zero = load_zero<Arch>(p, head, tile.row[v]);
        if constexpr (biased) zero += ints<Arch>(128);
        ints<Arch> sub_scale, sub_minimum;
        if constexpr (shape.sub != sub_kind::none) sub_scale = load_sub_scale<Arch, shape.sub>(p, head, j, tile.row[v]);
        if constexpr (shape.sub != sub_kind::none && shape.minimum) sub_minimum = load_sub_minimum<Arch, shape.sub>(p, head, j, tile.row[v]);
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) {
          const ints<Arch> sum(x_sums[j * Tokens + t]);
          acc[v][t] -= zero * sum;
          if constexpr (shape.sub != sub_kind::none) {
            total[v][t] += acc[v][t] * sub_scale;
            if constexpr (shape.minimum) less[v][t] += sub_minimum * sum;
            acc[v][t] = ints<Arch>(0);
          }
        }
      }
    };
    walk_block<shape.step>(p, p.first_step(b), step, ends);

    LOWBIT_UNROLL
    for (std::size_t v = 0; v < Vectors; ++v) {
      const std::uint8_t* const head = tile.panel[v] + header;
      const auto scale = load_numbers<Arch, shape.scale>(head, tile.row[v]);
      floats<Arch> minimum;
      if constexpr (shape.minimum) minimum = load_numbers<Arch, shape.scale>(head + p.minimum_at, tile.row[v]);
      LOWBIT_UNROLL
      for (std::size_t t = 0; t < Tokens; ++t) {
        const floats<Arch> xs(x_scales[t]);
        const auto sum = shape.sub != sub_kind::none ? total[v][t] : acc[v][t];
        const auto both = simd::rounded_product<Arch>(scale, xs, Arch{});
        tile.y[v][t] += simd::rounded_product<Arch>(xsimd::to_float(sum), both, Arch{});
        if constexpr (shape.minimum) {
          const auto weight = simd::rounded_product<Arch>(minimum, xs, Arch{});
          if constexpr (shape.sub != sub_kind::none)
            tile.y[v][t] -= simd::rounded_product<Arch>(xsimd::to_float(less[v][t]), weight, Arch{});
          else
            tile.y[v][t] += simd::rounded_product<Arch>(floats<Arch>(static_cast<float>(x_sums[t])), weight, Arch{});
        }
      }
    }
    x += p.block_steps() * Tokens;
    x_scales += Tokens;
    x_sums += p.sub_blocks * Tokens;
  }
}

template <std::uint32_t Key, class Arch, std::size_t Tokens, std::size_t Vectors>
LOWBIT_ALWAYS_INLINE void tile_exact(const multiply_args& a, tile<Arch, Tokens, Vectors>& tile, const float* x,
                                     const float* x_sums) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  const panel_layout& p = *a.layout;
  // One column of weights times the tokens.
  const auto accumulate = [&](auto& acc, std::size_t v, const floats<Arch>& w, const float* column) LOWBIT_INLINE_LAMBDA {
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) acc[v][t] = xsimd::fma(w, floats<Arch>(column[t]), acc[v][t]);
  };
  if constexpr (shape.level == level_kind::plain) {
    constexpr std::size_t column_bytes = panel_rows * size_of(shape.scale);
    for (std::size_t c = 0; c < a.cols; ++c) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v)
        accumulate(tile.y, v, load_numbers<Arch, shape.scale>(tile.panel[v] + c * column_bytes, tile.row[v]), x + c * Tokens);
    }
  } else {
    const std::size_t blocks = p.blocks(a.cols);
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t header = p.header_at(b), codes = p.codes_at(b);
      floats<Arch> acc[Vectors][Tokens];
      ints<Arch> zero[Vectors];
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        zero[v] = load_zero<Arch>(p, tile.panel[v] + header, tile.row[v]);
        LOWBIT_UNROLL
        for (std::size_t t = 0; t < Tokens; ++t) acc[v][t] = floats<Arch>(0.0f);
      }
      const auto step = [&](std::size_t slab, std::size_t s, std::size_t k) LOWBIT_INLINE_LAMBDA {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v) {
          auto w = load_step<Arch, shape.bits>(tile.panel[v] + codes + slab + tile.row[v] * step_weights, s);
          if constexpr (shape.level == level_kind::table_int8) w = simd::lookup16<Arch>(w, &p.table[0], Arch{});
          const auto four = xsimd::bitwise_cast<std::int32_t>(w);
          LOWBIT_UNROLL
          for (int i = 0; i < 4; ++i) {
            floats<Arch> level;
            if constexpr (shape.level == level_kind::unsigned_code) {
              level = xsimd::to_float(ints<Arch>(((four >> (8 * i)) & ints<Arch>(255)) - zero[v]));
            } else if constexpr (shape.level == level_kind::table_float) {
              level = simd::lookup16<Arch>(ints<Arch>((four >> (8 * i)) & ints<Arch>(15)), &p.float_table[0], Arch{});
            } else {
              const ints<Arch> byte = (four << (24 - 8 * i)) >> 24;
              if constexpr (shape.level == level_kind::signed_byte) level = xsimd::to_float(ints<Arch>(byte - zero[v]));
              else level = xsimd::to_float(byte);
            }
            accumulate(acc, v, level, x + (k * step_weights + static_cast<std::size_t>(i)) * Tokens);
          }
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
          LOWBIT_UNROLL
          for (std::size_t t = 0; t < Tokens; ++t) {
            tile.y[v][t] = xsimd::fma(acc[v][t], scale, tile.y[v][t]);
            if constexpr (shape.minimum) tile.y[v][t] = xsimd::fma(offset, floats<Arch>(x_sums[j * Tokens + t]), tile.y[v][t]);
            acc[v][t] = floats<Arch>(0.0f);
          }
        }
      };
      walk_block<shape.step>(p, p.first_step(b), step, ends);
      x += p.block_steps() * step_weights * Tokens;
      x_sums += p.sub_blocks * Tokens;
    }
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
    tile_int8<Key>(a, tile, a.x.words + first_token * blocks * p.block_steps(), a.x.scales + first_token * blocks,
                   a.x.sums + first_token * subs);
  for (std::size_t v = 0; v < Vectors && first_vector + v < end_vector; ++v) {
    const std::size_t row = (first_vector + v) * simd::lanes<Arch>;
    const std::size_t count = row >= a.rows ? 0 : a.rows - row < simd::lanes<Arch> ? a.rows - row : simd::lanes<Arch>;
    for (std::size_t t = 0; t < Tokens && first_token + t < a.tokens; ++t) {
      float* const out = a.y + (first_token + t) * a.y_stride + row;
      if (count == simd::lanes<Arch>) {
        tile.y[v][t].store_unaligned(out);
      } else {
        alignas(64) float rest[simd::lanes<Arch>];
        tile.y[v][t].store_aligned(rest);
        std::memcpy(out, rest, count * sizeof(float));
      }
    }
  }
}

}  // namespace detail

/// y[tokens, rows of panels panel_begin … panel_end) = x Wᵀ. The layout's shape must have the key the function was compiled for.
template <std::uint32_t Key, class Arch, bool Exact>
void multiply(const multiply_args& a) noexcept {
  // Two registers of rows share the broadcasts of activations where there are 32 registers to hold both accumulators.
  constexpr std::size_t vectors = simd::includes<Arch, xsimd::avx512f> ? 2 : 1, full = tile_tokens<Arch>;
  constexpr std::size_t per_panel = panel_rows / simd::lanes<Arch>;
  const std::size_t end = a.panel_end * per_panel, tiles = ceil_div(a.tokens, full);
  for (std::size_t v = a.panel_begin * per_panel; v < end; v += vectors) {
    for (std::size_t i = 0; i < tiles; ++i) {
      if (tile_width(i, a.tokens, full) == 1) detail::multiply_tile<Key, Arch, Exact, 1, vectors>(a, v, end, i);
      else detail::multiply_tile<Key, Arch, Exact, full, vectors>(a, v, end, i);
    }
  }
}

}  // namespace lowbit::kernel
