// Many tokens in matrix registers: sixteen rows by sixteens of tokens, on integers or bfloat16.
//
// A step of the run layout, four weights of sixteen rows, is a row of a matrix register's right side as it is. So up to sixteen steps of a block
// are unpacked to a kilobyte of levels and multiplied with each sixteen tokens; at the block's end the sums go through memory to what every
// integer product ends with (block_sums), which makes the results' bits those of all other instruction sets. Levels of sub-blocks are multiplied
// by their sub-scales first, so that sums are still a block's. Sums of bfloat16 stay in their registers for the whole row.
#pragma once

#include <lowbit/kernel/bf16_tile.hpp>
#include <lowbit/kernel/integer_tile.hpp>

namespace lowbit::kernel::detail {

/// Tiles that are multiplied at once, at most: of bfloat16 as many as there are registers for their sums, of integers as many as make unpacking
/// cheap beside them.
template <activation_kind Kind>
inline constexpr std::size_t most_tiles = Kind == activation_kind::bf16 ? 6 : 16;

/// And how many: activations of integers that just fit in a second-level cache of the processors that have matrix registers.
template <activation_kind Kind>
LOWBIT_ALWAYS_INLINE constexpr std::size_t tiles_at_once(const panel_layout& p, std::size_t cols) noexcept {
  if (Kind == activation_kind::bf16) return most_tiles<Kind>;
  constexpr std::size_t cache = std::size_t{2} << 20;
  const std::size_t tile = matrix_rows * p.padded_cols(cols) * step_words(Kind);  // bytes
  return tile > cache ? 1 : most_tiles<Kind> * tile > cache ? cache / tile : most_tiles<Kind>;
}

/// Steps of a right side, for the registers' configuration.
LOWBIT_ALWAYS_INLINE constexpr std::size_t steps_of_register(const panel_layout& p, activation_kind kind) noexcept {
  return kind == activation_kind::bf16 || p.block_steps() > matrix_steps ? matrix_steps : p.block_steps();
}

/// One panel times the tokens of up to most_tiles tiles, on integers: y[t][r] becomes their products.
///
/// Levels are unpacked for some pieces of up to sixteen steps at a time, which stay in the first-level cache. Then each tile goes through them
/// with its results in registers; while the sums of one block are on their way through memory, those of the next are made.
template <std::uint32_t Key, activation_kind Kind, class Arch>
class matrix_product {
 public:
  matrix_product(const multiply_args& a, const std::uint8_t* panel, std::size_t first_token, std::size_t tiles, float (*y)[panel_rows]) noexcept
      : p_(*a.layout), x_(a.x), panel_(panel), y_(y), first_token_(first_token), tiles_(tiles), blocks_(p_.blocks(a.cols)),
        starts_(!split && !two_level && shared_zero<Arch, Kind>(p_, true) != 0) {}

