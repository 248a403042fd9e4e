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

/// The number at a field of each of `count` <= 256 blocks, as floats; 1 where there is none.
template <class Arch>
LOWBIT_ALWAYS_INLINE void read_numbers(scalar_field f, const std::uint8_t* blocks, std::size_t stride, std::size_t count, float* out) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>;
  const unsigned size = size_of(f.type);
  alignas(64) std::uint8_t bits[256 * 4];
  if (size == 2)
    for (std::size_t b = 0; b < count; ++b) std::memcpy(bits + b * 2, blocks + b * stride + f.at, 2);
  else
    for (std::size_t b = 0; b < count; ++b) std::memcpy(bits + b * size, blocks + b * stride + f.at, size);
  for (std::size_t b = 0; b < count; b += n) {
    floats<Arch> v(1.0f);
    with_number(f.type, [&](auto type) LOWBIT_INLINE_LAMBDA { v = load_numbers<Arch, type()>(bits, b); });
    v.store_unaligned(out + b);
  }
}

/// One factor times each of `count` integers (a byte each, signed or not): one rounding, as the codec has it.
template <class Arch, class Byte>
LOWBIT_ALWAYS_INLINE void scale_bytes(float factor, const Byte* values, std::size_t count, float* out) noexcept {
  for (std::size_t j = 0; j < count; j += simd::lanes<Arch>)
    simd::rounded_product<Arch>(floats<Arch>(factor), xsimd::to_float(simd::load_widened<Arch>(values + j, Arch{})), Arch{}).store_unaligned(out + j);
}

template <class Arch, level_rule Rule, bool Offset>
void dequantise_blocks(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float_sink<Arch> sink, float* out) noexcept {
  const sub_block_field sub_scale(s.sub_scale, s.sub_blocks()), sub_minimum(s.sub_minimum, s.sub_blocks()), zero_point(s.zero_point, 1);
  const std::size_t sub = s.sub_block(), subs = s.sub_blocks(), length = s.block < piece ? s.block : piece;
  const std::size_t group = piece / length < 256 / subs ? piece / length : 256 / subs;
  std::uint8_t codes[piece];
  float scales[256], minima[256], sub_scales[2 * max_sub_blocks], sub_minima[2 * max_sub_blocks];
  for (std::size_t c = 0; c < cols; c += group * s.block, blocks += group * s.bytes) {
    const std::size_t left = ceil_div(cols - c, s.block), count = left < group ? left : group;
    read_numbers<Arch>(s.scale, blocks, s.bytes, count, scales);
    if constexpr (Offset) read_numbers<Arch>(s.minimum, blocks, s.bytes, count, minima);
    for (std::size_t first = 0; first < s.block; first += length) {
      const std::size_t here = s.block - first < length ? s.block - first : length;
      unpack_codes<Arch>(s, blocks, count, first, here, codes);
      for (std::size_t b = 0; b < count; ++b) {
        const std::uint8_t* const block = blocks + b * s.bytes;
        std::uint8_t fields[2 * max_sub_blocks];
        if (s.sub_number != number::none) {
          sub_scale.template unpack<Arch>(block, fields);
          for (std::size_t j = 0; j < subs; ++j) sub_scales[j] = number_value(s.sub_number, fields[j]);
        } else if (s.sub_scale.present()) {
          sub_scale.template unpack_values<Arch>(block, fields);
          scale_bytes<Arch>(scales[b], reinterpret_cast<const std::int8_t*>(fields), subs, sub_scales);
        } else {
          sub_scales[0] = scales[b];
        }
        if constexpr (Offset) {
          if (s.sub_minimum.present()) {
            sub_minimum.template unpack_values<Arch>(block, fields);
            scale_bytes<Arch>(-minima[b], fields, subs, sub_minima);
          } else {
            sub_minima[0] = minima[b];
          }
        }
        const int zero = static_cast<int>(s.zero_point.present() ? zero_point.raw(block) : 0u) + s.codes.zero;
        const std::size_t begin = c + b * s.block, valid = cols - begin < first + here ? cols - begin : first + here;
        for (std::size_t i = first, j = i / sub; i < valid; ++j) {
          const std::size_t end = (j + 1) * sub < valid ? (j + 1) * sub : valid;
          dequantise_codes<Arch, Rule, Offset>(s, codes + b * here + (i - first), end - i, {sub_scales[j], Offset ? sub_minima[j] : 0.0f}, zero,
                                               sink, out + begin + i);
          i = end;
        }
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
