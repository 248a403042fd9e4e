// Whole rows rounded to nearest, for formats with one scale a block: ranges, scales and codes of many blocks at a time.
//
// Weights lie along the registers. Only what a block has one of (range, scale, zero-point) is turned, so that registers hold it for as
// many blocks as they have lanes. The bytes are those of one block at a time (quantise/standard.hpp).
#pragma once

#include <lowbit/kernel/exchange.hpp>
#include <lowbit/kernel/range_fit.hpp>

namespace lowbit::kernel {

/// Rows [row_begin, row_end) of a [rows, cols] matrix of finite floats.
struct quantise_args {
  const format_spec* spec;
  const float* x;
  std::size_t stride;           ///< floats from one row to the next
  std::size_t cols;
  std::size_t row_begin, row_end;
  const float* importance;      ///< [cols], usable in every sub-block; null: none
  std::uint8_t* out;            ///< row 0 of the matrix of blocks
  bool as_ggml;                 ///< by ggml's reference quantiser, where the spec is a GGUF type's; else over the whole range
};

namespace detail {

/// The numbers that some blocks have one of.
template <std::size_t Most>
struct block_numbers {
  alignas(64) float low[Most], high[Most], offset[Most], inverse[Most], bias[Most];
  alignas(64) std::int32_t zero_point[Most];
  alignas(64) std::uint32_t scale_bits[Most], minimum_bits[Most];
};

/// By the registers of `Arch`, in the unit of `Unit`.
template <class Unit, class Arch>
class rows_to_nearest {
  using floats = simd::batch<float, Arch>;
  using lanes = lane_floats<Arch, 1>;
  static constexpr std::size_t n = floats::size, most = 64;

 public:
  explicit rows_to_nearest(const quantise_args& a) noexcept
      : a_(a), s_(*a.spec), rule_(a.as_ggml ? ggml::rule_of(s_) : rounding_rule::nearest),
        together_(s_.block >= piece ? 1 : piece / s_.block < most ? piece / s_.block : most) {}

  void quantise() noexcept {
    const std::size_t per_row = s_.row_blocks(a_.cols);
    for (std::size_t r = a_.row_begin; r < a_.row_end; ++r)
      for (std::size_t b = 0; b < per_row; b += together_) {
        const std::size_t c = b * s_.block;
        quantise_blocks(a_.x + r * a_.stride + c, a_.cols - c, per_row - b < together_ ? per_row - b : together_, a_.out + (r * per_row + b) * s_.bytes);
      }
  }

 private:
  static constexpr auto lesser_of = [](const floats& a, const floats& b) LOWBIT_INLINE_LAMBDA { return xsimd::min(a, b); };
  static constexpr auto greater_of = [](const floats& a, const floats& b) LOWBIT_INLINE_LAMBDA { return xsimd::max(a, b); };

  /// `left` weights of a row from x on, of which the first `count` blocks are taken.
  void quantise_blocks(const float* x, std::size_t left, std::size_t count, std::uint8_t* out) noexcept {
    x_ = x;
    left_ = left;
    find_ranges(count);
    for (std::size_t b = 0; b < count; b += n)
      if (a_.as_ggml) fit_as_ggml(b, count);
      else fit_range(b);
    std::memset(out, 0, count * s_.bytes);
    for (std::size_t first = 0; first < s_.block; first += piece) {
      const std::size_t size = s_.block - first < piece ? s_.block - first : piece;
      with_rule(s_, rule_, [&](auto rule) LOWBIT_INLINE_LAMBDA {
        if (s_.minimum.present()) find_codes(code_lanes<rule(), true, Arch>(s_), count, first, size);
        else find_codes(code_lanes<rule(), false, Arch>(s_), count, first, size);
      });
      pack_codes<Unit>(s_, codes_, count, first, size, out);
    }
    store(numbers_.scale_bits, s_.scale, count, out);
    store(numbers_.minimum_bits, s_.minimum, count, out);
    store_zero_points(count, out);
  }

  /// How many weights block b has; fewer than others where it ends the row.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE std::size_t size_of_block(std::size_t b) const noexcept {
    const std::size_t left = left_ - b * s_.block;
    return left < s_.block ? left : s_.block;
  }