  LOWBIT_ALWAYS_INLINE void run() noexcept {
    const std::size_t steps = steps_of_register(p_, Kind), pieces_of_block = ceil_div(p_.block_steps(), steps);
    const auto zero = static_cast<std::uint8_t>(two_level ? p_.zero : zero_of_levels(p_));
    alignas(16) std::uint8_t table[sides][16];
    for (std::size_t i = 0; i < 16; ++i) {
      const int shift = shape.level == level_kind::table_small ? p_.zero - zero : -zero;
      table[0][i] = static_cast<std::uint8_t>((split ? p_.split.high[i] : p_.table[i]) + shift);
      if constexpr (split) table[1][i] = p_.split.low[i];
    }
    bytes<Arch> zeros(zero);

    std::size_t filled = 0;
    const auto end_piece = [&]() LOWBIT_INLINE_LAMBDA {
      for (; filled < steps; ++filled)
        for (auto& side : right_[pieces_]) std::memset(side + filled * step_bytes, 0, step_bytes);
      filled = 0;
      ++pieces_;
      ++unpacked_[count_].pieces;
    };
    for_each_block(p_, blocks_, [&](std::size_t header, std::size_t codes, std::size_t first_step) LOWBIT_INLINE_LAMBDA {
      unpacked_[count_] = {panel_ + header, activations(0, done_ + count_).words, 0, p_.stored_zero};
      if constexpr (shape.level == level_kind::unsigned_code) {
        if (p_.stored_zero) {  // taken off here if what is left are signed bytes
          const auto stored = load_zero<Arch>(p_, panel_ + header, 0);
          const bool fits = xsimd::all(stored >= ints<Arch>((1 << shape.bits) - 128) && stored <= ints<Arch>(128));
          zeros = fits ? xsimd::bitwise_cast<std::uint8_t>((stored & ints<Arch>(255)) * ints<Arch>(0x01010101)) : bytes<Arch>(zero);
          unpacked_[count_].zero = !fits;
        }
      }
      int16s sub_scale;
      const auto begins = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
        if constexpr (two_level) {
          const auto scale = load_sub_scale<Arch, shape.sub>(p_, panel_ + header, j, 0);
          sub_scale = xsimd::bitwise_cast<std::int16_t>(ints<Arch>((scale & ints<Arch>(0xffff)) | (scale << 16)));
        }
      };
      const auto enters = [&](std::size_t) LOWBIT_INLINE_LAMBDA {
        if (filled != steps) return;
        end_piece();
        if (pieces_ == most_pieces) multiply(true);
      };
      const auto step = [&](std::size_t slab, std::size_t s, std::size_t) LOWBIT_INLINE_LAMBDA {
        const auto w = load_step<Arch, shape.bits>(lines_in_memory<Arch>(panel_ + codes + slab), s);
        std::uint8_t *const to = right_[pieces_][0] + filled * step_bytes, *const to_low = to + (sides == 2 ? sizeof right_[0][0] : 0);
        ++filled;
        bytes<Arch> level = w;
        if constexpr (shape.level == level_kind::unsigned_code) level -= zeros;
        else if constexpr (shape.level != level_kind::signed_byte) level = simd::lookup16<Arch>(w, table[0], Arch{});
        if constexpr (two_level) {
          const auto both = xsimd::bitwise_cast<std::int16_t>(level);
          const int16s even = ((both << 8) >> 8) * sub_scale, odd = (both >> 8) * sub_scale, low(wide_levels ? 127 : 255);
          store_bytes(to_low, even & low, odd & low);
          if constexpr (wide_levels) store_bytes(to, (even >> 7) & int16s(255), odd >> 7);
        } else level.store_aligned(to);
        if constexpr (split) simd::lookup16<Arch>(w, table[1], Arch{}).store_aligned(to_low);
      };
      walk_block<shape.step, two_level>(p_, first_step, enters, begins, step, [](std::size_t) LOWBIT_INLINE_LAMBDA {});
      end_piece();
      ++count_;
      if (pieces_ + pieces_of_block > most_pieces) multiply(false);
    });
    if (count_ != 0) multiply(false);
  }

 private:
  using registers = simd::matrix_registers<Arch>;
  using finish = block_sums<Key, Arch>;
  static constexpr code_shape shape = code_shape::from_key(Key);
  using int16s = simd::batch<std::int16_t, Arch>;
  static constexpr bool split = finish::split, wide = Kind == activation_kind::int16, two_level = finish::two_level;
  // Levels times sub-scales: signed bytes, or 128 times one and seven bits more.
  static constexpr bool wide_levels = two_level && !shape.has_byte_products();
  static constexpr std::size_t words_of_step = step_words(Kind), sides = split || wide_levels ? 2 : 1, parts = sides == 2 || wide ? 2 : 1;
  static constexpr std::size_t most_pieces = 16 / sides;
  using sums_of_tile = std::int32_t[parts][matrix_rows][panel_rows];

  /// The low bytes of `even` and `odd` in turns.
  static LOWBIT_ALWAYS_INLINE void store_bytes(std::uint8_t* to, const int16s& even, const int16s& odd) noexcept {
    xsimd::bitwise_cast<std::uint8_t>(int16s(even | (odd << 8))).store_aligned(to);
  }

  /// A block, or what of it is unpacked.
  struct unpacked_block {
    const std::uint8_t* header;
    const std::int32_t* words;  ///< the first tile's activations
    std::size_t pieces;
    bool zero;                  ///< sums have a stored zero-point to lose
  };

