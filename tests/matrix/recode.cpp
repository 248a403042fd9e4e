// The same values in other formats, and matrices whose columns are in another order or share a factor.
#include "../kernel/random_weights.hpp"

#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/product.hpp>
#include <lowbit/matrix/recode.hpp>

#include <doctest/doctest.h>

#include <numeric>

using namespace lowbit;

namespace {
std::vector<float> values_of(packed_view w) {
  std::vector<float> v(w.rows * w.cols);
  decode(w, {v.data(), w.rows, w.cols});
  return v;
}
serial_executor serial;

// Zero-points within the codes' range, and finite scales in what is not planes: tq1_0's is its last two bytes, iq2_xs's the first.
void make_sensible(packed_matrix& w) {
  const format_spec& s = w.spec();
  for (std::size_t r = 0; r < w.rows(); ++r)
    for (std::size_t b = 0; b < s.row_blocks(w.cols()); ++b) {
      std::uint8_t* const block = w.row(r) + b * s.bytes;
      if (s.zero_point.present()) s.zero_point.set_raw(block, 0, s.zero_point.raw(block, 0) % s.levels());
      if (s.is_recoded()) block[s.name == "tq1_0" ? 53 : 1] &= 0xbf;
    }
}
}  // namespace

TEST_CASE("what another format can hold is carried over exactly, and nothing else is") {
  struct { const char *from, *to; bool exact, kept; } const cases[] = {
      {"s4_g128", "q4_0", true, true},    // the same codes, scales repeated
      {"s8_g128", "q8_0", true, true},    // unsigned about 128, and two's complement
      {"s4_g128", "u4_g64", true, true},  // a constant zero-point is a stored one
      {"u4_g128", "q5_0", true, false},   // code - zero is between -15 and 15
      {"u3_g64", "q4_0", true, false},    // between -7 and 7
      {"s3_g32", "q4_0", true, false},
      {"s2_g128", "q4_1", true, false},   // the minimum is -2 scales: no rounding
      {"u4_g128", "q4_0", false, false},
      {"u8_g128", "q8_0", false, false},
      {"s4_g32", "s4_g128", false, false},  // scales differ within the larger group
      {"q4_0", "s4_g32", true, true},
      {"q8_0", "s8_g32", true, true},
      {"nf4", "q4_0", false, false},
      {"nf4", "f32", true, false},
      {"q6_k", "f32", true, false},
      {"q4_k", "q4_0", false, false},
      {"s4_g128", "s4_g128", true, true},
      {"mxfp4", "mxfp4", true, true},
      {"s1_g64", "q1_0", false, false},   // two scales in a block of 128
      {"s1_g128", "q1_0", true, true},
      {"bf16", "f32", true, false},
      {"f32", "q8_0", false, false},
      {"tq1_0", "tq2_0", true, true},     // digits of base 3, and two bits
      {"tq1_0", "s2_g128", true, true},
      {"tq1_0", "tq1_0", true, true},
      {"tq2_0", "tq1_0", false, false},   // only from itself
      {"iq2_xs", "iq2_xs", true, true},
      {"iq2_xs", "f32", true, false},
      {"iq2_xs", "q4_0", false, false},
  };
  for (const auto& c : cases) {
    CAPTURE(std::string(c.from));
    CAPTURE(std::string(c.to));
    packed_matrix w = test::random_blocks(spec_of_id(*find_format(c.from)), 5, 256, 3);
    make_sensible(w);
    const auto out = recode(w.view(), spec_of_id(*find_format(c.to)), serial);
    REQUIRE(out.has_value() == c.exact);
    if (!out) continue;
    CHECK(out->codes_kept == c.kept);
    CHECK(values_of(out->weights.view()) == values_of(w.view()));
  }
}

