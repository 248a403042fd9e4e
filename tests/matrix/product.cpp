// Products against definitions written out here: the integer path bit for bit, the exact path against float64.
#include "../executors.hpp"
#include "../kernel/random_weights.hpp"
#include "defined_product.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/product.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace lowbit;

namespace {
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
struct q8_g24 { static constexpr format_spec spec = uniform({.bits = 8, .group = 24}); };
struct q5_g17 { static constexpr format_spec spec = uniform({.bits = 5, .group = 17, .symmetric = true}); };
/// Groups that are no whole registers and are padded to some.
struct q5_g15 { static constexpr format_spec spec = uniform({.bits = 5, .group = 15, .symmetric = true}); };
struct q5_g31 { static constexpr format_spec spec = uniform({.bits = 5, .group = 31, .symmetric = true}); };
/// Each sub-block's scale and minimum before its codes, six bits each, so that one lies in two bytes.
struct scattered {
  static constexpr format_spec spec{.name = "scattered", .block = 256, .sub = 32, .bytes = 148,
                                    .codes = {{{{4, 0, 16, {{32, 8}, {4, 144}}}}}},
                                    .scale = {number::f16, 144}, .minimum = {number::f16, 146},
                                    .sub_scale = {{{{6, 0, 0, {{8}, {144}}}}}},
                                    .sub_minimum = {{{{6, 0, 6, {{8}, {144}}}}}},
                                    .unused_bits = 8 * 4};
};
/// A zero-point beyond signed bytes, and groups longer than kernels unpack at once.
struct far_zero { static constexpr format_spec spec{.name = "far_zero", .block = 64, .bytes = 34, .codes = {.planes = {{{4, 0, 0, {{64}, {4}}}}}, .zero = 200}, .scale = {number::f16, 32}}; };
struct far_zero_8 { static constexpr format_spec spec{.name = "far_zero_8", .block = 64, .bytes = 66, .codes = {.planes = {{{8, 0, 0, {{64}, {8}}}}}, .zero = 200}, .scale = {number::f16, 64}}; };
/// Sub-blocks whose levels times sub-scales are beyond what matrix registers are fed, in two ways.
struct far_k { static constexpr format_spec spec = [] { auto s = spec_of<q4_k>; return s.name = "far_k", s.gguf = -1, s.codes.zero = 200, s; }(); };
struct wide_k { static constexpr format_spec spec = [] { auto s = spec_of<q2_k>; return s.name = "wide_k", s.gguf = -1, s.codes.zero = 9, s; }(); };
/// Sub-blocks in blocks that do not fill matrix registers, and in blocks longer than kernels unpack at once.
constexpr format_spec nested(std::string_view name, unsigned block, unsigned sub) noexcept {
  const unsigned subs = block / sub, at = block / 2;
  return {.name = name, .block = block, .sub = sub, .bytes = at + 4 + 2 * subs, .codes = {{{{4, 0, 0, {{block}, {4}}}}}},
          .scale = {number::f16, at}, .minimum = {number::f16, at + 2}, .sub_scale = {{{{6, 0, 8 * (at + 4), {{subs}, {8}}}}}},
          .sub_minimum = {{{{6, 0, 8 * (at + 4 + subs), {{subs}, {8}}}}}}, .unused_bits = 4 * subs};
}
struct k4_96 { static constexpr format_spec spec = nested("k4_96", 96, 32); };
struct k4_1024 { static constexpr format_spec spec = nested("k4_1024", 1024, 64); };
struct s4_g96 { static constexpr format_spec spec = uniform({.bits = 4, .group = 96, .symmetric = true}); };
/// Words of codes that fill no 16 bytes, or more than they.
struct s1_g96 { static constexpr format_spec spec = uniform({.bits = 1, .group = 96, .symmetric = true}); };
struct u2_g160 { static constexpr format_spec spec = uniform({.bits = 2, .group = 160}); };
struct s4_g2560 { static constexpr format_spec spec = uniform({.bits = 4, .group = 2560, .symmetric = true}); };
struct u8_g2080 { static constexpr format_spec spec = uniform({.bits = 8, .group = 2080}); };
struct u4_g2080 { static constexpr format_spec spec = uniform({.bits = 4, .group = 2080}); };
using formats = detail::concat<all_formats, lattice_level_formats, format_list<q3_g40, q8_g24, q5_g15, q5_g17, q5_g31, scattered, far_k, wide_k, k4_96, s1_g96, u2_g160>>::type;

/// 16 weights of three bits whose sums do not fit in 16 bits.
struct far_3 { static constexpr format_spec spec = [] { auto s = spec_of<q3_k>; return s.name = "far_3", s.gguf = -1, s.codes.zero = 40, s; }(); };
static_assert(kernel::layout_for<q3_k>::value.shape.step == kernel::stepping::half_slabs && kernel::layout_for<far_3>::value.shape.step == kernel::stepping::steps);
template <class F> constexpr bool scaled = kernel::layout_for<F>::value.scaled_levels;
static_assert(scaled<q2_k> && scaled<q3_k> && scaled<q4_k> && scaled<q5_k> && scaled<q6_k> && scaled<iq4_xs> && !scaled<far_k> && !scaled<wide_k>);

using backwards = backwards_executor<5>;
}  // namespace

