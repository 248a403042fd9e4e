// The vectorised exchange codec against the formats' definition, on every instruction set that this machine has.
#include "random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/dequantise.hpp>

#include <doctest/doctest.h>

using namespace lowbit;

namespace {
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
struct q5_g1001 { static constexpr format_spec spec = uniform({.bits = 5, .group = 1001, .symmetric = true}); };
struct q7_g1 { static constexpr format_spec spec = uniform({.bits = 7, .group = 1, .symmetric = true, .scale = number::bf16}); };
struct q4_g4080 {  // runs of 24 bytes, which do not divide what is unpacked at once
  static constexpr format_spec spec{.name = "q4_g4080", .block = 4080, .bytes = 2042, .codes = {{plane{4, 0, byte(0), {{24, 2, 85}, {8, 4, 192}}}}},
                                    .scale = {number::f16, 2040}};
};
struct q5_b3 {  // three sub-scales, fewer than are taken at once; values that are no bytes: -3 … -34
  static constexpr format_spec spec{.name = "q5_b3", .block = 48, .sub = 16, .bytes = 34, .codes = {{plane{5, 0, 0, {{48}, {5}}}}, 34},
                                    .scale = {number::f16, 30}, .sub_scale = {{plane{5, 0, byte(32), {{3}, {5}}}}}, .unused_bits = 1};
};
struct q8_z128 {
  static constexpr format_spec spec{.name = "q8_z128", .block = 24, .bytes = 26, .codes = {{plane{8, 0, 0, {{24}, {8}}}}, 128}, .scale = {number::f16, 24}};
};
struct q7_z200 {  // code - zero from -200 on
  static constexpr format_spec spec{.name = "q7_z200", .block = 32, .bytes = 30, .codes = {{plane{7, 0, 0, {{32}, {7}}}}, 200}, .scale = {number::bf16, 28}};
};
struct signed_zero {  // integers, but for -0, whose sign is a float's
  static constexpr format_spec spec{.name = "signed_zero", .block = 32, .bytes = 18, .codes = {{plane{4, 0, byte(2), {{32}, {4}}}}}, .scale = {number::f16, 0},
                                    .values = make_codebook(16, {0.0f, 1, 2, 3, 4, 5, 6, 7, -0.0f, -1, -2, -3, -4, -5, -6, -7})};
};

template <class F>
void for_each_unit(F&& f) {
  for (const auto& u : kernel::linked_units())
    if (u.available) {
      CAPTURE(std::string(u.name));
      f(*u.kernels);
    }
}
template <class F>
void for_each_spec(F&& f) {
  for (const format_spec* s : all_formats::specs) f(*s);
  f(spec_of<q3_g40>);
  f(spec_of<q5_g1001>);
  f(spec_of<q7_g1>);
  f(spec_of<q4_g4080>);
  f(spec_of<q5_b3>);
  f(spec_of<q8_z128>);
  f(spec_of<q7_z200>);
  f(spec_of<signed_zero>);
}
}  // namespace

TEST_CASE("rows of blocks become the codec's floats, bit for bit") {
  for_each_unit([&](const kernel::unit& unit) {
    for_each_spec([&](const format_spec& s) {
      CAPTURE(std::string(s.name));
      for (const std::size_t cols : {std::size_t{1}, std::size_t{s.block}, std::size_t{3} * s.block - 1, std::size_t{2} * s.block + 5}) {
        const packed_matrix w = test::random_blocks(s, 2, cols, 7);
        std::vector<float> expected(2 * cols);
        aligned_buffer memory((cols + 1) * sizeof(float));
        float* const got = reinterpret_cast<float*>(memory.data());
        decode(w.view(), {expected.data(), 2, cols});
        for (const bool streamed : {false, true})
          for (std::size_t r = 0; r < 2; ++r) {
            std::fill(got, got + cols + 1, 42.0f);
            unit.dequantise_row(s, w.row(r), cols, got, streamed);
            REQUIRE(std::memcmp(got, &expected[r * cols], cols * sizeof(float)) == 0);
            REQUIRE(got[cols] == 42.0f);  // nothing past the row
          }
      }
    });
  });
}