  void find_ranges(std::size_t count) noexcept {
    std::size_t b = 0;
    const auto whole_blocks = [&](auto block) LOWBIT_INLINE_LAMBDA {
      const float* x = x_;
      for (const std::size_t whole = left_ / block(); b < count && b < whole; ++b, x += block()) {
        const auto four = [&](std::size_t i, auto&& combine) LOWBIT_INLINE_LAMBDA {
          const auto v = [&](std::size_t k) LOWBIT_INLINE_LAMBDA { return floats::load_unaligned(x + i + k * n); };
          return combine(combine(v(0), v(1)), combine(v(2), v(3)));
        };
        floats lows = four(0, lesser_of), highs = four(0, greater_of);
        for (std::size_t i = 4 * n; i < block(); i += 4 * n) {
          lows = xsimd::min(lows, four(i, lesser_of));
          highs = xsimd::max(highs, four(i, greater_of));
        }
        lows.store_aligned(lows_[b]);
        highs.store_aligned(highs_[b]);
      }
    };
    if (s_.block % (4 * n) == 0) with_count(s_.block, whole_blocks);
    for (; b < count; ++b) {
      const std::size_t size = size_of_block(b);
      floats lows, highs;
      range_lanes<Arch>(x_ + b * s_.block, size, lows, highs);
      if (a_.as_ggml && size < s_.block) {  // as if the weights that are missing were zero
        lows = xsimd::min(lows, floats(0.0f));
        highs = xsimd::max(highs, floats(0.0f));
      }
      lows.store_aligned(lows_[b]);
      highs.store_aligned(highs_[b]);
    }
    const auto turn = [&](const auto& rows, float* out, auto&& combine) LOWBIT_INLINE_LAMBDA {
      for (b = 0; b < count; b += n) {
        floats square[n];
        for (std::size_t l = 0; l < n; ++l) square[l] = floats::load_aligned(rows[b + l]);
        (simd::across<Arch>(square, combine, Arch{}) + floats(0.0f)).store_aligned(out + b);
      }
    };
    turn(lows_, numbers_.low, lesser_of);
    turn(highs_, numbers_.high, greater_of);
  }

  /// A number as its bits, and what they stand for.
  LOWBIT_ALWAYS_INLINE static lanes stored(number type, const lanes& value, std::uint32_t* bits) noexcept {
    if (type == number::f16) {
      std::uint16_t half[n];
      simd::store_f16<Arch>(half, value.part[0], Arch{});
      for (std::size_t l = 0; l < n; ++l) bits[l] = half[l];
      lanes back;
      back.part[0] = simd::load_f16<Arch>(half, Arch{});
      return back;
    }
    float lane[n];
    value.store(lane);
    for (std::size_t l = 0; l < n; ++l) {
      bits[l] = number_bits(type, lane[l]);
      lane[l] = number_value(type, bits[l]);
    }
    return lanes::load(lane);
  }

  /// Scales that spread the codes over the whole range.
  void fit_range(std::size_t b) noexcept {
    const auto real = scale_for(s_, lanes::load(numbers_.low + b), lanes::load(numbers_.high + b));
    const lanes scale = stored(s_.scale.type, clamped_scale(s_.scale.type, real.scale), numbers_.scale_bits + b);
    finite_or_zero(lanes(1.0f) / scale).store(numbers_.inverse + b);
    lanes offset(0.0f), zero_point(0.0f);
    if (s_.minimum.present()) offset = stored(s_.minimum.type, clamped_scale(s_.minimum.type, real.minimum), numbers_.minimum_bits + b);
    else if (s_.zero_point.present()) zero_point = zero_point_for(s_, real.minimum, scale);
    offset.store(numbers_.offset + b);
    xsimd::to_int(zero_point.part[0]).store_aligned(numbers_.zero_point + b);
  }