  /// Those of tile g, from a block on.
  LOWBIT_ALWAYS_INLINE tile_activations activations(std::size_t g, std::size_t block) const noexcept {
    return tile_activations::at(x_, p_, Kind, (first_token_ + g * matrix_rows) * blocks_ + block * matrix_rows);
  }

  /// All tiles times what is unpacked, the last block of which may be `open`: more of it follows.
  void multiply(bool open) noexcept {
    bool zeros = false;
    for (std::size_t i = 0; i < count_; ++i) zeros |= unpacked_[i].zero;
    for (std::size_t g = 0; g < tiles_; ++g) zeros ? multiply<true>(g, open) : multiply<false>(g, open);
    begun_ = open;
    done_ += count_;
    if (open) {
      unpacked_[0] = unpacked_[count_];
      unpacked_[0].words += unpacked_[0].pieces * strides_of(p_.block_steps(), matrix_rows).piece;
      unpacked_[0].pieces = 0;
    }
    count_ = pieces_ = 0;
  }

  template <bool WithZero>
  LOWBIT_ALWAYS_INLINE void multiply(std::size_t g, bool open) noexcept {
    const matrix_strides strides = strides_of(p_.block_steps(), matrix_rows);
    const std::size_t token_bytes = strides.token * sizeof(std::int32_t), low_words = matrix_rows * p_.block_steps();
    const std::size_t words_of_tile = g * matrix_rows * blocks_ * p_.block_steps() * words_of_step;
    const std::size_t whole = count_, all = whole + (open ? 1 : 0);
    tile_activations x = activations(g, done_);
    alignas(64) sums_of_tile sums[2];  // by turns
    float(*const y)[panel_rows] = y_ + g * matrix_rows;
    floats<Arch> results[matrix_rows];
    each_row([&](std::size_t t) LOWBIT_INLINE_LAMBDA { results[t] = floats<Arch>::load_aligned(y[t]); });
    const std::uint8_t* right = right_[0][0];
    const auto products = [&](auto r, std::size_t i) LOWBIT_INLINE_LAMBDA {
      constexpr int low = r + 1;
      if (i == 0 && begun_) {
        registers::template load<r>(open_[g][0], sizeof open_[g][0][0]);
        if constexpr (parts == 2) registers::template load<low>(open_[g][1], sizeof open_[g][0][0]);
      } else {
        registers::template clear<r>();
        if constexpr (parts == 2) registers::template clear<low>();
      }
      const std::int32_t* left = unpacked_[i].words + words_of_tile;
      for (std::size_t n = unpacked_[i].pieces; n != 0; --n, left += strides.piece, right += sizeof right_[0]) {
        registers::template load<registers::left>(left, token_bytes);
        registers::template load<registers::right>(right, step_bytes);
        registers::template multiply_s8s8<r>();
        if constexpr (sides == 2) {
          registers::template load<registers::right>(right + sizeof right_[0][0], step_bytes);
          registers::template multiply_s8s8<low>();
        }
        if constexpr (wide) {
          registers::template load<registers::left>(left + low_words, token_bytes);
          registers::template multiply_u8s8<low>();
        }
      }
    };
    const auto store = [&](auto r, std::size_t i) LOWBIT_INLINE_LAMBDA {
      auto& to = i == whole ? open_[g] : sums[i % 2];
      registers::template store<r>(to[0], sizeof to[0][0]);
      if constexpr (parts == 2) registers::template store<r + 1>(to[1], sizeof to[0][0]);
    };
    // Products take some 50 cycles until they can be stored, and what is stored some until it can be loaded: three blocks are on their way.
    for (std::size_t i = 0, turn = 0; i < whole + 3; ++i, turn = turn == 2 ? 0 : turn + 1) {
      const auto with = [&](auto now, auto before) LOWBIT_INLINE_LAMBDA {
        if (i < all) products(now, i);
        if (i >= 2 && i - 2 < all) store(before, i - 2);
      };
      constexpr std::integral_constant<int, 0> first;
      constexpr std::integral_constant<int, 2> second;
      constexpr std::integral_constant<int, 4> third;
      if (turn == 0) with(first, second);
      else if (turn == 1) with(second, third);
      else with(third, first);
      if (i >= 3) end_block<WithZero>(unpacked_[i - 3], x, sums[(i - 3) % 2][0][0], results);
    }
    each_row([&](std::size_t t) LOWBIT_INLINE_LAMBDA { results[t].store_aligned(y[t]); });
  }

