// Products on floats: weights are decoded and multiplied with unrounded activations.
//
// Many tokens share what is decoded: some columns of a panel or two become floats in the first-level cache, [column][row], and each tile of tokens
// goes through them, by a kernel that knows of no format. A token alone takes every weight as it is decoded.
#pragma once

#include <lowbit/kernel/tile.hpp>

namespace lowbit::kernel {
namespace detail {

/// The first row of register v, within its panel.
template <class Arch>
LOWBIT_ALWAYS_INLINE constexpr std::size_t first_row(std::size_t v) noexcept { return v * simd::lanes<Arch> % panel_rows; }

/// What makes weights of levels: level * scale + offset.
template <class Arch>
struct linear {
  floats<Arch> scale, offset;
};
/// That of sub-block j of the rows of one register.
template <std::uint32_t Key, class Arch>
LOWBIT_ALWAYS_INLINE linear<Arch> load_linear(const panel_layout& p, const std::uint8_t* header, [[maybe_unused]] std::size_t j, std::size_t row) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  auto scale = load_numbers<Arch, shape.scale>(header, row);
  floats<Arch> offset(0.0f);
  if constexpr (shape.minimum) offset = load_numbers<Arch, shape.scale>(header + p.minimum_at, row);
  if constexpr (shape.sub != sub_kind::none) {
    scale *= xsimd::to_float(load_sub_scale<Arch, shape.sub>(p, header, j, row));
    if constexpr (shape.minimum) offset *= -xsimd::to_float(load_sub_minimum<Arch, shape.sub>(p, header, j, row));
  }
  if (p.has_zero()) offset = xsimd::fnma(xsimd::to_float(load_zero<Arch>(p, header, row)), scale, offset);
  return {scale, offset};
}

/// Levels at place i of a step, of codes (or table values) that are four to a lane. For a token alone they come times 2^n, which saves shifts:
/// code_shape::activation_factor has 2^-n.
template <std::uint32_t Key, class Arch, bool Alone>
LOWBIT_ALWAYS_INLINE floats<Arch> level_of(const panel_layout& p, const ints<Arch>& four, int i) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  if constexpr (shape.level == level_kind::table_float) {
    return simd::lookup16<Arch>(ints<Arch>((four >> (8 * i)) & ints<Arch>(15)), &p.float_table[0], Arch{});
  } else if constexpr (shape.level == level_kind::unsigned_code) {  // below 128
    const ints<Arch> in_place = four & ints<Arch>(static_cast<std::int32_t>(0x7fu << (8 * i)));
    return xsimd::to_float(Alone || i == 0 ? in_place : ints<Arch>(in_place >> (8 * i)));
  } else {
    const ints<Arch> top = i == 3 ? four : ints<Arch>(four << (24 - 8 * i));
    if constexpr (Alone) return xsimd::to_float(i == 0 ? top : ints<Arch>(top & ints<Arch>(static_cast<std::int32_t>(0xff00'0000u))));
    else return xsimd::to_float(ints<Arch>(top >> 24));
  }
}

/// Walks over the sub-blocks of a panel, or of two, padding included. Register v holds rows of the panel at panel[v]. Calls
///   on_begin(numbers)            before a sub-block; numbers(v) is linear
///   on_level(step, i, v, level)  for each place i of a step and each register, level as level_of has it
///   on_step(steps)               after each step: how many there were so far
///   on_end(sub_block, numbers)   after a sub-block, which is so many from the row's first
template <std::uint32_t Key, class Arch, bool Alone, std::size_t Vectors, class OnBegin, class OnLevel, class OnStep, class OnEnd>
LOWBIT_ALWAYS_INLINE void decode_steps(const panel_layout& p, const std::uint8_t* const (&panel)[Vectors], std::size_t cols, OnBegin&& on_begin,
                                       OnLevel&& on_level, OnStep&& on_step, OnEnd&& on_end) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  constexpr std::size_t tokens = Alone ? 1 : register_tokens<Arch>;  // to ask for lines ahead, or not
  std::size_t k = 0, sub_block = 0;
  for_each_block(p, p.blocks(cols), [&](std::size_t header, std::size_t codes, std::size_t first_step) LOWBIT_INLINE_LAMBDA {
    const auto numbers_of = [&](std::size_t j) LOWBIT_INLINE_LAMBDA {
      return [&p, &panel, header, j](std::size_t v) LOWBIT_INLINE_LAMBDA { return load_linear<Key, Arch>(p, panel[v] + header, j, first_row<Arch>(v)); };
    };
    if (first_step == 0) prefetch_after<Arch, tokens>(panel[0] + header, p.unit_headers());
    const auto enters = [&](std::size_t slab) LOWBIT_INLINE_LAMBDA { prefetch_after<Arch, tokens>(panel[0] + codes + slab, shape.bits * step_bytes); };
    const auto begins = [&](std::size_t j) LOWBIT_INLINE_LAMBDA { on_begin(numbers_of(j)); };
    const auto ends = [&](std::size_t j) LOWBIT_INLINE_LAMBDA { on_end(sub_block++, numbers_of(j)); };
    const auto step = [&](std::size_t slab, std::size_t s, std::size_t) LOWBIT_INLINE_LAMBDA {
      ints<Arch> four[Vectors];
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < Vectors; ++v) {
        auto w = load_step<Arch, shape.bits>(lines_in_memory<Arch>(panel[v] + codes + slab + first_row<Arch>(v) * step_weights), s);
        if constexpr (shape.has_table()) w = simd::lookup16<Arch>(w, &p.table[0], Arch{});
        four[v] = xsimd::bitwise_cast<std::int32_t>(w);
      }
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) {
        LOWBIT_UNROLL
        for (std::size_t v = 0; v < Vectors; ++v)
          on_level(k, static_cast<std::size_t>(i), v, level_of<Key, Arch, Alone>(p, four[v], i));
      }
      on_step(++k);
    };
    walk_block<shape.step, shape.sub != sub_kind::none>(p, first_step, enters, begins, step, ends);
  });
}

/// One token: y[r] of a panel's rows. Sums would wait for one another, so that each row has four, by the column's place in a step; scales and offsets
/// come to sums of sub-blocks, which saves a multiply-add for each weight.
template <std::uint32_t Key, class Arch>
__attribute__((noinline)) void multiply_one_exactly(const panel_layout& p, const std::uint8_t* panel, std::size_t cols, const float* x, const float* x_sums,
                                                    float* y) noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  constexpr std::size_t n = simd::lanes<Arch>, vectors = panel_rows / n;
  floats<Arch> acc[step_weights][vectors], result[vectors];
  const auto each = [](auto&& f) LOWBIT_INLINE_LAMBDA {
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < vectors; ++v) f(v);
  };
  const auto clear = [&]() LOWBIT_INLINE_LAMBDA {
    for (auto& sums : acc) each([&](std::size_t v) LOWBIT_INLINE_LAMBDA { sums[v] = floats<Arch>(0.0f); });
  };
  const auto total = [&](std::size_t v) LOWBIT_INLINE_LAMBDA { return floats<Arch>((acc[0][v] + acc[1][v]) + (acc[2][v] + acc[3][v])); };
  if constexpr (shape.level == level_kind::plain) {
    constexpr std::size_t column_bytes = panel_rows * size_of(shape.scale);
    clear();
    const auto column = [&](floats<Arch> (&sums)[vectors], std::size_t c) LOWBIT_INLINE_LAMBDA {
      prefetch_after<Arch, 1>(panel + c * column_bytes, 1);
      each([&](std::size_t v) LOWBIT_INLINE_LAMBDA {
        sums[v] = xsimd::fma(load_numbers<Arch, shape.scale>(panel + c * column_bytes, v * n), floats<Arch>(x[c]), sums[v]);
      });
    };
    std::size_t c = 0;
    for (; c + step_weights <= cols; c += step_weights) {
      LOWBIT_UNROLL
      for (std::size_t i = 0; i < step_weights; ++i) column(acc[i], c + i);
    }
    for (; c < cols; ++c) column(acc[0], c);
    each([&](std::size_t v) LOWBIT_INLINE_LAMBDA { result[v] = total(v); });
  } else {
    const std::uint8_t* panel_of[vectors];  // one for all registers
    for (auto& same : panel_of) same = panel;
    each([&](std::size_t v) LOWBIT_INLINE_LAMBDA { result[v] = floats<Arch>(0.0f); });
    const auto begins = [&](auto&&) LOWBIT_INLINE_LAMBDA { clear(); };
    const auto on_level = [&](std::size_t k, std::size_t i, std::size_t v, const floats<Arch>& level) LOWBIT_INLINE_LAMBDA {
      acc[i][v] = xsimd::fma(level, floats<Arch>(x[k * step_weights + i]), acc[i][v]);
    };
    const auto ends = [&](std::size_t j, auto&& numbers) LOWBIT_INLINE_LAMBDA {
      each([&](std::size_t v) LOWBIT_INLINE_LAMBDA {
        const linear<Arch> own = numbers(v);
        result[v] = xsimd::fma(total(v), own.scale, result[v]);
        if (p.has_float_sums()) result[v] = xsimd::fma(own.offset, floats<Arch>(x_sums[j]), result[v]);
      });
    };
    decode_steps<Key, Arch, true>(p, panel_of, cols, begins, on_level, [](std::size_t) LOWBIT_INLINE_LAMBDA {}, ends);
  }
  each([&](std::size_t v) LOWBIT_INLINE_LAMBDA { result[v].store_aligned(y + v * n); });
}

