// Rows of blocks to floats: the codec's values, bit for bit, at the speed of memory.
#pragma once

#include <lowbit/kernel/exchange.hpp>
#include <lowbit/kernel/numbers.hpp>

namespace lowbit::kernel {

namespace detail {

/// How codes become levels: the difference is made once for a row.
enum class level_rule : std::uint8_t { table, signed_code, unsigned_code };

/// Where floats go: through the caches, or past them, for output that is larger than they are.
template <class Arch>
struct float_sink {
  bool streamed;
  LOWBIT_ALWAYS_INLINE void operator()(float* to, floats<Arch> v) const noexcept {
    if (streamed) simd::store_streamed<Arch>(to, v, Arch{});
    else v.store_unaligned(to);
  }
};

template <class Arch, level_rule Rule, bool Offset>
LOWBIT_ALWAYS_INLINE void dequantise_codes(const format_spec& s, const std::uint8_t* codes, std::size_t count, affine a, int zero,
                                           float_sink<Arch> sink, float* out) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>;
  const int unused = static_cast<int>(32 - s.codes.bits());
  std::size_t i = 0;
  for (; i + n <= count; i += n) {
    const auto code = simd::load_widened<Arch>(codes + i, Arch{});
    floats<Arch> level;
    if constexpr (Rule == level_rule::table) level = simd::lookup16<Arch>(code, &s.values.values[0], Arch{});
    else if constexpr (Rule == level_rule::signed_code) level = xsimd::to_float(ints<Arch>((code << unused) >> unused));
    else level = xsimd::to_float(ints<Arch>(code - ints<Arch>(zero)));
    auto v = simd::rounded_product<Arch>(floats<Arch>(a.scale), level, Arch{});
    if constexpr (Offset) v += floats<Arch>(a.offset);
    sink(out + i, v);
  }
  for (; i < count; ++i) {
    const float v = lowbit::rounded_product(a.scale, level_of(s, codes[i], zero - s.codes.zero));
    out[i] = Offset ? v + a.offset : v;
  }
}

/// Sub-blocks whose scales are made ready at once.
inline constexpr std::size_t ready = 256;
/// Room for them, and for what a register writes past the last.
using ready_floats = float[ready + 16];

/// `count` stored numbers, side by side, as floats.
template <class Arch>
LOWBIT_ALWAYS_INLINE void convert_numbers(number type, const std::uint8_t* bits, std::size_t count, float* out) noexcept {
  with_number(type, [&](auto constant) LOWBIT_INLINE_LAMBDA {
    for (std::size_t i = 0; i < count; i += simd::lanes<Arch>) load_numbers<Arch, constant()>(bits, i).store_unaligned(out + i);
  });
}

/// The number at a field of each of `count` <= ready blocks, as floats.
template <class Arch>
LOWBIT_ALWAYS_INLINE void read_numbers(scalar_field f, const std::uint8_t* blocks, std::size_t stride, std::size_t count, float* out) noexcept {
  const unsigned size = size_of(f.type);
  alignas(64) std::uint8_t bits[(ready + 16) * 4];
  if (size == 2)
    for (std::size_t b = 0; b < count; ++b) std::memcpy(bits + b * 2, blocks + b * stride + f.at, 2);
  else
    for (std::size_t b = 0; b < count; ++b) std::memcpy(bits + b * size, blocks + b * stride + f.at, size);
  convert_numbers<Arch>(f.type, bits, count, out);
}

/// One factor times each of `count` integers (a byte each, signed or not): one rounding, as the codec has it.
template <class Arch, class Byte>
LOWBIT_ALWAYS_INLINE void scale_bytes(float factor, const Byte* values, std::size_t count, float* out) noexcept {
  for (std::size_t j = 0; j < count; j += simd::lanes<Arch>)
    simd::rounded_product<Arch>(floats<Arch>(factor), xsimd::to_float(simd::load_widened<Arch>(values + j, Arch{})), Arch{}).store_unaligned(out + j);
}

/// What the weights of a sub-block share, for a few blocks at once.
template <class Arch>
class shared_numbers {
 public:
  LOWBIT_ALWAYS_INLINE explicit shared_numbers(const format_spec& s) noexcept
      : s_(s), sub_scale_(s.sub_scale, s.sub_blocks()), sub_minimum_(s.sub_minimum, s.sub_blocks()), zero_point_(s.zero_point, 1) {
    for (int& z : zero_) z = s.codes.zero;
  }