TEST_CASE("a matrix large enough to be streamed, and one that is not aligned for it") {
  serial_executor serial;
  constexpr std::size_t rows = 1030, cols = 4128;
  for_each_unit([&](const kernel::unit& unit) {
    for (const format_spec* s : {&spec_of<q4_k>, &spec_of<q3_g40>, &spec_of<float16>}) {
      const packed_matrix w = test::random_blocks(*s, rows, cols, 7);
      std::vector<float> expected(rows * cols);
      decode(w.view(), {expected.data(), rows, cols});
      aligned_buffer memory((rows * cols + 1) * sizeof(float));
      for (const std::size_t offset : {0u, 1u}) {
        float* const out = reinterpret_cast<float*>(memory.data()) + offset;
        dequantise(w.view(), {out, rows, cols}, serial, unit);
        REQUIRE(std::memcmp(out, expected.data(), rows * cols * sizeof(float)) == 0);
      }
    }
  });
}

TEST_CASE("codes come out of blocks as the spec's planes say, and go back in") {
  for_each_unit([&](const kernel::unit& unit) {
    for_each_spec([&](const format_spec& s) {
      if (s.is_float()) return;
      CAPTURE(std::string(s.name));
      for (const std::size_t blocks : {std::size_t{1}, std::size_t{3}, std::size_t{9}}) {
        const packed_matrix w = test::random_blocks(s, 1, blocks * s.block, 11);
        const std::vector<std::uint8_t> packed(w.bytes().begin(), w.bytes().end());  // that end where a sanitiser sees it
        std::vector<std::uint8_t> repacked(blocks * s.bytes), expected(blocks * s.bytes);
        for (std::size_t first = 0; first < s.block; first += kernel::piece) {
          const std::size_t count = std::min<std::size_t>(kernel::piece, s.block - first);
          std::vector<std::uint8_t> codes(blocks * count);
          unit.unpack_codes(s, packed.data(), blocks, first, count, codes.data());
          for (std::size_t b = 0; b < blocks; ++b)
            for (std::size_t i = 0; i < count; ++i) {
              REQUIRE(codes[b * count + i] == s.codes.raw(&packed[b * s.bytes], first + i));
              s.codes.set_raw(&expected[b * s.bytes], first + i, codes[b * count + i]);
            }
          unit.pack_codes(s, codes.data(), blocks, first, count, repacked.data());
        }
        REQUIRE(repacked == expected);
      }
    });
  });
}

TEST_CASE("every byte of panels is written: what was in their memory before does not show") {
  for_each_unit([&](const kernel::unit& unit) {
    for_each_spec([&](const format_spec& given) {
      const format_spec& s = given.planes();
      if (unit.find(kernel::layout_of(s).shape) == nullptr) return;
      CAPTURE(std::string(s.name));
      for (const std::size_t cols : {std::size_t{s.block}, std::size_t{3} * s.block + 37}) {
        const std::size_t rows = 21;  // a panel and a third of one
        const packed_matrix w = test::random_blocks(s, rows, cols, 5);
        const kernel::panel_layout layout = kernel::layout_of(s);
        const std::size_t panels = kernel::panel_count(rows), bytes = panels * layout.panel_bytes(cols);
        std::vector<std::uint8_t> built[2];
        for (const std::uint8_t before : {0, 255}) {
          aligned_buffer out(bytes), scratch(kernel::build_scratch_bytes(s, layout));
          std::memset(out.data(), before, bytes);
          std::memset(scratch.data(), before, scratch.size());
          unit.build_panels({&s, &layout, w.bytes().data(), w.view().row_bytes(), rows, cols, 0, panels, out.data(), scratch.data()});
          built[before != 0].assign(out.data(), out.data() + bytes);
        }
        REQUIRE(built[0] == built[1]);
      }
    });
  });
}