/// Registers of rows of a tile. Two share the broadcasts of activations: as many loads as multiply-adds would be the limit.
inline constexpr std::size_t exact_vectors = 2;
/// Panels that are decoded together: what a tile takes.
template <class Arch>
inline constexpr std::size_t exact_panels = ceil_div(exact_vectors * simd::lanes<Arch>, panel_rows);
/// Columns that are decoded at once: half of a first-level cache of 32 KB, beside which a tile's activations have room.
template <class Arch>
inline constexpr std::size_t exact_columns = (std::size_t{16} << 10) / (exact_panels<Arch> * panel_rows * sizeof(float));

/// y[t * y_stride + row] += the products of some columns, w[v][column][panel_rows], with x[column][token].
template <class Arch, std::size_t Tokens>
__attribute__((noinline)) void add_products(const float* const (&w)[exact_vectors], std::size_t columns, const float* x, float* y,
                                            std::size_t y_stride) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>;
  floats<Arch> acc[exact_vectors][Tokens];
  const auto each = [](auto&& f) LOWBIT_INLINE_LAMBDA {
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < exact_vectors; ++v) f(v, t);
    }
  };
  each([&](std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA { acc[v][t] = floats<Arch>::load_aligned(y + t * y_stride + v * n); });
  for (std::size_t c = 0; c < columns; ++c) {
    floats<Arch> column[exact_vectors];
    LOWBIT_UNROLL
    for (std::size_t v = 0; v < exact_vectors; ++v) column[v] = floats<Arch>::load_unaligned(w[v] + c * panel_rows);
    LOWBIT_UNROLL
    for (std::size_t t = 0; t < Tokens; ++t) {
      const floats<Arch> factor(x[c * Tokens + t]);
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < exact_vectors; ++v) acc[v][t] = xsimd::fma(column[v], factor, acc[v][t]);
    }
  }
  each([&](std::size_t v, std::size_t t) LOWBIT_INLINE_LAMBDA { acc[v][t].store_aligned(y + t * y_stride + v * n); });
}