  void fit_as_ggml(std::size_t b, std::size_t count) noexcept {
    const lanes low = lanes::load(numbers_.low + b), high = lanes::load(numbers_.high + b);
    alignas(64) float extreme[n];
    select(negated(low) > high, low, high).store(extreme);
    if (rule_ == rounding_rule::half_up && any((negated(low) == high) | (low == lanes(0.0f)))) {
      // Of several weights of the largest magnitude, or several zeros, ggml takes the first one's sign.
      for (std::size_t l = 0; l < n && b + l < count; ++l) {
        const std::size_t size = size_of_block(b + l);
        ggml::find_first(x_ + (b + l) * s_.block, size, numbers_.low + b + l, extreme + l);
      }
    }
    const auto f = ggml::fit_unsearched(s_, lanes::load(numbers_.low + b), high, lanes::load(extreme));
    stored(s_.scale.type, f.scale, numbers_.scale_bits + b);
    stored(s_.minimum.type, f.offset, numbers_.minimum_bits + b);
    f.offset.store(numbers_.offset + b);
    f.inverse.store(numbers_.inverse + b);
    f.bias.store(numbers_.bias + b);
  }

  /// The codes [first, first + size) of each block, one block after the other.
  template <class Round>
  LOWBIT_ALWAYS_INLINE void find_codes(const Round& round, std::size_t count, std::size_t first, std::size_t size) noexcept {
    // Copies, since a byte that is written might be any member's.
    std::uint8_t* codes = codes_;
    const float* x = x_ + first;
    const block_numbers<most>& of = numbers_;
    const std::size_t block = s_.block, ahead = together_ * block, left = left_;
    std::size_t b = 0;
    const auto map_of = [&](std::size_t k) LOWBIT_INLINE_LAMBDA { return grid_map{0, of.offset[k], of.inverse[k], of.zero_point[k], of.bias[k]}; };
    const auto four = [&](const grid_lanes<Arch>& map, int zero_point, std::size_t i) LOWBIT_INLINE_LAMBDA {
      // The next blocks' weights: their ranges come next, which do little more than read them.
      for (std::size_t line = 0; line < 4 * n; line += 16) __builtin_prefetch(x + i + line + ahead);
      round.store(x + i, map, zero_point, codes + i);
    };
    const auto whole_blocks = [&](auto all) LOWBIT_INLINE_LAMBDA {
      for (const std::size_t whole = left < first + all() ? 0 : (left - first - all()) / block + 1; b < count && b < whole; ++b, codes += all(), x += block) {
        const grid_lanes<Arch> map(map_of(b));
        for (std::size_t i = 0; i < all(); i += 4 * n) four(map, of.zero_point[b], i);
      }
    };
    const bool by_four = round.fits();
    if (by_four && size % (4 * n) == 0) with_count(size, whole_blocks);
    for (; b < count; ++b, codes += size, x += block) {
      const grid_lanes<Arch> map(map_of(b));
      const std::size_t begin = b * block + first, there = left < begin ? 0 : left - begin < size ? left - begin : size;
      std::size_t i = 0;
      for (; by_four && i + 4 * n <= there; i += 4 * n) four(map, of.zero_point[b], i);
      if (i != size) find_last_codes(round, map, x, i, there, size, codes);
    }
  }
  /// The codes [i, size) of a block that has only `there` of these weights. May write a register past them: over codes that come later.
  template <class Round>
  void find_last_codes(const Round& round, const grid_lanes<Arch>& map, const float* x, std::size_t i, std::size_t there, std::size_t size,
                       std::uint8_t* codes) noexcept {
    const auto store_one = [&](const floats& v) LOWBIT_INLINE_LAMBDA {
      const auto code = round(v, map).code;
      simd::store_narrowed<Arch>(reinterpret_cast<std::int8_t*>(codes + i), (code << 24) >> 24, Arch{});
    };
    for (; i + n <= there; i += n) store_one(floats::load_unaligned(x + i));
    if (i == size) return;
    store_one(load_last<Arch>(x + i, there - i, 0.0f));
    if (there == size) return;
    // What is missing at the end of a row: ggml's zeros, or zero bits.
    std::uint8_t missing = 0;
    if (a_.as_ggml) {
      alignas(64) std::int32_t code[n];
      round(floats(0.0f), map).code.store_aligned(code);
      missing = static_cast<std::uint8_t>(code[0]);
    }
    std::memset(codes + there, missing, size - there);
  }

