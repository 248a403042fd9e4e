// What the weights of a sub-block share, out of some blocks of the exchange layout: scales, offsets and zero-points, vectorised.
#pragma once

#include <lowbit/kernel/exchange.hpp>
#include <lowbit/kernel/numbers.hpp>

namespace lowbit::kernel::detail {

/// Sub-blocks whose numbers are made ready at once.
inline constexpr std::size_t ready = 256;
/// Room for what a register writes past the last.
inline constexpr std::size_t past = 64;

/// An integer field with a few elements in a block. Their places are worked out once; then each plane goes through all blocks, so that
/// nothing is decided block by block.
class element_field {
 public:
  LOWBIT_ALWAYS_INLINE element_field(const integer_field& f, std::size_t elements) noexcept : field_(f), elements_(elements) {
    for (std::size_t k = 0; k < 3 && plane_at(k).bits != 0; ++k) {
      const plane& p = plane_at(k);
      places element(p, 0);
      for (std::size_t j = 0; j < elements; ++j, element.next()) at_[k][j] = static_cast<std::uint32_t>(element.bit());
      const unsigned run = (&p.digits.extent[0])[0];
      const int stride = (&p.digits.stride[0])[0];
      pattern_[k] = stride == 8 && run % 4 == 0 && at_[k][0] % 8 + p.bits <= 8                                       ? pattern::bytes
                    : stride == static_cast<int>(p.bits) && run == elements && elements % 8 == 0 && at_[k][0] % 8 == 0 ? pattern::dense
                                                                                                                  : pattern::other;
    }
  }

  /// The stored bits of the elements of `count` blocks, a byte each, block by block.
  template <class Arch>
  LOWBIT_ALWAYS_INLINE void unpack(const std::uint8_t* blocks, std::size_t stride, std::size_t count, std::uint8_t* raw) const noexcept {
    unpack_plane<Arch, true>(0, blocks, stride, count, raw);
    for (std::size_t k = 1; k < 3 && plane_at(k).bits != 0; ++k) unpack_plane<Arch, false>(k, blocks, stride, count, raw);
  }
  /// The integers that they mean, as bytes (two's complement where negative). Writes up to `past` bytes more.
  template <class Arch>
  LOWBIT_ALWAYS_INLINE void unpack_values(const std::uint8_t* blocks, std::size_t stride, std::size_t count, std::uint8_t* values) const noexcept {
    unpack<Arch>(blocks, stride, count, values);
    const unsigned sign = field_.is_signed ? 1u << (field_.bits() - 1) : 0u, less = field_.is_signed ? sign : static_cast<unsigned>(field_.zero);
    if (less == 0 || sign == 128) return;
    const bytes<Arch> flips(static_cast<std::uint8_t>(sign)), taken(static_cast<std::uint8_t>(less));
    for (std::size_t i = 0; i < count * elements_; i += bytes<Arch>::size)
      bytes<Arch>((bytes<Arch>::load_unaligned(values + i) ^ flips) - taken).store_unaligned(values + i);
  }

 private:
  [[nodiscard]] LOWBIT_ALWAYS_INLINE const plane& plane_at(std::size_t k) const noexcept { return (&field_.planes[0])[k]; }

  template <class Arch, bool First>
  LOWBIT_ALWAYS_INLINE void unpack_plane(std::size_t k, const std::uint8_t* blocks, std::size_t stride, std::size_t count, std::uint8_t* raw) const noexcept {
    const plane& p = plane_at(k);
    const std::uint32_t* const at = at_[k];
    // `word` makes several elements from element j on, as many as it has bytes.
    const auto all = [&](std::size_t j, auto&& word) LOWBIT_INLINE_LAMBDA {
      std::uint8_t* to = raw + j;
      const std::uint8_t* from = blocks + at[j] / 8;
      for (std::size_t b = 0; b < count; ++b, to += elements_, from += stride) {
        auto some = word(from);
        if constexpr (!First) {
          decltype(some) others;
          std::memcpy(&others, to, sizeof others);
          some = static_cast<decltype(some)>(some | others);
        }
        std::memcpy(to, &some, sizeof some);
      }
    };
    const unsigned shift = p.shift;
    if (pattern_[k] == pattern::bytes) {
      const std::uint32_t mask = ((1u << p.bits) - 1) * 0x0101'0101u;
      for (std::size_t j = 0; j < elements_; j += 4) {
        const unsigned right = at[j] % 8;
        all(j, [&](const std::uint8_t* from) LOWBIT_INLINE_LAMBDA {
          std::uint32_t four;
          std::memcpy(&four, from, sizeof four);
          return static_cast<std::uint32_t>(((four >> right) & mask) << shift);
        });
      }
    } else if (pattern_[k] == pattern::dense) {
      with_width(p.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
        for (std::size_t j = 0; j < elements_; j += 8)
          all(j, [&](const std::uint8_t* from) LOWBIT_INLINE_LAMBDA { return std::uint64_t{simd::spread_bits<bits()>(load_word<bits()>(from), Arch{}) << shift}; });
      });
    } else {
      for (std::size_t j = 0; j < elements_; ++j) {
        const unsigned bit = at[j] % 8, width = p.bits;
        all(j, [&](const std::uint8_t* from) LOWBIT_INLINE_LAMBDA { return static_cast<std::uint8_t>(read_bits(from, bit, width) << shift); });
      }
    }
  }