/// One or two panels times some tiles of tokens. (16 KB of a thread's stack for weights, and up to 24 KB for results.)
template <std::uint32_t Key, class Arch>
class exact_product {
 public:
  static constexpr std::size_t full = register_tokens<Arch>, panels = exact_panels<Arch>, rows = panels * panel_rows;
  /// Tiles that share what is decoded: so many that plain floats, which are not decoded, do not come from memory too often.
  static constexpr std::size_t most_tiles = 32;

  exact_product(const multiply_args& a, std::size_t first_token, std::size_t tokens) noexcept : a_(a), first_token_(first_token), tokens_(tokens) {}

  /// Panels from `first` on; one that is not there is computed as the first: cheaper than code of its own.
  void run(std::size_t first, std::size_t count) noexcept {
    for (std::size_t i = 0; i < panels; ++i) panel_[i] = a_.panels + (first + (i < count ? i : 0)) * a_.layout->panel_bytes(a_.cols);
    std::memset(y_, 0, round_up(tokens_, full) * sizeof y_[0]);
    if constexpr (shape.level == level_kind::plain) take_numbers();
    else take_codes();
    deliver<Arch>(a_, y_[0], rows, first * panel_rows, count * panel_rows, first_token_, tokens_);
  }

 private:
  static constexpr code_shape shape = code_shape::from_key(Key);