TEST_CASE("panels hold the weights of their blocks, bit for bit") {
  serial_executor serial;
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    for (const format_spec* s : formats::specs) {
      CAPTURE(std::string(s->name));
      for (const std::size_t cols : {std::size_t{1}, std::size_t{300}, std::size_t{2} * s->block}) {
        const packed_matrix w = test::random_blocks(*s, 19, cols, 3);
        const panel_matrix panels = panel_matrix::from(w.view(), serial, *u.kernels);
        std::vector<float> expected(19 * cols), row(cols);
        decode(w.view(), {expected.data(), 19, cols});
        for (std::size_t r = 0; r < 19; ++r) {
          read_row(panels, r, row.data());
          REQUIRE(std::memcmp(row.data(), &expected[r * cols], cols * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("integer products have the defined bits on every instruction set, for every shape and split") {
  backwards wide;
  workspace space;
  for (const format_spec* s : formats::specs) {
    const auto shape = kernel::layout_of(*s).shape;
    if (!shape.has_int8()) continue;
    CAPTURE(std::string(s->name));
    for (const std::size_t rows : {1u, 16u, 35u, 64u})
      for (const std::size_t cols : {1u, 100u, 512u, 531u})
        for (const std::size_t tokens : {1u, 2u, 13u}) {
          if (rows * cols * tokens > 64 * 531 * 2) continue;  // the reference is slow
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(tokens);
          const packed_matrix w = test::random_blocks(*s, rows, cols, 5);
          const auto x = test::random_activations(tokens * cols, 9);
          const int fine = test::defined_int16_levels(*s);
          CHECK(shape.has_int16() == (fine != 0));
          std::vector<float> expected(tokens * rows), finer(tokens * rows);
          for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t r = 0; r < rows; ++r) {
              expected[t * rows + r] = test::defined_product(w, r, &x[t * cols]);
              if (fine != 0) finer[t * rows + r] = test::defined_product(w, r, &x[t * cols], fine);
            }
          for (const auto& u : kernel::linked_units()) {
            if (!u.available) continue;
            CAPTURE(std::string(u.name));
            const panel_matrix panels = panel_matrix::from(w.view(), wide, *u.kernels);
            const std::size_t stride = rows + 3;
            if (fine == 0) multiply({x.data(), tokens, cols}, panels, {finer.data(), tokens, rows}, space, wide, precision::exact);
            for (const auto& [how, values] : {std::pair{precision::int8, &expected}, {precision::int16, &finer}, {precision::automatic, fine != 0 ? &finer : &expected}}) {
              std::vector<float> y(tokens * stride, -7.0f);
              multiply({x.data(), tokens, cols}, panels, matrix_view<float>(y.data(), tokens, rows, stride), space, wide, how);
              for (std::size_t t = 0; t < tokens; ++t) {
                REQUIRE(std::memcmp(&y[t * stride], &(*values)[t * rows], rows * sizeof(float)) == 0);
                for (std::size_t r = rows; r < stride; ++r) REQUIRE(y[t * stride + r] == -7.0f);
              }
            }
          }
        }
  }
}

TEST_CASE("a product of many tokens has the bits of each token's own, on every instruction set") {
  serial_executor serial;
  workspace space;
  using long_formats = detail::concat<formats, format_list<far_zero, far_zero_8, s4_g96, s4_g2560, u8_g2080, u4_g2080, k4_1024>>::type;
  for (const format_spec* s : long_formats::specs) {
    const auto shape = kernel::layout_of(*s).shape;
    if (!shape.has_int8()) continue;
    CAPTURE(std::string(s->name));
    const std::size_t rows = 19, cols = s->block > 1000 ? s->block + 1300 : 531, tokens = s->block > 1000 ? 35 : 150;
    packed_matrix w = test::random_blocks(*s, rows, cols, 5);
    if (s->zero_point.present()) {  // among the codes, as quantisers put them, in every second block
      for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t b = 0; b < s->row_blocks(cols); b += 2) {
          std::uint8_t* const block = w.row(r) + b * s->bytes;
          s->zero_point.set_raw(block, 0, s->zero_point.raw(block, 0) % s->levels());
        }
    }
    const auto x = test::random_activations(tokens * cols, 9);
    for (const precision how : {precision::int8, precision::int16}) {
      if (how == precision::int16 && !shape.has_int16()) continue;
      std::vector<float> expected(tokens * rows), y(tokens * rows);
      const panel_matrix first = panel_matrix::from(w.view(), serial, *kernel::linked_units()[0].kernels);
      for (std::size_t t = 0; t < tokens; ++t) multiply({&x[t * cols], 1, cols}, first, {&expected[t * rows], 1, rows}, space, serial, how);
      for (const auto& u : kernel::linked_units()) {
        if (!u.available) continue;
        CAPTURE(std::string(u.name));
        const panel_matrix panels = panel_matrix::from(w.view(), serial, *u.kernels);
        for (const std::size_t some : {tokens, std::size_t{5}, std::size_t{12}, std::size_t{31}, std::size_t{32}}) {
          CAPTURE(some);
          multiply({x.data(), some, cols}, panels, {y.data(), some, rows}, space, serial, how);
          REQUIRE(std::memcmp(y.data(), expected.data(), some * rows * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("products of bfloat16 agree with float64 of the rounded activations, or are exact where there are none") {
  serial_executor serial;
  workspace space;
  for (const format_spec* s : {&spec_of<bfloat16>, &spec_of<q4_0>})
    for (const std::size_t cols : {1u, 2u, 31u, 777u})
      for (const std::size_t tokens : {1u, 3u, 7u, 16u, 35u, 97u, 114u}) {
        constexpr std::size_t rows = 37;
        const packed_matrix w = test::random_blocks(*s, rows, cols, 5);
        auto x = test::random_activations(tokens * cols, 9);
        std::vector<float> weights(rows * cols), y(tokens * rows), exact(tokens * rows);
        decode(w.view(), {weights.data(), rows, cols});
        for (const auto& u : kernel::linked_units()) {
          if (!u.available) continue;
          CAPTURE(std::string(u.name));
          const panel_matrix panels = panel_matrix::from(w.view(), serial, *u.kernels);
          multiply({x.data(), tokens, cols}, panels, {y.data(), tokens, rows}, space, serial, precision::bf16);
          if (activations_for(panels, precision::bf16) == kernel::activation_kind::floats) {
            multiply({x.data(), tokens, cols}, panels, {exact.data(), tokens, rows}, space, serial, precision::exact);
            REQUIRE(std::memcmp(y.data(), exact.data(), y.size() * sizeof(float)) == 0);
            continue;
          }
          for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t r = 0; r < rows; ++r) {
              double sum = 0, terms = 0;
              for (std::size_t c = 0; c < cols; ++c) {
                const double xc = to_float(to_bf16(x[t * cols + c])), wc = weights[r * cols + c];
                sum += wc * xc;
                terms += std::fabs(wc * xc);
              }
              REQUIRE(std::fabs(sum - y[t * rows + r]) <= (static_cast<double>(cols) + 8) * 0x1p-24 * terms);
            }
        }
      }
}

TEST_CASE("an epilogue may multiply, in the same registers") {
  serial_executor serial;
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    constexpr std::size_t rows = 48, cols = 256, tokens = 16;
    const panel_matrix w = panel_matrix::from(test::random_blocks(spec_of<symmetric<4, 128>>, rows, cols, 5).view(), serial, *u.kernels);
    const auto x = test::random_activations(tokens * cols, 9);
    std::vector<float> expected(tokens * rows), y(tokens * rows), inner(tokens * rows);
    workspace space, own;
    multiply({x.data(), tokens, cols}, w, {expected.data(), tokens, rows}, space, serial);
    std::size_t calls = 0;
    const auto again = [&](float*, std::size_t, std::size_t token, std::size_t) noexcept {
      if (token == 0) multiply({x.data(), tokens, cols}, w, {inner.data(), tokens, rows}, own, serial);
      calls += 1;
    };
    multiply({x.data(), tokens, cols}, w, {y.data(), tokens, rows}, space, serial, precision::int8, again);
    CHECK(calls != 0);
    CHECK(y == expected);
    CHECK(inner == expected);
  }
}

TEST_CASE("a token's NaN stays its own in products of bfloat16") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t rows = 16, cols = 70, tokens = 20;
  const packed_matrix w = test::random_blocks(spec_of<bfloat16>, rows, cols, 5);
  auto x = test::random_activations(tokens * cols, 9);
  for (std::size_t c = 0; c < cols; ++c) x[3 * cols + c] = std::numeric_limits<float>::quiet_NaN();
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    std::vector<float> y(tokens * rows);
    multiply({x.data(), tokens, cols}, panel_matrix::from(w.view(), serial, *u.kernels), {y.data(), tokens, rows}, space, serial, precision::bf16);
    for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(std::isnan(y[i]) == (i / rows == 3));
  }
}

TEST_CASE("16-bit activations err like so many bits of a block's largest, not like 8") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t rows = 32, cols = 512, tokens = 5;
  for (const format_spec* s : formats::specs) {
    const int levels = test::defined_int16_levels(*s);
    if (levels == 0) continue;
    REQUIRE(levels >= 2047);  // 12 bits, of the formats here
    CAPTURE(std::string(s->name));
    const packed_matrix w = test::random_blocks(*s, rows, cols, 5);
    auto x = test::random_activations(tokens * cols, 9);
    for (std::size_t t = 0; t < tokens; ++t) x[t * cols + 77 * t] *= 30.0f;  // beside an outlier, 8 bits are few
    std::vector<float> weights(rows * cols), y(tokens * rows);
    decode(w.view(), {weights.data(), rows, cols});
    multiply({x.data(), tokens, cols}, panel_matrix::from(w.view(), serial), {y.data(), tokens, rows}, space, precision::int16);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        double sum = 0, allowed = 0;
        for (std::size_t begin = 0; begin < cols; begin += s->block) {
          const std::size_t end = std::min<std::size_t>(begin + s->block, cols);
          double largest = 0, magnitude = 0;
          for (std::size_t c = begin; c < end; ++c) {
            const double xc = x[t * cols + c], wc = weights[r * cols + c];
            sum += wc * xc;
            largest = std::max(largest, std::fabs(xc));
            magnitude += std::fabs(wc) + (s->minimum.present() ? 2 * std::fabs(affine_of(*s, w.row(r) + c / s->block * s->bytes, c % s->block / s->sub_block()).offset) : 0.0);
          }
          allowed += magnitude * largest * (0.5 / levels + 24 * 0x1p-24);  // half a step, and float32's own rounding of sums
        }
        REQUIRE(std::fabs(sum - y[t * rows + r]) <= allowed);
      }
  }
}

namespace {
/// An exact product on every unit against float64.
void check_exact(const format_spec& s, std::size_t rows, std::size_t cols, std::size_t tokens) {
  CAPTURE(std::string(s.name));
  CAPTURE(tokens);
  serial_executor serial;
  workspace space;
  const packed_matrix w = test::random_blocks(s, rows, cols, 5);
  const auto x = test::random_activations(tokens * cols, 9);
  std::vector<float> weights(rows * cols), y(tokens * rows);
  decode(w.view(), {weights.data(), rows, cols});
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    multiply({x.data(), tokens, cols}, panel_matrix::from(w.view(), serial, *u.kernels), {y.data(), tokens, rows}, space, precision::exact);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        double sum = 0, terms = 0;  // terms: the magnitudes that were added: scale and minimum apart, codes and zero-points apart
        for (std::size_t c = 0; c < cols; ++c) {
          const std::uint8_t* const block = w.row(r) + c / s.block * s.bytes;
          const double xc = x[t * cols + c], wc = weights[r * cols + c];
          const affine a = affine_of(s, block, c % s.block / s.sub_block());
          sum += wc * xc;
          // Codes of 8 bits are bytes around 0; those of fewer bits are unsigned.
          const int bits = static_cast<int>(s.codes.bits()), stored = s.codes.zero + zero_point_of(s, block);
          const int zero = s.values.present() || s.is_float() ? 0 : bits == 8 ? (s.codes.is_signed ? 0 : stored - 128) : s.codes.is_signed ? 1 << (bits - 1) : stored;
          terms += (std::fabs(wc) + (s.minimum.present() ? 2 * std::fabs(a.offset) : 0.0) + 2 * std::fabs(static_cast<double>(a.scale) * zero)) * std::fabs(xc);
        }
        // A float32 sum of n terms errs by at most n * 2^-24 of their magnitudes; rounding of the terms adds a few.
        REQUIRE(std::fabs(sum - y[t * rows + r]) <= (static_cast<double>(cols) + 8) * 0x1p-24 * terms);
      }
  }
}
}  // namespace

TEST_CASE("exact products agree with float64 to the rounding of their sums") {
  for (const format_spec* s : formats::specs)
    for (const std::size_t rows : {17u, 32u})
      for (const std::size_t cols : {1u, 100u, 777u})
        for (const std::size_t tokens : {1u, 7u}) check_exact(*s, rows, cols, tokens);
}

TEST_CASE("exact products of tokens that share what is decoded: several tiles, several portions, last ones that are not whole") {
  for (const format_spec* const s : {&spec_of<f32>, &spec_of<float16>, &spec_of<q4_1>, &spec_of<q2_k>, &spec_of<iq4_xs>, &spec_of<nvfp4>, &spec_of<nf4>,
                                     &spec_of<symmetric<3, 40>>, &spec_of<asymmetric<8, 128>>})
    for (const std::size_t tokens : {2u, 10u, 101u}) check_exact(*s, 35, 531, tokens);
}

TEST_CASE("large results that begin with a line, which are written past the caches, are those that do not") {
  backwards wide;
  workspace space;
  constexpr std::size_t rows = 4100, stride = 4112, cols = 64, tokens = 260;
  aligned_buffer memory(tokens * stride * sizeof(float));
  const matrix_view<float> lines(reinterpret_cast<float*>(memory.data()), tokens, rows, stride);
  std::vector<float> elsewhere(tokens * rows + 1);
  // One float beyond whatever alignment a vector's memory has: never a line's.
  const matrix_view<float> apart(elsewhere.data() + 1, tokens, rows);
  CHECK(goes_past_caches(lines, results_past_caches));
  CHECK(!goes_past_caches(apart, results_past_caches));
  CHECK(!goes_past_caches(lines.middle_rows(0, 100), results_past_caches));
  const auto x = test::random_activations(tokens * cols, 9);
  for (const format_spec* const s : {&spec_of<q4_0>, &spec_of<bfloat16>, &spec_of<f32>}) {
    CAPTURE(std::string(s->name));
    const packed_matrix w = test::random_blocks(*s, rows, cols, 5);
    for (const auto& u : kernel::linked_units()) {
      if (!u.available) continue;
      CAPTURE(std::string(u.name));
      const panel_matrix panels = panel_matrix::from(w.view(), wide, *u.kernels);
      for (const precision how : {precision::int8, precision::bf16, precision::exact}) {
        std::memset(memory.data(), 0x55, memory.size());
        multiply({x.data(), tokens, cols}, panels, lines, space, wide, how);
        multiply({x.data(), tokens, cols}, panels, apart, space, wide, how);
        for (std::size_t t = 0; t < tokens; ++t) {
          REQUIRE(std::memcmp(lines.row(t), apart.row(t), rows * sizeof(float)) == 0);
          for (std::size_t r = rows; r < stride; ++r) REQUIRE(std::bit_cast<std::uint32_t>(lines.data[t * stride + r]) == 0x5555'5555u);
        }
      }
    }
  }
}

TEST_CASE("empty products are no work and touch nothing") {
  serial_executor serial;
  workspace space;
  const packed_matrix none(spec_of<q4_0>, 0, 64), thin(spec_of<q4_0>, 16, 0);
  const panel_matrix no_rows = panel_matrix::from(none.view(), serial);
  const panel_matrix no_cols = panel_matrix::from(thin.view(), serial);
  std::vector<float> x(64, 1.0f), y(16, 5.0f);
  multiply({x.data(), 1, 64}, no_rows, {y.data(), 1, 0}, space);
  multiply({x.data(), 0, 64}, no_rows, {y.data(), 0, 0}, space);
  CHECK(y == std::vector<float>(16, 5.0f));
  multiply({x.data(), 1, 0}, no_cols, {y.data(), 1, 16}, space);  // a sum of nothing
  CHECK(y == std::vector<float>(16, 0.0f));
  for (const format_spec* const s : {&spec_of<q4_k>, &spec_of<nf4>, &spec_of<asymmetric<8, 128>>, &spec_of<bfloat16>})
    for (const auto& u : kernel::linked_units()) {
      if (!u.available) continue;
      std::vector<float> many(35 * 16, 5.0f);
      multiply({x.data(), 35, 0}, panel_matrix::from(packed_matrix(*s, 16, 0).view(), serial, *u.kernels), {many.data(), 35, 16}, space);
      CHECK(many == std::vector<float>(35 * 16, 0.0f));
    }
}

TEST_CASE("a zero or huge activation row stays finite where the mathematics is") {
  serial_executor serial;
  workspace space;
  for (const format_spec* const s : {&spec_of<q4_k>, &spec_of<q4_0>, &spec_of<q6_k>, &spec_of<q8_0>, &spec_of<asymmetric<4, 128>>, &spec_of<asymmetric<8, 64>>, &spec_of<nf4>})
    for (const precision how : {precision::int8, precision::int16, precision::exact}) {
      CAPTURE(std::string(s->name));
      CAPTURE(static_cast<int>(how));
      const packed_matrix w = test::random_blocks(*s, 16, 256, 1);
      const panel_matrix panels = panel_matrix::from(w.view(), serial);
      std::vector<float> x(256, 0.0f), y(16, 1.0f);
      const auto run = [&] { multiply({x.data(), 1, 256}, panels, {y.data(), 1, 16}, space, serial, how); };
      run();
      for (const float v : y) CHECK(v == 0.0f);
      std::fill(x.begin(), x.end(), 1e-42f);  // subnormal: 127 / max overflows to infinity unless guarded
      run();
      for (const float v : y) CHECK(std::isfinite(v));
      for (const float bad : {std::nanf(""), INFINITY, -INFINITY})
        for (const std::size_t at : {0u, 77u, 255u}) {
          std::fill(x.begin(), x.end(), 1.0f);
          x[at] = bad;
          if (at == 77) x[at + 1] = bad;
          run();
          for (const float v : y) CHECK(!std::isfinite(v));  // not silently a number
        }
    }
}