  const integer_field& field_;
  std::size_t elements_;
  pattern pattern_[3];
  std::uint32_t at_[3][max_sub_blocks];
};

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
  alignas(64) std::uint8_t bits[ready * sizeof(float) + past];
  const auto gather = [&](auto size) LOWBIT_INLINE_LAMBDA {
    for (std::size_t b = 0; b < count; ++b) std::memcpy(bits + b * size(), blocks + b * stride + f.at, size());
  };
  if (f.type == number::f32) gather(std::integral_constant<std::size_t, 4>{});
  else if (size_of(f.type) == 2) gather(std::integral_constant<std::size_t, 2>{});
  else gather(std::integral_constant<std::size_t, 1>{});
  convert_numbers<Arch>(f.type, bits, count, out);
}

/// The numbers of a sub-block, and behind them those of the next ones.
struct shared_at {
  const float* scale;
  const float* offset;
  const int* zero;
};

/// Of some blocks: a number of each kind for every sub-block.
template <class Arch>
class shared_numbers {
 public:
  LOWBIT_ALWAYS_INLINE explicit shared_numbers(const format_spec& s) noexcept
      : s_(s), subs_(s.sub_blocks()), sub_scale_(s.sub_scale, subs_), sub_minimum_(s.sub_minimum, subs_), zero_point_(s.zero_point, 1) {
    for (int& z : zero_) z = s.codes.zero;
  }

  /// As many blocks as have `ready` sub-blocks at most.
  LOWBIT_ALWAYS_INLINE void read(const std::uint8_t* blocks, std::size_t count) noexcept {
    alignas(64) std::uint8_t fields[ready + past];
    alignas(64) float of_block[ready + past / sizeof(float)];
    const bool is_split = s_.sub_scale.present();
    if (s_.scale.present()) read_numbers<Arch>(s_.scale, blocks, s_.bytes, count, is_split ? of_block : scale_);
    if (is_split && s_.sub_number != number::none) {
      sub_scale_.template unpack<Arch>(blocks, s_.bytes, count, fields);
      convert_numbers<Arch>(s_.sub_number, fields, count * subs_, scale_);
    } else if (is_split) {
      sub_scale_.template unpack_values<Arch>(blocks, s_.bytes, count, fields);
      multiply(of_block, reinterpret_cast<const std::int8_t*>(fields), count, scale_);
    }
    if (s_.minimum.present()) read_numbers<Arch>(s_.minimum, blocks, s_.bytes, count, s_.sub_minimum.present() ? of_block : offset_);
    if (s_.sub_minimum.present()) {
      sub_minimum_.template unpack_values<Arch>(blocks, s_.bytes, count, fields);
      for (std::size_t b = 0; b < count; ++b) of_block[b] = -of_block[b];
      multiply(of_block, fields, count, offset_);
    }
    if (s_.zero_point.present()) {
      zero_point_.template unpack<Arch>(blocks, s_.bytes, count, fields);
      for (std::size_t j = 0; j < subs_; ++j)
        for (std::size_t b = 0; b < count; ++b) zero_[b * subs_ + j] = fields[b] + s_.codes.zero;
    }
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE shared_at at(std::size_t sub_block) const noexcept {
    return {scale_ + sub_block, offset_ + sub_block, zero_ + sub_block};
  }

 private:
  /// Each block's factor times its integers, signed or not: one rounding, as the codec has it.
  template <class Byte>
  LOWBIT_ALWAYS_INLINE void multiply(const float* factors, const Byte* values, std::size_t count, float* out) const noexcept {
    for (std::size_t b = 0; b < count; ++b, values += subs_, out += subs_)
      for (std::size_t j = 0; j < subs_; j += simd::lanes<Arch>)
        simd::rounded_product<Arch>(floats<Arch>(factors[b]), xsimd::to_float(simd::load_widened<Arch>(values + j, Arch{})), Arch{}).store_unaligned(out + j);
  }

  const format_spec& s_;
  std::size_t subs_;
  element_field sub_scale_, sub_minimum_, zero_point_;
  // Aligned, so that no store crosses from one page to the next: behind streamed stores such a store costs as much as hundreds of others.
  alignas(64) float scale_[ready + past / sizeof(float)], offset_[ready + past / sizeof(float)];
  alignas(64) int zero_[ready];
};

}  // namespace lowbit::kernel::detail