  /// What of each panel is read after some columns: asked for while they are multiplied, since numbers of two and four bytes are more than the
  /// processor's prefetcher brings in time, which begins anew after every pause.
  struct read_next {
    const std::uint8_t* from[panels];
    std::size_t bytes;
  };

  void take_numbers() noexcept {
    for (std::size_t c = 0; c < a_.cols; c += exact_columns<Arch>) {
      const std::size_t columns = a_.cols - c < exact_columns<Arch> ? a_.cols - c : exact_columns<Arch>;
      const float* weights[panels];
      for (std::size_t i = 0; i < panels; ++i) {
        const std::uint8_t* const from = panel_[i] + c * panel_rows * size_of(shape.scale);
        if constexpr (shape.scale == number::f32) {
          weights[i] = reinterpret_cast<const float*>(from);
        } else {
          for (std::size_t j = 0; j < columns * panel_rows; j += simd::lanes<Arch>)
            load_numbers<Arch, shape.scale>(from, j).store_aligned(decoded_[i] + j);
          weights[i] = decoded_[i];
        }
      }
      constexpr std::size_t column_bytes = panel_rows * size_of(shape.scale);
      const std::size_t done = c + columns, left = a_.cols - done;
      read_next next{{}, (left < exact_columns<Arch> ? left : exact_columns<Arch>) * column_bytes};
      for (std::size_t i = 0; i < panels; ++i) next.from[i] = panel_[i] + done * column_bytes;
      add_columns(weights, c, columns, next);
    }
  }

  void take_codes() noexcept {
    constexpr std::size_t lanes = simd::lanes<Arch>, vectors = rows / lanes;
    const std::uint8_t* panel_of[vectors];
    for (std::size_t v = 0; v < vectors; ++v) panel_of[v] = panel_[v * lanes / panel_rows];
    const float* weights[panels];
    for (std::size_t i = 0; i < panels; ++i) weights[i] = decoded_[i];
    std::size_t filled = 0;  // columns
    linear<Arch> makes[vectors];
    const auto begins = [&](auto&& numbers) LOWBIT_INLINE_LAMBDA {
      LOWBIT_UNROLL
      for (std::size_t v = 0; v < vectors; ++v) makes[v] = numbers(v);
    };
    const auto on_level = [&](std::size_t, std::size_t i, std::size_t v, const floats<Arch>& level) LOWBIT_INLINE_LAMBDA {
      float* const column = decoded_[v * lanes / panel_rows] + (filled + i) * panel_rows;
      xsimd::fma(level, makes[v].scale, makes[v].offset).store_aligned(column + first_row<Arch>(v));
    };
    const auto on_step = [&](std::size_t steps) LOWBIT_INLINE_LAMBDA {
      filled += step_weights;
      if (filled != exact_columns<Arch>) return;
      add_columns(weights, steps * step_weights - filled, filled, {});
      filled = 0;
    };
    decode_steps<Key, Arch, false>(*a_.layout, panel_of, a_.cols, begins, on_level, on_step, [](std::size_t, auto&&) LOWBIT_INLINE_LAMBDA {});
    if (filled != 0) add_columns(weights, a_.layout->padded_cols(a_.cols) - filled, filled, {});
  }

