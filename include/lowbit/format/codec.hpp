// The executable definition of every format: a block's bytes to its parts and back, and parts to float values.
//
// Written for clarity, straight from the spec; the vectorised kernels are tested against it bit for bit. Exact under any compiler
// flag short of -ffast-math: a product that feeds an addition is kept from being fused with it, since one rounding fewer would be
// another value than the formats' own projects compute.
#pragma once

#include <lowbit/format/spec.hpp>

#include <cstring>
#include <type_traits>

namespace lowbit {

/// A product rounded to float, whatever the compiler would like to fuse it with.
LOWBIT_ALWAYS_INLINE constexpr float rounded_product(float a, float b) noexcept {
  float p = a * b;
#if defined(__GNUC__)
  if (!std::is_constant_evaluated()) {
#if defined(__SSE__)
    asm("" : "+x"(p));
#elif defined(__aarch64__)
    asm("" : "+w"(p));
#else
    asm("" : "+m"(p));
#endif
  }
#endif
  return p;
}

/// The value of a number's stored bits; 1 for a number that is absent.
LOWBIT_ALWAYS_INLINE constexpr float number_value(number type, std::uint32_t bits) noexcept {
  switch (type) {
    case number::f32: return std::bit_cast<float>(bits);
    case number::f16: return to_float(f16{static_cast<std::uint16_t>(bits)});
    case number::bf16: return to_float(bf16{static_cast<std::uint16_t>(bits)});
    case number::e8m0_half: return e8m0_half_to_float(static_cast<std::uint8_t>(bits));
    case number::e4m3_half: return e4m3_half_to_float(static_cast<std::uint8_t>(bits));
    case number::none: break;
  }
  return 1.0f;
}

/// The stored bits of a value: rounded to nearest even, or for e8m0_half to the least power of two that is not below it.
LOWBIT_ALWAYS_INLINE constexpr std::uint32_t number_bits(number type, float value) noexcept {
  switch (type) {
    case number::f32: return std::bit_cast<std::uint32_t>(value);
    case number::f16: return to_f16(value).bits;
    case number::bf16: return to_bf16(value).bits;
    case number::e8m0_half: {
      if (!(value > e8m0_half_to_float(0))) return 0;
      // 2^(e - 128) is the float with exponent field e - 1, or for e < 2 a subnormal one.
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), below = bits >> 23, up = (bits & 0x7f'ffffu) != 0;
      return below == 0 ? (bits <= 0x40'0000u ? 1u : 2u) : below + 1 + up < 255 ? below + 1 + up : 255u;
    }
    case number::e4m3_half: return to_e4m3(2.0f * value);
    case number::none: break;
  }
  return 0;
}

/// The stored bits of the number at a field; 0 where there is none.
LOWBIT_ALWAYS_INLINE std::uint32_t read_bits_of(scalar_field f, const std::uint8_t* block) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, block + f.at, size_of(f.type));
  return bits;
}

/// The number at a field; 1 where there is none.
LOWBIT_ALWAYS_INLINE float read_scalar(scalar_field f, const std::uint8_t* block) noexcept {
  return number_value(f.type, read_bits_of(f, block));
}

/// The level of a code: what the scale multiplies. `zero_point` as zero_point_of gives it.
LOWBIT_ALWAYS_INLINE constexpr float level_of(const format_spec& s, unsigned code, int zero_point) noexcept {
  if (s.values.present()) return s.values.values[code];
  return static_cast<float>(s.codes.value(code) - zero_point);
}

/// The block's stored zero-point, or 0.
LOWBIT_ALWAYS_INLINE constexpr int zero_point_of(const format_spec& s, const std::uint8_t* block) noexcept {
  return s.zero_point.present() ? static_cast<int>(s.zero_point.raw(block, 0)) : 0;
}

/// The factor that a sub-scale's stored bits are.
LOWBIT_ALWAYS_INLINE constexpr float sub_scale_value(const format_spec& s, unsigned raw) noexcept {
  return s.sub_number != number::none ? number_value(s.sub_number, raw) : static_cast<float>(s.sub_scale.value(raw));
}

/// What weights of sub-block j share: value = rounded(scale * level) + offset.
struct affine {
  float scale, offset;
};
LOWBIT_ALWAYS_INLINE affine affine_of(const format_spec& s, const std::uint8_t* block, std::size_t j) noexcept {
  affine a{read_scalar(s.scale, block), 0.0f};
  if (s.sub_scale.present()) a.scale = rounded_product(a.scale, sub_scale_value(s, s.sub_scale.raw(block, j)));
  if (s.minimum.present()) {
    a.offset = read_scalar(s.minimum, block);
    if (s.sub_minimum.present())
      a.offset = -rounded_product(a.offset, static_cast<float>(s.sub_minimum.value(s.sub_minimum.raw(block, j))));
  }
  return a;
}