  /// Adds a block's sums, [parts][token][row], to the results, and steps to the next block.
  template <bool WithZero>
  LOWBIT_ALWAYS_INLINE void end_block(const unpacked_block& of, tile_activations& x, std::int32_t* sums,
                                      floats<Arch> (&results)[matrix_rows]) noexcept {
    const std::uint8_t* const header = of.header;
    sums = simd::one_address(sums);
    constexpr std::size_t part = matrix_rows * panel_rows;
    if (starts_)  // beyond signed bytes: no format of the registry
      for (std::size_t t = 0; t < matrix_rows; ++t) {
        std::int32_t* const sum = sums + (parts - 1) * part + t * panel_rows;
        (ints<Arch>::load_aligned(sum) + ints<Arch>(x.starts[t])).store_aligned(sum);
      }
    ints<Arch> zero, minima[matrix_rows];
    floats<Arch> minimum;
    if constexpr (WithZero) zero = of.zero ? load_zero_pairs<Arch>(p_, header, 0) : ints<Arch>(0);
    if constexpr (shape.minimum) minimum = load_numbers<Arch, shape.scale>(header + p_.minimum_at, 0);
    if constexpr (shape.minimum && two_level) {
      each_row([&](std::size_t t) LOWBIT_INLINE_LAMBDA { minima[t] = ints<Arch>(0); });
      for (std::size_t j = 0; j < p_.sum_pairs(); ++j) {
        const auto two = load_sub_minima<Arch, shape.sub>(p_, header, j, 0);
        each_row([&](std::size_t t) LOWBIT_INLINE_LAMBDA {
          minima[t] = simd::dot2_s16<Arch>(minima[t], two, ints<Arch>(x.pairs[j * matrix_rows + t]), Arch{});
        });
      }
    }
    alignas(64) float x_sums[matrix_rows];
    if constexpr (shape.minimum && !two_level) {
      static_assert(simd::lanes<Arch> == matrix_rows);
      xsimd::to_float(ints<Arch>::load_aligned(x.sums)).store_aligned(x_sums);
    }
    const auto scale = finish::scale(p_, header, 0);
    each_row([&](std::size_t t) LOWBIT_INLINE_LAMBDA {
      auto sum = ints<Arch>::load_aligned(sums + t * panel_rows);
      ints<Arch> low;
      if constexpr (parts == 2) low = ints<Arch>::load_aligned(sums + part + t * panel_rows);
      if constexpr (wide) sum = (sum << 8) + low;
      if constexpr (wide_levels) sum = (sum << 7) + low;
      if constexpr (WithZero) sum = simd::dot2_s16<Arch>(sum, zero, ints<Arch>(x.pairs[t]), Arch{});
      results[t] = finish::add_block(results[t], sum, low, scale, x.scales[t]);
      if constexpr (shape.minimum && two_level) results[t] = finish::take_minima(results[t], minimum, x.scales[t], minima[t]);
      else if constexpr (shape.minimum) results[t] = finish::add_minimum(results[t], minimum, x.scales[t], floats<Arch>(x_sums[t]));
    });
    x.pass(p_, Kind, matrix_rows);
  }

  template <class F>
  static LOWBIT_ALWAYS_INLINE void each_row(F&& f) noexcept {
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < matrix_rows; ++t) f(t);
  }

  const panel_layout& p_;
  const activation_buffers& x_;
  const std::uint8_t* panel_;
  float (*y_)[panel_rows];
  std::size_t first_token_, tiles_, blocks_;
  std::size_t count_ = 0, pieces_ = 0;   ///< whole blocks and pieces that are unpacked
  std::size_t done_ = 0;                 ///< blocks that were multiplied before
  bool starts_;                          ///< whether sums begin with what a shared zero-point leaves beside its bytes
  bool begun_ = false;                   ///< the first block was before: its sums so far are in open_
  unpacked_block unpacked_[most_pieces + 1];
  alignas(64) std::uint8_t right_[most_pieces][sides][matrix_steps * step_bytes];
  alignas(64) sums_of_tile open_[most_tiles<Kind>];
};