  LOWBIT_ALWAYS_INLINE void read(const std::uint8_t* blocks, std::size_t count) noexcept {
    const std::size_t subs = s_.sub_blocks();
    std::uint8_t fields[2 * max_sub_blocks];
    ready_floats of_block;
    if (s_.scale.present()) read_numbers<Arch>(s_.scale, blocks, s_.bytes, count, s_.sub_scale.present() ? of_block : scale_);
    for (std::size_t b = 0; s_.sub_scale.present() && b < count; ++b) {
      const std::uint8_t* const block = blocks + b * s_.bytes;
      if (s_.sub_number != number::none) {
        sub_scale_.template unpack<Arch>(block, fields);
        convert_numbers<Arch>(s_.sub_number, fields, subs, scale_ + b * subs);
      } else {
        sub_scale_.template unpack_values<Arch>(block, fields);
        scale_bytes<Arch>(of_block[b], reinterpret_cast<const std::int8_t*>(fields), subs, scale_ + b * subs);
      }
    }
    if (s_.minimum.present()) read_numbers<Arch>(s_.minimum, blocks, s_.bytes, count, s_.sub_minimum.present() ? of_block : offset_);
    for (std::size_t b = 0; s_.sub_minimum.present() && b < count; ++b) {
      sub_minimum_.template unpack_values<Arch>(blocks + b * s_.bytes, fields);
      scale_bytes<Arch>(-of_block[b], fields, subs, offset_ + b * subs);
    }
    for (std::size_t b = 0; s_.zero_point.present() && b < count; ++b)
      for (std::size_t j = 0; j < subs; ++j) zero_[b * subs + j] = static_cast<int>(zero_point_.raw(blocks + b * s_.bytes)) + s_.codes.zero;
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE affine at(std::size_t sub_block) const noexcept { return {scale_[sub_block], offset_[sub_block]}; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE int zero(std::size_t sub_block) const noexcept { return zero_[sub_block]; }

 private:
  const format_spec& s_;
  sub_block_field sub_scale_, sub_minimum_, zero_point_;
  ready_floats scale_, offset_;
  int zero_[ready];
};

template <class Arch, level_rule Rule, bool Offset>
void dequantise_blocks(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float_sink<Arch> sink, float* out) noexcept {
  // Some blocks at once where they are small, a piece of one where it is large.
  const std::size_t sub = s.sub_block(), most = piece / s.block < ready / s.sub_blocks() ? piece / s.block : ready / s.sub_blocks();
  const std::size_t group = most != 0 ? most : 1;
  shared_numbers<Arch> shared(s);
  std::uint8_t codes[piece];
  for (std::size_t c = 0; c < cols; c += group * s.block, blocks += group * s.bytes) {
    const std::size_t left = ceil_div(cols - c, s.block), count = left < group ? left : group, all = count * s.block;
    const std::size_t valid = cols - c < all ? cols - c : all;
    shared.read(blocks, count);
    for (std::size_t first = 0; first < valid; first += piece) {
      const std::size_t here = all - first < piece ? all - first : piece, end = valid - first < here ? valid : first + here;
      unpack_codes<Arch>(s, blocks, count, first, here / count, codes);
      for (std::size_t i = first, j = first / sub; i < end; ++j) {
        const std::size_t stop = (j + 1) * sub < end ? (j + 1) * sub : end;
        dequantise_codes<Arch, Rule, Offset>(s, codes + (i - first), stop - i, shared.at(j), shared.zero(j), sink, out + c + i);
        i = stop;
      }
    }
  }
}

}  // namespace detail

/// The weights [0, cols) of a row of blocks as floats: the codec's values, bit for bit. `streamed` stores past the caches, where blocks
/// are a multiple of 64 bytes (out is 64-byte aligned then): right where a whole matrix is written that is larger than they are.
template <class Arch>
void dequantise_row(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float* out, bool streamed) noexcept {
  using detail::level_rule;
  const detail::float_sink<Arch> sink{streamed && (s.is_float() || s.sub_block() % 16 == 0)};
  if (s.is_float()) {
    detail::with_number(s.element, [&](auto type) LOWBIT_INLINE_LAMBDA {
      constexpr std::size_t n = simd::lanes<Arch>;
      std::size_t c = 0;
      for (; c + n <= cols; c += n) sink(out + c, detail::load_numbers<Arch, type()>(blocks, c));
      for (; c < cols; ++c) out[c] = read_scalar({type(), 0}, blocks + c * s.bytes);
    });
    if (streamed) simd::fence_streamed(Arch{});
    return;
  }
  const auto run = [&](auto rule) LOWBIT_INLINE_LAMBDA {
    if (s.minimum.present()) detail::dequantise_blocks<Arch, rule(), true>(s, blocks, cols, sink, out);
    else detail::dequantise_blocks<Arch, rule(), false>(s, blocks, cols, sink, out);
  };
  if (s.values.present()) run(std::integral_constant<level_rule, level_rule::table>{});
  else if (s.codes.is_signed) run(std::integral_constant<level_rule, level_rule::signed_code>{});
  else run(std::integral_constant<level_rule, level_rule::unsigned_code>{});
  if (streamed) simd::fence_streamed(Arch{});
}

}  // namespace lowbit::kernel
