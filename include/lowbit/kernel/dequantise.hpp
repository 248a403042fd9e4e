// Rows of blocks to floats: the codec's values, bit for bit, at the speed of memory.
#pragma once

#include <lowbit/kernel/shared_numbers.hpp>

namespace lowbit::kernel {

namespace detail {

/// How codes become levels, the same for a whole row: by a table of floats, as bytes that `byte_levels` made of them before, or as
/// differences from a zero-point.
enum class level_rule : std::uint8_t { table, byte, difference };

/// Levels that are integers of eight signed bits, made of all codes of a piece: a register has four times as many bytes as floats.
template <class Arch>
class byte_levels {
 public:
  /// Whether a format's levels are such integers. (Not where one is -0: that is a float of its own.)
  LOWBIT_ALWAYS_INLINE static bool hold(const format_spec& s) noexcept {
    if (s.values.present()) {
      for (std::size_t i = 0; i < s.values.size; ++i)
        if (std::bit_cast<std::uint32_t>((&s.values.values[0])[i]) == 0x8000'0000u) return false;
      return s.values.fits_int8();
    }
    return !s.zero_point.present() && s.codes.lowest() >= -128 && s.codes.highest() <= 127;
  }
  LOWBIT_ALWAYS_INLINE explicit byte_levels(const format_spec& s) noexcept : has_table_(s.values.present()) {
    if (has_table_) {
      for (std::size_t i = 0; i < 16; ++i) table_[i] = static_cast<std::uint8_t>(static_cast<int>((&s.values.values[0])[i]));
    } else if (!s.codes.is_signed) {
      less_ = static_cast<std::uint8_t>(s.codes.zero);
    } else if (s.codes.bits() < 8) {  // (code ^ sign) - sign
      flip_ = less_ = static_cast<std::uint8_t>(1u << (s.codes.bits() - 1));
    }
  }
  /// In place. Reads and writes whole registers, up to `past` bytes behind the last code.
  LOWBIT_ALWAYS_INLINE void operator()(std::uint8_t* codes, std::size_t count) const noexcept {
    const auto change = [&](auto&& level) LOWBIT_INLINE_LAMBDA {
      for (std::size_t i = 0; i < count; i += bytes<Arch>::size) level(bytes<Arch>::load_unaligned(codes + i)).store_unaligned(codes + i);
    };
    if (has_table_) change([&](bytes<Arch> v) LOWBIT_INLINE_LAMBDA { return simd::lookup16<Arch>(v, table_, Arch{}); });
    else if (less_ != 0) change([&](bytes<Arch> v) LOWBIT_INLINE_LAMBDA { return bytes<Arch>((v ^ bytes<Arch>(flip_)) - bytes<Arch>(less_)); });
  }

 private:
  bool has_table_;
  std::uint8_t flip_ = 0, less_ = 0, table_[16];
};

/// `count` weights from the first of a sub-block on. `sub()`, the weights of a sub-block, is a constant for the usual sizes, whose loops go
/// away. `store` takes a place and a register.
template <class Arch, level_rule Rule, bool Offset, class Sub, class Store>
LOWBIT_ALWAYS_INLINE void dequantise_sub_blocks(const format_spec& s, Sub sub, const std::uint8_t* codes, std::size_t count, shared_at shared, float* out,
                                                Store store) noexcept {
  constexpr std::size_t n = simd::lanes<Arch>;
  // A copy, which stays in registers: floats that are written might be the codebook's.
  alignas(64) float table[16];
  if constexpr (Rule == level_rule::table) std::memcpy(table, &s.values.values[0], sizeof table);
  const auto sub_block = [&](auto here) LOWBIT_INLINE_LAMBDA {
    const floats<Arch> scale(*shared.scale), offset(Offset ? *shared.offset : 0.0f);
    const ints<Arch> zero(Rule == level_rule::difference ? *shared.zero : 0);
    const auto next = [&](std::size_t i) LOWBIT_INLINE_LAMBDA {
      floats<Arch> level;
      if constexpr (Rule == level_rule::byte) {
        level = xsimd::to_float(simd::load_widened<Arch>(reinterpret_cast<const std::int8_t*>(codes + i), Arch{}));
      } else {
        const ints<Arch> code = simd::load_widened<Arch>(codes + i, Arch{});
        if constexpr (Rule == level_rule::table) level = simd::lookup16<Arch>(code, table, Arch{});
        else level = xsimd::to_float(ints<Arch>(code - zero));
      }
      auto v = simd::rounded_product<Arch>(scale, level, Arch{});
      if constexpr (Offset) v += offset;
      store(out + i, v);
    };
    std::size_t i = 0;
    for (; i + 16 <= here(); i += 16) {
      LOWBIT_UNROLL
      for (std::size_t k = 0; k < 16; k += n) next(i + k);
    }
    for (; i + n <= here(); i += n) next(i);
    for (; i < here(); ++i) {
      float level;
      if constexpr (Rule == level_rule::byte) level = static_cast<float>(static_cast<std::int8_t>(codes[i]));
      else if constexpr (Rule == level_rule::table) level = table[codes[i]];
      else level = static_cast<float>(codes[i] - *shared.zero);
      const float v = lowbit::rounded_product(*shared.scale, level);
      out[i] = Offset ? v + *shared.offset : v;
    }
    codes += here();
    out += here();
    shared = {shared.scale + 1, shared.offset + 1, shared.zero + 1};
  };
  for (; count >= sub(); count -= sub()) sub_block(sub);
  if (count != 0) sub_block([count]() LOWBIT_INLINE_LAMBDA { return count; });
}

/// The same for sub-blocks of any size. `streamed`: past the caches.
template <class Arch, level_rule Rule, bool Offset>
LOWBIT_ALWAYS_INLINE void dequantise_codes(const format_spec& s, const std::uint8_t* codes, std::size_t count, shared_at shared, bool streamed,
                                           float* out) noexcept {
  const auto of_size = [&](auto sub) LOWBIT_INLINE_LAMBDA {
    const auto run = [&](auto store) LOWBIT_INLINE_LAMBDA { dequantise_sub_blocks<Arch, Rule, Offset>(s, sub, codes, count, shared, out, store); };
    if (streamed) run([](float* to, floats<Arch> v) LOWBIT_INLINE_LAMBDA { simd::store_streamed<Arch>(to, v, Arch{}); });
    else run([](float* to, floats<Arch> v) LOWBIT_INLINE_LAMBDA { v.store_unaligned(to); });
  };
  const std::size_t sub = s.sub_block();
  if (sub == 16) of_size(std::integral_constant<std::size_t, 16>{});
  else if (sub == 32) of_size(std::integral_constant<std::size_t, 32>{});
  else of_size([sub]() LOWBIT_INLINE_LAMBDA { return sub; });
}

template <class Arch, level_rule Rule, bool Offset>
void dequantise_blocks(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, bool streamed, float* out) noexcept {
  // Some blocks at once where they are small, a piece of one where it is large.
  const std::size_t sub = s.sub_block(), most = piece / s.block < ready / s.sub_blocks() ? piece / s.block : ready / s.sub_blocks();
  const std::size_t group = most != 0 ? most : 1;
  shared_numbers<Arch> shared(s);
  const byte_levels<Arch> to_levels(s);
  alignas(64) std::uint8_t codes[piece + past];
  for (std::size_t c = 0; c < cols; c += group * s.block, blocks += group * s.bytes) {
    const std::size_t left = ceil_div(cols - c, s.block), count = left < group ? left : group, all = count * s.block;
    const std::size_t valid = cols - c < all ? cols - c : all;
    shared.read(blocks, count);
    for (std::size_t first = 0; first < valid; first += piece) {
      const std::size_t here = all - first < piece ? all - first : piece, end = valid - first < here ? valid : first + here;
      unpack_codes<Arch>(s, blocks, count, first, here / count, codes);
      if constexpr (Rule == level_rule::byte) to_levels(codes, here);
      for (std::size_t i = first; i < end;) {  // a piece of a large block may begin within a sub-block
        const std::size_t begun = i % sub, some = begun != 0 && sub - begun < end - i ? sub - begun : end - i;
        dequantise_codes<Arch, Rule, Offset>(s, codes + (i - first), some, shared.at(i / sub), streamed, out + c + i);
        i += some;
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
  streamed = streamed && (s.is_float() || s.sub_block() % 16 == 0);
  if (s.is_float()) {
    detail::with_number(s.element, [&](auto type) LOWBIT_INLINE_LAMBDA {
      constexpr std::size_t n = simd::lanes<Arch>;
      std::size_t c = 0;
      for (; c + n <= cols; c += n) {
        const auto v = detail::load_numbers<Arch, type()>(blocks, c);
        if (streamed) simd::store_streamed<Arch>(out + c, v, Arch{});
        else v.store_unaligned(out + c);
      }
      for (; c < cols; ++c) out[c] = read_scalar({type(), 0}, blocks + c * s.bytes);
    });
    if (streamed) simd::fence_streamed(Arch{});
    return;
  }
  const auto run = [&](auto rule) LOWBIT_INLINE_LAMBDA {
    if (s.minimum.present()) detail::dequantise_blocks<Arch, rule(), true>(s, blocks, cols, streamed, out);
    else detail::dequantise_blocks<Arch, rule(), false>(s, blocks, cols, streamed, out);
  };
  if (detail::byte_levels<Arch>::hold(s)) run(std::integral_constant<level_rule, level_rule::byte>{});
  else if (s.values.present()) run(std::integral_constant<level_rule, level_rule::table>{});
  else run(std::integral_constant<level_rule, level_rule::difference>{});
  if (streamed) simd::fence_streamed(Arch{});
}

}  // namespace lowbit::kernel
