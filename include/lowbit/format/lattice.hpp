// GGUF's types that are not planes of bits: points of a lattice (iq1, iq2, iq3) and digits of base 3 (tq1_0). Layouts: ggml
// (ggml-common.h, ggml-quants.c, dequantize_row_*).
//
// Each says how one of its blocks becomes a block of planes with the same values (spec.hpp, recoding), and everything that reads formats
// reads that. A lattice block holds indices of points, whose coordinates are few small magnitudes, and signs: looked up, the points are a
// plane of codes, the signs another, and a codebook of at most 16 integers gives the levels. Scales are d * (2 s + 1) over a power of two,
// so all products are exact in float32: the two forms have the same values, bit for bit.
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/format/lattice_tables.hpp>

#include <cstring>

namespace lowbit {

namespace detail {

/// A block of 256 looked-up points: a float32 scale, a byte of sub-scale for every `sub` weights, `bits`-bit magnitudes, signs.
constexpr format_spec lattice_levels(std::string_view name, unsigned bits, unsigned sub, const codebook& values) noexcept {
  const unsigned codes_at = 4 + 256 / sub, signs_at = codes_at + 32 * bits;
  return {.name = name, .block = 256, .sub = sub, .bytes = signs_at + 32,
          .codes = {{plane{bits, 0, byte(codes_at), {{256}, {static_cast<int>(bits)}}}, plane{1, bits, byte(signs_at), {{256}, {1}}}}},
          .scale = {number::f32, 0}, .sub_scale = {{plane{8, 0, byte(4), {{256 / sub}, {8}}}}, 0, true}, .values = values};
}

inline constexpr codebook iq2_values = make_codebook(8, {8, 25, 43, 0, -8, -25, -43, 0});
inline constexpr codebook iq3_xxs_values = make_codebook(16, {4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62});
inline constexpr codebook iq3_s_values = make_codebook(16, {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15});
/// Eighths: -1, 0 or 1, and 1/8 more or (the upper half) less.
inline constexpr codebook iq1_values = make_codebook(8, {-7, 1, 9, 0, -9, -1, 7, 0});

/// Fills a lattice_levels block.
template <unsigned Bits, unsigned Sub>
class level_writer {
 public:
  level_writer(std::uint8_t* out, std::uint16_t scale_bits, float factor) noexcept : out_(out) {
    const float scale = to_float(f16{scale_bits}) * factor;
    std::memcpy(out, &scale, 4);
  }
  /// Sub-scale j is 2 s + 1.
  void sub_scale(std::size_t j, unsigned s) noexcept { out_[4 + j] = static_cast<std::uint8_t>(2 * s + 1); }
  /// Weights 8 i … 8 i + 7: their magnitudes, Bits bits each, and a bit each that is set where they are negative.
  void eight(std::size_t i, std::uint32_t magnitudes, unsigned signs) noexcept {
    std::memcpy(out_ + 4 + 256 / Sub + Bits * i, &magnitudes, Bits);
    out_[4 + 256 / Sub + 32 * Bits + i] = static_cast<std::uint8_t>(signs);
  }