TEST_CASE("scales that f16 has not, and groups that are too long to run, are brought to a form that runs with the same values") {
  for (const auto& [bits, group, scale] : {std::tuple{4u, 64u, number::bf16}, {8u, 1000u, number::f32}, {3u, 1000u, number::f16}, {5u, 320u, number::bf16}, {8u, 40u, number::f32}})
    for (const bool symmetric : {true, false}) {
      packed_matrix w = test::random_blocks(uniform_format(bits, group, symmetric, scale), 20, 1000, 6);
      make_sensible(w);
      const auto same = runnable(w.view(), serial);
      REQUIRE(same);
      CHECK(values_of(same->view()) == values_of(w.view()));
      CHECK(!runnable(same->view(), serial));
      CHECK(same->spec().block <= (group == 1000 ? 128u : group));
    }
  // Scales that no f16 times a power of two is: floats.
  packed_matrix w(uniform_format(4, 32, true, number::f32), 1, 64);
  const float scales[2] = {1.0f / 3.0f, 0.1f};
  for (std::size_t b = 0; b < 2; ++b) std::memcpy(w.row(0) + b * w.spec().bytes, scales + b, 4);
  const auto same = runnable(w.view(), serial);
  REQUIRE(same);
  CHECK(same->spec().is_float());
  CHECK(values_of(same->view()) == values_of(w.view()));
}

TEST_CASE("products, rows and floats of a matrix with its columns in another order and a factor") {
  const std::size_t rows = 40, cols = 192, tokens = 7;
  std::mt19937 random(2);
  for (const char* format : {"s4_g32", "q4_k", "nf4", "f32", "u8_g64"}) {
    CAPTURE(std::string(format));
    const std::size_t k = std::string(format) == "q4_k" ? 256 : cols;
    packed_matrix w = test::random_blocks(spec_of_id(*find_format(format)), rows, k, 4);
    std::vector<std::uint32_t> inputs(k);
    std::iota(inputs.begin(), inputs.end(), 0u);
    std::shuffle(inputs.begin(), inputs.end(), random);
    const std::vector<float> stored = values_of(w.view()), x = test::random_activations(tokens * k, 9);
    std::vector<float> ordered(x.size());
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t c = 0; c < k; ++c) ordered[t * k + c] = x[t * k + inputs[c]];
    const panel_matrix plain = panel_matrix::from(w.view(), serial);
    w.set_inputs(inputs);
    w.set_factor(0.37);
    const panel_matrix panels = panel_matrix::from(w.view(), serial);

    std::vector<float> whole = values_of(w.view()), row(k), fast(rows * k);
    dequantise(w.view(), {fast.data(), rows, k}, serial);
    CHECK(fast == whole);
    for (std::size_t r = 0; r < rows; ++r) {
      read_row(panels, r, row.data());
      for (std::size_t c = 0; c < k; ++c) {
        REQUIRE(whole[r * k + inputs[c]] == stored[r * k + c] * 0.37f);
        REQUIRE(row[c] == whole[r * k + c]);
      }
    }
    workspace space;
    for (const precision how : {precision::int8, precision::exact}) {
      std::vector<float> expected(tokens * rows), y(tokens * rows), gated(tokens * rows), gated_expected(tokens * rows);
      multiply({ordered.data(), tokens, k}, plain, {expected.data(), tokens, rows}, space, how);
      multiply({x.data(), tokens, k}, panels, {y.data(), tokens, rows}, space, how);
      for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == expected[i] * 0.37f);
      // Some tokens of a list, and a gate that has its columns in their own order.
      const std::uint32_t from[] = {5, 1, 2};
      const product one{{x.data(), tokens, k}, &panels, {gated.data(), 3, rows}, nullptr, token_list(from), {}};
      multiply(std::span(&one, 1), space, serial, how);
      for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t r = 0; r < rows; ++r) REQUIRE(gated[i * rows + r] == y[from[i] * rows + r]);
      const product both{{x.data(), tokens, k}, &panels, {gated.data(), tokens, rows}, &plain, {}, {}};
      multiply(std::span(&both, 1), space, serial, how);
      multiply({x.data(), tokens, k}, plain, {gated_expected.data(), tokens, rows}, space, how);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const double g = static_cast<double>(gated_expected[i]), silu = g / (1.0 + std::exp(-g)) * static_cast<double>(y[i]);
        REQUIRE(static_cast<double>(gated[i]) == doctest::Approx(silu).epsilon(1e-4));
      }
    }
  }
}