  /// A number of each block to where it belongs.
  LOWBIT_ALWAYS_INLINE void store(const std::uint32_t* bits, const scalar_field& field, std::size_t count, std::uint8_t* out) const noexcept {
    const auto each = [&](auto sized) LOWBIT_INLINE_LAMBDA {
      std::uint8_t* at = out + field.at;
      const std::size_t step = s_.bytes;
      for (std::size_t b = 0; b < count; ++b, at += step) {
        sized = static_cast<decltype(sized)>(bits[b]);
        std::memcpy(at, &sized, sizeof sized);
      }
    };
    switch (size_of(field.type)) {
      case 1: return each(std::uint8_t{});
      case 2: return each(std::uint16_t{});
      case 4: return each(std::uint32_t{});
      default: return;
    }
  }

  /// Into blocks whose bits are zero.
  LOWBIT_ALWAYS_INLINE void store_zero_points(std::size_t count, std::uint8_t* out) const noexcept {
    for (const plane& p : s_.zero_point.planes) {
      if (p.bits == 0) break;
      const std::size_t step = s_.bytes, bit = p.position(0);
      const bool in_a_byte = bit % 8 + p.bits <= 8;
      std::uint8_t* at = out + (in_a_byte ? bit / 8 : 0);
      const unsigned shift = p.shift, left = static_cast<unsigned>(bit % 8), mask = (1u << p.bits) - 1;
      for (std::size_t b = 0; b < count; ++b, at += step) {
        const unsigned raw = static_cast<unsigned>(numbers_.zero_point[b]) >> shift;
        if (in_a_byte) *at = static_cast<std::uint8_t>(*at | (raw & mask) << left);
        else write_bits(at, bit, p.bits, raw);
      }
    }
  }

  const quantise_args& a_;
  const format_spec& s_;
  rounding_rule rule_;
  std::size_t together_;  ///< blocks that are fitted together
  const float* x_ = nullptr;
  std::size_t left_ = 0;
  block_numbers<most> numbers_{};
  alignas(64) float lows_[most][n] = {}, highs_[most][n] = {};
  alignas(64) std::uint8_t codes_[piece + n];
};

/// Plain floats, narrowed.
template <class Arch>
void narrow_rows(const quantise_args& a) noexcept {
  const format_spec& s = *a.spec;
  constexpr std::size_t n = simd::lanes<Arch>;
  for (std::size_t r = a.row_begin; r < a.row_end; ++r) {
    const float* const x = a.x + r * a.stride;
    std::uint8_t* const out = a.out + r * s.row_bytes(a.cols);
    if (s.element == number::f32) {
      std::memcpy(out, x, a.cols * sizeof(float));
      continue;
    }
    std::size_t c = 0;
    // A register or more at a time, by way of a variable: bytes that are written might be any weight's.
    const auto narrow = [&](auto&& convert, auto& half) LOWBIT_INLINE_LAMBDA {
      for (constexpr std::size_t some = sizeof half / sizeof half[0]; c + some <= a.cols; c += some) {
        convert(half, x + c);
        std::memcpy(out + 2 * c, half, sizeof half);
      }
    };
    if (s.element == number::f16) {
      std::uint16_t half[n];
      const auto convert = [](std::uint16_t* to, const float* v) LOWBIT_INLINE_LAMBDA {
        simd::store_f16<Arch>(to, simd::batch<float, Arch>::load_unaligned(v), Arch{});
      };
      narrow(convert, half);
    } else {
      std::uint16_t half[64];
      const auto convert = [](std::uint16_t* to, const float* v) LOWBIT_INLINE_LAMBDA {
        for (std::size_t i = 0; i < 64; ++i) to[i] = to_bf16(v[i]).bits;
      };
      narrow(convert, half);
    }
    for (; c < a.cols; ++c) {
      const std::uint16_t bits = s.element == number::f16 ? to_f16(x[c]).bits : to_bf16(x[c]).bits;
      std::memcpy(out + 2 * c, &bits, sizeof bits);
    }
  }
}

}  // namespace detail

}  // namespace lowbit::kernel