/// Calls f(std::integral_constant) for the first `count` of Most numbers: registers have no other names.
template <std::size_t Most, class F>
LOWBIT_ALWAYS_INLINE void for_registers(std::size_t count, F&& f) noexcept {
  [&]<std::size_t... I>(std::index_sequence<I...>) LOWBIT_INLINE_LAMBDA {
    ((I < count ? f(std::integral_constant<std::size_t, I>{}) : void()), ...);
  }(std::make_index_sequence<Most>{});
}

/// y[t][r] of weights of bfloat16.
template <class Arch>
LOWBIT_ALWAYS_INLINE void matrix_tiles_bf16(const multiply_args& a, const std::uint8_t* panel, std::size_t first_token, std::size_t tiles,
                                            float (*y)[panel_rows]) noexcept {
  using registers = simd::matrix_registers<Arch>;
  const std::size_t steps = pair_steps(a.cols);
  const std::int32_t* const words = a.x.words + first_token * steps;
  alignas(64) std::uint8_t right[3][matrix_steps * step_bytes];  // one is filled while another is read, and the one before may still be
  for_registers<registers::sums>(tiles, [](auto g) LOWBIT_INLINE_LAMBDA { registers::template clear<g>(); });
  const auto unpack = [&](std::size_t from, std::uint8_t* to) LOWBIT_INLINE_LAMBDA {
    for (std::size_t s = 0; s < matrix_steps; ++s)
      load_pairs<Arch>(panel, from + s, a.cols).store_aligned(reinterpret_cast<std::int32_t*>(to + s * step_bytes));
  };
  if (steps != 0) unpack(0, right[0]);
  for (std::size_t done = 0, turn = 0; done < steps; done += matrix_steps) {
    const std::size_t next = turn == 2 ? 0 : turn + 1;
    if (done + matrix_steps < steps) unpack(done + matrix_steps, right[next]);
    registers::template load<registers::right>(right[turn], step_bytes);
    for_registers<registers::sums>(tiles, [&](auto g) LOWBIT_INLINE_LAMBDA {
      registers::template load<registers::left>(words + (g * steps + done) * matrix_rows, step_bytes);
      registers::template multiply_bf16<g>();
    });
    turn = next;
  }
  for_registers<registers::sums>(tiles, [&](auto g) LOWBIT_INLINE_LAMBDA { registers::template store<g>(y[g * matrix_rows], sizeof y[0]); });
}

/// All panels times the first tiles.
template <std::uint32_t Key, activation_kind Kind, class Arch>
__attribute__((noinline)) void multiply_in_matrices(const multiply_args& a, std::size_t tiles) noexcept {
  const std::size_t at_once = tiles_at_once<Kind>(*a.layout, a.cols);
  for (std::size_t first = 0; first < tiles; first += at_once)
    for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
      alignas(64) float y[most_tiles<Kind> * matrix_rows][panel_rows];
      const std::uint8_t* const from = a.panels + panel * a.layout->panel_bytes(a.cols);
      const std::size_t count = tiles - first < at_once ? tiles - first : at_once, token = first * matrix_rows;
      {  // an epilogue may use the registers for its own ends
        const simd::matrix_registers<Arch> shapes(steps_of_register(*a.layout, Kind));
        if constexpr (Kind == activation_kind::bf16) {
          matrix_tiles_bf16<Arch>(a, from, token, count, y);
        } else {
          std::memset(y, 0, count * matrix_rows * sizeof y[0]);
          matrix_product<Key, Kind, Arch>(a, from, token, count, y).run();
        }
      }
      deliver<Arch>(a, &y[0][0], panel_rows, panel * panel_rows, panel_rows, token, count * matrix_rows);
    }
}

}  // namespace lowbit::kernel::detail
