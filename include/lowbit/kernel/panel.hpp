// The run layout: panels of 16 rows, interleaved so that one 64-byte vector holds 16 rows x 4 consecutive weights of each.
//
// Such a vector is a *step*. Eight steps are a *slab*: 32 weights of 16 rows, exactly bits x 64 bytes, stored as planes of 4, 2 and 1
// bit (3 = 2+1, 5 = 4+1, 6 = 4+2, 7 = 4+2+1, low plane first; 8 is one plane of signed bytes). In a plane of w bits, byte lane L of
// vector v holds steps v*(8/w) + n at bits w*n, so a step takes one shift and one mask. Sub-blocks are padded to whole steps.
// The 16 rows' scales, minima, zero-points and sub-scales lie before their codes. Blocks are stored in *units*: the fewest blocks
// whose headers end on a cache line and whose codes end on a slab:  unit = [header]*blocks_per_unit, [slab]*slabs_per_unit.
// The same bytes serve 128-, 256- and 512-bit registers.
#pragma once

#include <lowbit/format/spec.hpp>

namespace lowbit::kernel {

inline constexpr std::size_t panel_rows = 16;
inline constexpr std::size_t step_weights = 4;   ///< of each row
inline constexpr std::size_t step_bytes = 64;
inline constexpr std::size_t slab_steps = 8;

/// What a code in a panel becomes before it is scaled.
enum class level_kind : std::uint8_t {
  unsigned_code,  ///< code - zero, code below 128
  signed_byte,    ///< the same for 8 bits, stored as code - 128 or two's complement
  table_int8,     ///< a table of at most 16 signed bytes
  table_small,    ///< the same, its lowest and highest value at most 31 apart: fed as value - lowest
  table_float,    ///< a table of at most 16 floats; integer products take them as numbers of 14 bits, see split_levels
  plain           ///< a float weight
};

/// How the two-level scales of a panel are stored.
enum class sub_kind : std::uint8_t {
  none,
  nibbles,      ///< sub-scale | sub-minimum << 4
  scales,       ///< a signed byte
  scales_minima ///< a signed byte and an unsigned byte
};

/// How the ends of sub-blocks fall on slabs: on every few slabs, in the middle and at the end of each, or anywhere.
enum class stepping : std::uint8_t { slabs, half_slabs, steps };

/// The part of a layout that kernels are compiled for. Formats that share it share their kernels: q4_0, s4_g128 and u4_g40 differ in
/// numbers that are read at run time.
struct code_shape {
  level_kind level{};
  unsigned bits = 0;
  number scale{};        ///< of a plain format: the weights' type
  bool minimum = false;
  sub_kind sub{};
  stepping step{};