/// The blocks of a row in the format's planes(): each recoded. Expects a format that is.
inline void recode_row(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, std::uint8_t* out) noexcept {
  const std::size_t count = s.row_blocks(cols), bytes = s.recode.into->bytes;
  for (std::size_t b = 0; b < count; ++b) s.recode.decode(blocks + b * s.bytes, out + b * bytes);
}

/// Decodes one block: out[spec.block].
inline void decode_block(const format_spec& s, const std::uint8_t* block, float* out) noexcept {
  if (s.is_recoded()) {
    std::uint8_t recoded[max_recoded_bytes];
    s.recode.decode(block, recoded);
    return decode_block(*s.recode.into, recoded, out);
  }
  if (s.is_float()) {
    out[0] = read_scalar({s.element, 0}, block);
    return;
  }
  const int zero = zero_point_of(s, block);
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    const affine a = affine_of(s, block, j);
    for (std::size_t i = j * s.sub_block(); i < (j + 1) * s.sub_block(); ++i) {
      const float v = rounded_product(a.scale, level_of(s, s.codes.raw(block, i), zero));
      out[i] = s.minimum.present() ? v + a.offset : v;
    }
  }
}

/// Decodes a row of `cols` weights from its blocks; the padding of a ragged last block is not written.
inline void decode_row(const format_spec& s, const std::uint8_t* blocks, std::size_t cols, float* out, float* scratch) noexcept {
  for (std::size_t c = 0; c < cols; c += s.block, blocks += s.bytes) {
    if (cols - c >= s.block) {
      decode_block(s, blocks, out + c);
    } else {
      decode_block(s, blocks, scratch);
      std::memcpy(out + c, scratch, (cols - c) * sizeof(float));
    }
  }
}

/// A block taken apart, its raw fields somewhere else. Scales are stored bits (number_value gives their values), sub-scales and codes
/// are the spec's raw integers.
struct block_fields {
  std::uint32_t* scale;
  std::uint32_t* minimum;
  std::uint8_t* zero_point;
  std::uint8_t* sub_scale;    ///< [sub_blocks]
  std::uint8_t* sub_minimum;  ///< [sub_blocks]
  std::uint8_t* codes;        ///< [block]
};

/// Everything but the codes, for who has a faster way with those (kernel/exchange.hpp). Clears the block first.
LOWBIT_ALWAYS_INLINE void write_header(const format_spec& s, const block_fields& f, std::uint8_t* block) noexcept {
  std::memset(block, 0, s.bytes);
  std::memcpy(block + s.scale.at, f.scale, size_of(s.scale.type));
  std::memcpy(block + s.minimum.at, f.minimum, size_of(s.minimum.type));
  s.zero_point.set_raw(block, 0, *f.zero_point);
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    s.sub_scale.set_raw(block, j, f.sub_scale[j]);
    s.sub_minimum.set_raw(block, j, f.sub_minimum[j]);
  }
}

/// Blocks to fields and back: read then write is the identity, bit for bit (padding bits become zero).
inline void read_block(const format_spec& s, const std::uint8_t* block, const block_fields& f) noexcept {
  *f.scale = read_bits_of(s.scale, block);
  *f.minimum = read_bits_of(s.minimum, block);
  *f.zero_point = static_cast<std::uint8_t>(s.zero_point.raw(block, 0));
  for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
    f.sub_scale[j] = static_cast<std::uint8_t>(s.sub_scale.raw(block, j));
    f.sub_minimum[j] = static_cast<std::uint8_t>(s.sub_minimum.raw(block, j));
  }
  for (std::size_t i = 0; i < s.block; ++i) f.codes[i] = static_cast<std::uint8_t>(s.codes.raw(block, i));
}
inline void write_block(const format_spec& s, const block_fields& f, std::uint8_t* block) noexcept {
  write_header(s, f, block);
  for (std::size_t i = 0; i < s.block; ++i) s.codes.set_raw(block, i, f.codes[i]);
}

/// The fields of one block of a format, owned.
template <block_format F>
struct block_parts {
  static constexpr const format_spec& spec = spec_of<F>;
  std::uint32_t scale = 0, minimum = 0;
  std::uint8_t zero_point = 0;
  std::array<std::uint8_t, spec.sub_blocks()> sub_scale{}, sub_minimum{};
  std::array<std::uint8_t, spec.block> codes{};

  [[nodiscard]] block_fields fields() noexcept {
    return {&scale, &minimum, &zero_point, sub_scale.data(), sub_minimum.data(), codes.data()};
  }
};

template <block_format F>
void read_block(const std::uint8_t* block, block_parts<F>& p) noexcept {
  read_block(spec_of<F>, block, p.fields());
}
template <block_format F>
void write_block(block_parts<F>& p, std::uint8_t* block) noexcept {
  write_block(spec_of<F>, p.fields(), block);
}

}  // namespace lowbit