 private:
  std::uint8_t* out_;
};

inline std::uint16_t read_u16(const std::uint8_t* p) noexcept { return static_cast<std::uint16_t>(p[0] | p[1] << 8); }
inline std::uint32_t read_u32(const std::uint8_t* p) noexcept { return read_u16(p) | static_cast<std::uint32_t>(read_u16(p + 2)) << 16; }
/// Eight signs stored as seven: an even number of them is negative (ggml's ksigns_iq2xs).
inline unsigned even_signs(unsigned seven) noexcept { return seven | (static_cast<unsigned>(std::popcount(seven)) & 1u) << 7; }

// iq2_xxs: f16 d; for every 32 weights four bytes of points, then four times seven signs and a scale in the top bits of a word.
inline void decode_iq2_xxs(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<2, 32> w(out, read_u16(b), 0.125f);
  for (std::size_t j = 0; j < 8; ++j) {
    const std::uint8_t* const points = b + 2 + 8 * j;
    const std::uint32_t word = read_u32(points + 4);
    w.sub_scale(j, word >> 28);
    for (std::size_t k = 0; k < 4; ++k) w.eight(4 * j + k, iq2_xxs_points[points[k]], even_signs((word >> (7 * k)) & 127));
  }
}
// iq2_xs: f16 d; 32 words of nine bits of point and seven signs; scale nibbles for every 16 weights.
inline void decode_iq2_xs(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<2, 16> w(out, read_u16(b), 0.125f);
  for (std::size_t i = 0; i < 32; ++i) {
    const unsigned word = read_u16(b + 2 + 2 * i);
    w.eight(i, iq2_xs_points[word & 511], even_signs(word >> 9));
  }
  for (std::size_t j = 0; j < 16; ++j) w.sub_scale(j, (b[66 + j / 2] >> (4 * (j % 2))) & 15u);
}
// iq2_s: f16 d; 32 low bytes of points; 32 bytes of signs; two more bits of each point in 8 bytes; scale nibbles for every 16 weights.
inline void decode_iq2_s(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<2, 16> w(out, read_u16(b), 0.125f);
  for (std::size_t i = 0; i < 32; ++i) {
    const unsigned high = (b[66 + i / 4] >> (2 * (i % 4))) & 3u;
    w.eight(i, iq2_s_points[b[2 + i] | high << 8], b[34 + i]);
  }
  for (std::size_t j = 0; j < 16; ++j) w.sub_scale(j, (b[74 + j / 2] >> (4 * (j % 2))) & 15u);
}
// iq3_xxs: f16 d; 64 bytes of points of four weights; for every 32 weights four times seven signs and a scale in the top bits of a word.
inline void decode_iq3_xxs(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<3, 32> w(out, read_u16(b), 0.25f);
  for (std::size_t j = 0; j < 8; ++j) {
    const std::uint32_t word = read_u32(b + 66 + 4 * j);
    w.sub_scale(j, word >> 28);
    for (std::size_t k = 0; k < 4; ++k) {
      const std::uint8_t* const points = b + 2 + 8 * j + 2 * k;
      w.eight(4 * j + k, iq3_xxs_points[points[0]] | static_cast<std::uint32_t>(iq3_xxs_points[points[1]]) << 12, even_signs((word >> (7 * k)) & 127));
    }
  }
}
// iq3_s: f16 d; 64 low bytes of points of four weights; their ninth bits in 8 bytes; 32 bytes of signs; scale nibbles for every 32 weights.
inline void decode_iq3_s(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<3, 32> w(out, read_u16(b), 1.0f);
  const auto point = [&](std::size_t i) -> std::uint32_t { return iq3_s_points[b[2 + i] | ((b[66 + i / 8] >> (i % 8)) & 1u) << 8]; };
  for (std::size_t i = 0; i < 32; ++i) w.eight(i, point(2 * i) | point(2 * i + 1) << 12, b[74 + i]);
  for (std::size_t j = 0; j < 8; ++j) w.sub_scale(j, (b[106 + j / 2] >> (4 * (j % 2))) & 15u);
}
// iq1_s: f16 d; 32 low bytes of points; for every 32 weights a word of four times three high bits, a scale of three, and the sign of 1/8.
inline void decode_iq1_s(const std::uint8_t* b, std::uint8_t* out) noexcept {
  level_writer<2, 32> w(out, read_u16(b), 0.125f);
  for (std::size_t j = 0; j < 8; ++j) {
    const unsigned word = read_u16(b + 34 + 2 * j);
    w.sub_scale(j, (word >> 12) & 7);
    for (std::size_t k = 0; k < 4; ++k) w.eight(4 * j + k, iq1_points[b[2 + 4 * j + k] | ((word >> (3 * k)) & 7) << 8], (word >> 15) * 255);
  }
}
// iq1_m: 32 low bytes of points; a nibble of three high bits and the sign of 1/8 for each; four words of four scales of three bits for 16
// weights each, with a nibble of f16 d on top.
inline void decode_iq1_m(const std::uint8_t* b, std::uint8_t* out) noexcept {
  unsigned d = 0;
  for (std::size_t k = 0; k < 4; ++k) d |= static_cast<unsigned>(read_u16(b + 48 + 2 * k) >> 12) << (4 * k);
  level_writer<2, 16> w(out, static_cast<std::uint16_t>(d), 0.125f);
  for (std::size_t i = 0; i < 32; ++i) {
    const unsigned nibble = b[32 + i / 2] >> (4 * (i % 2));
    w.eight(i, iq1_points[b[i] | (nibble & 7) << 8], ((nibble >> 3) & 1) * 255);
  }
  for (std::size_t j = 0; j < 16; ++j) w.sub_scale(j, (read_u16(b + 48 + j / 4 * 2) >> (3 * (j % 4))) & 7u);
}

/// Calls f(byte, its digit n, the weight) for all digits of a tq1_0 block: 32 bytes of five, 16 of five, 4 of four, f16 d behind them.
template <class F>
void for_each_trit(F&& f) noexcept {
  struct part { std::size_t first, bytes, digits, weight; };
  for (const part p : {part{0, 32, 5, 0}, part{32, 16, 5, 160}, part{48, 4, 4, 240}})
    for (std::size_t m = 0; m < p.bytes; ++m)
      for (std::size_t n = 0; n < p.digits; ++n) f(p.first + m, n, p.weight + m + p.bytes * n);
}
/// A byte holds its digits as the fraction 0.t0t1t2… of base 3 in 256ths, rounded up: multiply, and the digit comes out on top.
inline void decode_tq1_0(const std::uint8_t* b, std::uint8_t* out) noexcept {
  constexpr std::uint8_t powers[] = {1, 3, 9, 27, 81};
  std::memset(out, 0, 64);
  for_each_trit([&](std::size_t at, std::size_t n, std::size_t i) {
    const unsigned rest = static_cast<std::uint8_t>(b[at] * powers[n]);
    tq2_0::spec.codes.set_raw(out, i, (rest * 3) >> 8);
  });
  std::memcpy(out + 64, b + 52, 2);
}
inline void encode_tq1_0(const std::uint8_t* b, std::uint8_t* out) noexcept {
  unsigned fraction[52] = {};  // digits as an integer of base 3, five of them even where a byte has four
  constexpr unsigned places[] = {81, 27, 9, 3, 1};
  for_each_trit([&](std::size_t at, std::size_t n, std::size_t i) {
    const unsigned digit = tq2_0::spec.codes.raw(b, i);
    fraction[at] += (digit < 2 ? digit : 2) * places[n];
  });
  for (std::size_t at = 0; at < 52; ++at) out[at] = static_cast<std::uint8_t>((fraction[at] * 256 + 242) / 243);
  std::memcpy(out + 52, b + 64, 2);
}

}  // namespace detail

/// The looked-up forms. Nobody stores them; panels and rows of floats are made from them.
struct iq2_levels32 { static constexpr format_spec spec = detail::lattice_levels("iq2_levels32", 2, 32, detail::iq2_values); };
struct iq2_levels16 { static constexpr format_spec spec = detail::lattice_levels("iq2_levels16", 2, 16, detail::iq2_values); };
struct iq3_xxs_levels { static constexpr format_spec spec = detail::lattice_levels("iq3_xxs_levels", 3, 32, detail::iq3_xxs_values); };
struct iq3_s_levels { static constexpr format_spec spec = detail::lattice_levels("iq3_s_levels", 3, 32, detail::iq3_s_values); };
struct iq1_levels32 { static constexpr format_spec spec = detail::lattice_levels("iq1_levels32", 2, 32, detail::iq1_values); };
struct iq1_levels16 { static constexpr format_spec spec = detail::lattice_levels("iq1_levels16", 2, 16, detail::iq1_values); };

struct iq2_xxs {
  static constexpr format_spec spec{.name = "iq2_xxs", .gguf = 16, .block = 256, .bytes = 66, .recode = {&iq2_levels32::spec, &detail::decode_iq2_xxs, nullptr}};
};
struct iq2_xs {
  static constexpr format_spec spec{.name = "iq2_xs", .gguf = 17, .block = 256, .bytes = 74, .recode = {&iq2_levels16::spec, &detail::decode_iq2_xs, nullptr}};
};
struct iq2_s {
  static constexpr format_spec spec{.name = "iq2_s", .gguf = 22, .block = 256, .bytes = 82, .recode = {&iq2_levels16::spec, &detail::decode_iq2_s, nullptr}};
};
struct iq3_xxs {
  static constexpr format_spec spec{.name = "iq3_xxs", .gguf = 18, .block = 256, .bytes = 98, .recode = {&iq3_xxs_levels::spec, &detail::decode_iq3_xxs, nullptr}};
};
struct iq3_s {
  static constexpr format_spec spec{.name = "iq3_s", .gguf = 21, .block = 256, .bytes = 110, .recode = {&iq3_s_levels::spec, &detail::decode_iq3_s, nullptr}};
};
struct iq1_s {
  static constexpr format_spec spec{.name = "iq1_s", .gguf = 19, .block = 256, .bytes = 50, .recode = {&iq1_levels32::spec, &detail::decode_iq1_s, nullptr}};
};
struct iq1_m {
  static constexpr format_spec spec{.name = "iq1_m", .gguf = 29, .block = 256, .bytes = 56, .recode = {&iq1_levels16::spec, &detail::decode_iq1_m, nullptr}};
};
struct tq1_0 {
  static constexpr format_spec spec{.name = "tq1_0", .gguf = 34, .block = 256, .bytes = 54, .recode = {&tq2_0::spec, &detail::decode_tq1_0, &detail::encode_tq1_0}};
};

}  // namespace lowbit