  [[nodiscard]] constexpr std::uint32_t key() const noexcept {
    return static_cast<std::uint32_t>(level) | bits << 4 | static_cast<std::uint32_t>(scale) << 8 |
           static_cast<std::uint32_t>(minimum) << 12 | static_cast<std::uint32_t>(sub) << 16 | static_cast<std::uint32_t>(step) << 20;
  }
  static constexpr code_shape from_key(std::uint32_t k) noexcept {
    return {static_cast<level_kind>(k & 15), (k >> 4) & 15, static_cast<number>((k >> 8) & 15), ((k >> 12) & 1) != 0,
            static_cast<sub_kind>((k >> 16) & 15), static_cast<stepping>((k >> 20) & 15)};
  }
  [[nodiscard]] constexpr bool has_table() const noexcept { return level == level_kind::table_int8 || level == level_kind::table_small; }
  /// Whether levels go into integer products as signed bytes; the others are unsigned and below 128, a zero-point too high.
  [[nodiscard]] constexpr bool has_signed_levels() const noexcept { return level == level_kind::signed_byte || level == level_kind::table_int8; }
  /// Bits of the largest level where levels are unsigned.
  [[nodiscard]] constexpr unsigned level_bits() const noexcept { return level == level_kind::table_small ? 5 : level == level_kind::table_float ? 7 : bits; }
  /// Whether sub-scales are multiplied into levels as one byte instead of two: 15 times levels of at most 8, as codes of 3 bits with a zero-point
  /// among them are (panel_layout::scaled_levels looks at the zero-point).
  [[nodiscard]] constexpr bool has_byte_products() const noexcept { return sub == sub_kind::nibbles && level == level_kind::unsigned_code && bits <= 3; }
  /// In exact products of a token alone a code is made a float where it lies in its 32 bits, as 2^n times its level, and the activation at place i of a step
  /// is 2^-n times its own: unsigned codes stay in their byte, signed ones are moved to the top, values of a float table are none.
  [[nodiscard]] constexpr float activation_factor(std::size_t i) const noexcept {
    if (level == level_kind::table_float || level == level_kind::plain) return 1.0f;
    constexpr float factors[] = {1.0f, 0x1p-8f, 0x1p-16f, 0x1p-24f};
    return factors[level == level_kind::unsigned_code ? i % step_weights : 3];
  }
  /// Whether products with int8 activations exist.
  [[nodiscard]] constexpr bool has_int8() const noexcept { return level != level_kind::plain; }
  /// And with int16 activations: for codes of 6 bits and more, which err less than activations of 8 bits do. (Sub-minima are multiplied by
  /// sums of activations that have room for 8 bits.)
  [[nodiscard]] constexpr bool has_int16() const noexcept {
    return (level == level_kind::unsigned_code || level == level_kind::signed_byte) && bits >= 6 && !(minimum && sub != sub_kind::none);
  }
  /// And with activations of bfloat16: for weights of bfloat16.
  [[nodiscard]] constexpr bool has_bf16() const noexcept { return level == level_kind::plain && scale == number::bf16; }
};

/// A table of floats for integer products: value ~ step * (128 * (high - 63) + low), high and low below 128, and so two dots of bytes for
/// one. The step is 2^-14 of the distance from the largest magnitude to its opposite: a hundredth of what 8-bit activations err.
struct split_levels {
  static constexpr int zero = 63;  ///< of high
  std::array<std::uint8_t, 16> high{}, low{};
  float step = 0;
};

/// Everything the kernels need to know of a format, derived from its spec.
struct panel_layout {
  code_shape shape{};
  std::size_t block = 1;          ///< weights of a block: the spec's, or its sub-block where that has a scale of its own
  std::size_t sub_block = 1;      ///< weights of a sub-block
  std::size_t sub_blocks = 1;
  std::size_t sub_steps = 1;      ///< steps of a sub-block, padding included
  int zero = 0;                   ///< of a stored code, where zero_at is absent
  bool stored_zero = false;       ///< each row has a zero-point of its own
  bool scaled_levels = false;     ///< sub-scales can be multiplied into levels: these are signed bytes, and products have 15 bits, or 8 with has_byte_products
  int zero_bias = 0;              ///< less than a row's own zero-point: 128 where unsigned codes are stored as signed bytes
  std::size_t minimum_at = 0, zero_at = 0, sub_scale_at = 0, sub_minimum_at = 0;  ///< in a header; the scale is at 0
  std::size_t header_bytes = 0;
  std::size_t blocks_per_unit = 1, slabs_per_unit = 1;
  std::array<std::uint8_t, 16> table{};
  std::array<float, 16> float_table{};
  split_levels split{};           ///< float_table's, where that is not `table`

  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t slab_bytes() const noexcept { return shape.bits * step_bytes; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t block_steps() const noexcept { return sub_steps * sub_blocks; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t unit_headers() const noexcept { return blocks_per_unit * header_bytes; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t unit_bytes() const noexcept { return unit_headers() + slabs_per_unit * slab_bytes(); }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t blocks(std::size_t cols) const noexcept { return ceil_div(cols, block); }
  /// Pairs of 16-bit numbers that a block's sums of activations make: one for each sub-block with a stored zero-point, or one for
  /// two sub-blocks with minima.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t sum_pairs() const noexcept {
    return stored_zero ? sub_blocks : shape.minimum && shape.sub != sub_kind::none ? ceil_div(sub_blocks, 2) : 0;
  }
  /// Whether a code is more than its level, by a number that a row's codes share.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool has_zero() const noexcept {
    return (shape.level == level_kind::unsigned_code || shape.level == level_kind::signed_byte) && (stored_zero || zero != 0);
  }
  /// Whether an exact product with one token needs the sums of activations over sub-blocks.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool has_float_sums() const noexcept { return shape.minimum || has_zero(); }
  /// The largest magnitude of an int16 activation: all 16 bits, or as many as leave room for a block's sum in 32 bits (q6_k: 12 bits). A stored
  /// zero-point multiplies a sub-block's sum, which is split in 7 low and 16 high bits.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::int32_t largest_int16() const noexcept {
    const int lowest = shape.level == level_kind::signed_byte ? -128 : 0, highest = lowest + (1 << shape.bits) - 1;
    const int level = stored_zero ? highest - lowest : zero - lowest > highest - zero ? zero - lowest : highest - zero;
    const std::size_t sub_scale = shape.sub == sub_kind::none ? 1 : shape.sub == sub_kind::nibbles ? 15 : 128;
    std::size_t largest = ((std::size_t{1} << 31) - 1) / (static_cast<std::size_t>(level) * sub_scale * block);
    if (const std::size_t halves = ((std::size_t{1} << 22) - 1) / sub_block; stored_zero && halves < largest) largest = halves;
    return static_cast<std::int32_t>(largest < 32767 ? largest : 32767);
  }
  /// Weights of a row as the kernels see it: every sub-block padded to whole steps. For activations.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t padded_cols(std::size_t cols) const noexcept {
    return shape.level == level_kind::plain ? cols : blocks(cols) * block_steps() * step_weights;
  }
  /// Bytes of one panel of rows of `cols` weights.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t panel_bytes(std::size_t cols) const noexcept {
    if (shape.level == level_kind::plain) return round_up(cols * panel_rows * size_of(shape.scale), 64);
    const std::size_t n = blocks(cols), whole = n / blocks_per_unit, rest = n % blocks_per_unit;
    return whole * unit_bytes() + (rest != 0 ? unit_headers() + ceil_div(rest * block_steps(), slab_steps) * slab_bytes() : 0);
  }
  /// Where block b's header and its unit's codes begin, from the start of the panel.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t header_at(std::size_t b) const noexcept {
    return b / blocks_per_unit * unit_bytes() + b % blocks_per_unit * header_bytes;
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t codes_at(std::size_t b) const noexcept {
    return b / blocks_per_unit * unit_bytes() + unit_headers();
  }
  /// The first step of block b within its unit's codes.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t first_step(std::size_t b) const noexcept { return b % blocks_per_unit * block_steps(); }
};