  /// All tiles times some columns from c on.
  __attribute__((noinline)) void add_columns(const float* const (&weights)[panels], std::size_t c, std::size_t columns,
                                             const read_next& next) noexcept {
    const std::size_t cols = a_.layout->padded_cols(a_.cols), tiles = ceil_div(tokens_, full);
    const std::size_t share = tiles < 2 ? 0 : round_up(ceil_div(next.bytes, tiles), 64);  // of a tile; one alone pauses too shortly
    for (std::size_t row = 0; row < rows; row += exact_vectors * simd::lanes<Arch>) {
      const float* of_vector[exact_vectors];
      for (std::size_t v = 0; v < exact_vectors; ++v) {
        const std::size_t r = row + v * simd::lanes<Arch>;
        of_vector[v] = weights[r / panel_rows] + r % panel_rows;
      }
      for (std::size_t t = 0; t < tokens_; t += full) {
        const std::size_t token = first_token_ + t, width = tile_width<activation_kind::floats>(token / full, a_.tokens, full);
        const float* const x = a_.x.floats + token * cols + c * width;
        for (std::size_t at = t / full * share, end = at + share; at < end && at < next.bytes; at += 64)
          for (const std::uint8_t* from : next.from) __builtin_prefetch(from + at, 0, 2);
        if (width == full) add_products<Arch, full>(of_vector, columns, x, y_[t] + row, rows);
        else if (width == 1) add_products<Arch, 1>(of_vector, columns, x, y_[t] + row, rows);
        else add_products<Arch, 4>(of_vector, columns, x, y_[t] + row, rows);
      }
    }
  }

  const multiply_args& a_;
  std::size_t first_token_, tokens_;
  const std::uint8_t* panel_[panels];
  alignas(64) float decoded_[panels][exact_columns<Arch> * panel_rows];  // [column][row]
  alignas(64) float y_[most_tiles * full][rows];
};

}  // namespace detail

/// y[tokens, rows of panels panel_begin … panel_end) = x Wᵀ with unrounded activations. The layout's shape must have the key the function was
/// compiled for.
template <std::uint32_t Key, class Arch>
void multiply_exactly(const multiply_args& a) noexcept {
  if (is_alone(a.tokens)) {
    for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
      alignas(64) float y[panel_rows];
      detail::multiply_one_exactly<Key, Arch>(*a.layout, a.panels + panel * a.layout->panel_bytes(a.cols), a.cols, a.x.floats, a.x.float_sums, y);
      detail::deliver<Arch>(a, y, panel_rows, panel * panel_rows, panel_rows, 0, 1);
    }
    return;
  }
  using product = detail::exact_product<Key, Arch>;
  constexpr std::size_t at_once = product::most_tiles * product::full;
  for (std::size_t first = 0; first < a.tokens; first += at_once) {
    product some(a, first, a.tokens - first < at_once ? a.tokens - first : at_once);
    for (std::size_t panel = a.panel_begin; panel < a.panel_end; panel += product::panels)
      some.run(panel, a.panel_end - panel < product::panels ? a.panel_end - panel : product::panels);
  }
}

}  // namespace lowbit::kernel