/// Panels of `rows` rows.
LOWBIT_ALWAYS_INLINE constexpr std::size_t panel_count(std::size_t rows) noexcept { return ceil_div(rows, panel_rows); }

/// Splits the first `count` values of a table.
constexpr split_levels split_values(const std::array<float, 16>& values, std::size_t count) noexcept {
  constexpr int middle = split_levels::zero * 128;
  float largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : -values[i] > largest ? -values[i] : largest;
  split_levels s{};
  s.step = largest / static_cast<float>(middle);
  for (std::size_t i = 0; i < count; ++i) {
    const double level = largest > 0 ? static_cast<double>(values[i]) / static_cast<double>(largest) * middle + middle : middle;
    const int nearest = static_cast<int>(level + 0.5);
    s.high[i] = static_cast<std::uint8_t>(nearest >> 7);
    s.low[i] = static_cast<std::uint8_t>(nearest & 127);
  }
  return s;
}

/// Derives the run layout of a format.
constexpr panel_layout layout_of(const format_spec& s) noexcept {
  panel_layout p{};
  if (s.is_float()) {
    p.shape = {level_kind::plain, 0, s.element, false, sub_kind::none, stepping::slabs};
    return p;
  }
  // A sub-scale that is a number is a scale, and its sub-block a block.
  const bool split = s.sub_number != number::none;
  p.block = split ? s.sub : s.block;
  p.sub_block = s.sub_block();
  p.sub_blocks = split ? 1 : s.sub_blocks();
  p.sub_steps = ceil_div(s.sub_block(), step_weights);
  p.shape.bits = s.codes.bits();
  p.shape.scale = split ? s.sub_number : s.scale.type;
  p.shape.minimum = s.minimum.present();
  if (s.values.present()) {
    const float lowest = s.values.values[s.values.order[0]], highest = s.values.values[s.values.order[s.values.size - 1]];
    const bool small = s.values.fits_int8() && highest - lowest < 32;
    p.shape.level = small ? level_kind::table_small : s.values.fits_int8() ? level_kind::table_int8 : level_kind::table_float;
    if (small) p.zero = -static_cast<int>(lowest);
    for (std::size_t i = 0; i < s.values.size; ++i) {
      p.float_table[i] = s.values.values[i];
      if (s.values.fits_int8()) p.table[i] = static_cast<std::uint8_t>(static_cast<int>(s.values.values[i]));
    }
    if (p.shape.level == level_kind::table_float) {
      p.split = split_values(p.float_table, s.values.size);
      p.zero = split_levels::zero;
    }
  } else if (p.shape.bits == 8) {
    p.shape.level = level_kind::signed_byte;
    p.zero_bias = s.codes.is_signed ? 0 : 128;
    p.zero = s.codes.zero - p.zero_bias;
  } else {
    p.shape.level = level_kind::unsigned_code;
    p.zero = s.codes.is_signed ? 1 << (p.shape.bits - 1) : s.codes.zero;  // signed codes are stored with their top bit flipped
  }
  p.stored_zero = s.zero_point.present();
  const bool small = s.sub_scale.present() && s.sub_minimum.present() && s.sub_scale.lowest() == 0 && s.sub_scale.highest() < 16 &&
                     s.sub_minimum.lowest() == 0 && s.sub_minimum.highest() < 16;
  p.shape.sub = split || !s.sub_scale.present() ? sub_kind::none : small ? sub_kind::nibbles
                : s.sub_minimum.present() ? sub_kind::scales_minima : sub_kind::scales;
  const auto magnitude = [](int a, int b) { return -a > b ? -a : b; };
  int level = magnitude(-p.zero, (1 << p.shape.bits) - 1 - p.zero);
  if (p.shape.sub != sub_kind::none && !p.stored_zero && (p.shape.level == level_kind::unsigned_code || p.shape.has_table())) {
    const auto value = [&](std::size_t i) { return static_cast<int>(s.values.values[s.values.order[i]]); };
    if (p.shape.has_table()) level = magnitude(value(0), value(s.values.size - 1));
    p.scaled_levels = level < 128 && level * magnitude(s.sub_scale.lowest(), s.sub_scale.highest()) < (p.shape.has_byte_products() ? 128 : 1 << 14);
  }
  // Codes of at most 3 bits, 16 weights to a sub-block, have sums of 16 bits in the kernels (block_sums::narrow) unless their zero-point is far away.
  const bool far = p.shape.sub != sub_kind::none && p.shape.bits <= 3 && (level > 16 || p.stored_zero);
  p.shape.step = p.sub_steps % slab_steps == 0 ? stepping::slabs
                 : p.sub_steps == slab_steps / 2 && (split || (p.sub_blocks % 2 == 0 && !far)) ? stepping::half_slabs : stepping::steps;

  std::size_t at = panel_rows * size_of(p.shape.scale);
  const auto place = [&](bool present, std::size_t bytes) {
    const std::size_t here = at;
    if (present) at += bytes;
    return here;
  };
  p.minimum_at = place(s.minimum.present(), panel_rows * size_of(s.minimum.type));
  p.zero_at = place(p.stored_zero, panel_rows);
  p.sub_scale_at = place(p.shape.sub != sub_kind::none, panel_rows * p.sub_blocks);
  p.sub_minimum_at = place(p.shape.sub == sub_kind::scales_minima, panel_rows * p.sub_blocks);
  p.header_bytes = at;
  p.blocks_per_unit = s.block / p.block;
  while (p.blocks_per_unit * p.header_bytes % 64 != 0 || p.blocks_per_unit * p.block_steps() % slab_steps != 0) p.blocks_per_unit *= 2;
  p.slabs_per_unit = p.blocks_per_unit * p.block_steps() / slab_steps;
  return p;
}

/// The layout of a format, at compile time. Checks that the kernels can carry it.
template <block_format F>
struct layout_for {
  static constexpr panel_layout value = layout_of(spec_of<F>);
  static_assert(spec_of<F>.is_float() || !spec_of<F>.minimum.present() || spec_of<F>.minimum.type == spec_of<F>.scale.type,
                "lowbit: a block's minimum is stored as its scale is");
  static_assert(!spec_of<F>.sub_scale.present() || spec_of<F>.sub_number != number::none || (spec_of<F>.sub_scale.lowest() >= -128 && spec_of<F>.sub_scale.highest() <= 127),
                "lowbit: sub-scales fit in a signed byte");
  static_assert(spec_of<F>.sub_number == number::none || (size_of(spec_of<F>.sub_number) == 1 && spec_of<F>.sub_blocks() > 1),
                "lowbit: sub-scales that are numbers are bytes, of several sub-blocks (a scale of each block is its scale)");
  static_assert(!spec_of<F>.sub_minimum.present() || spec_of<F>.minimum.present(), "lowbit: sub-minima multiply a minimum");
  static_assert(!spec_of<F>.sub_scale.present() || !spec_of<F>.minimum.present() || spec_of<F>.sub_minimum.present(),
                "lowbit: beside sub-scales a minimum has sub-minima");
  static_assert(!spec_of<F>.sub_minimum.present() || !spec_of<F>.zero_point.present(), "lowbit: a block has sub-minima or a zero-point, not both");
  static_assert(spec_of<F>.sub_scale.present() || spec_of<F>.sub_blocks() == 1, "lowbit: sub-blocks have sub-scales");
  static_assert(!spec_of<F>.values.present() || !spec_of<F>.zero_point.present(), "lowbit: values of a table have no zero-point");
  static_assert(!spec_of<F>.sub_minimum.present() || spec_of<F>.sub_block() <= 256,
                "lowbit: sub-blocks with minima have at most 256 weights (their sums of activations are 16-bit numbers)");
};

/// The planes that codes of a width are stored in, low bits first: how many bits each, 0 past the last.
constexpr std::array<unsigned, 3> plane_widths(unsigned bits) noexcept {
  std::array<unsigned, 3> w{};
  if (bits == 8) return {8, 0, 0};
  std::size_t n = 0;
  for (unsigned width : {4u, 2u, 1u})
    if (bits & width) w[n++] = width;
  return w;
}

}  // namespace lowbit::kernel
