// Rows by the kernels of every linked unit: the bytes of one block at a time, whatever the number of rows and columns.
#include <lowbit/glue/eigen.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "../executors.hpp"
#include "hard_weights.hpp"

using namespace lowbit;

namespace {
/// The fits' block-by-block path: what rows must equal.
template <class Fit>
struct block_by_block {
  using needs = typename Fit::needs;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    return Fit::fit(s, x, n, about, f);
  }
};
// What the library's lists do not have: odd groups, one larger than what is packed at once, minima, scales of other types.
struct u4_g24 { static constexpr format_spec spec = uniform({.bits = 4, .group = 24}); };
struct s3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40, .symmetric = true}); };
struct u2_g20 { static constexpr format_spec spec = uniform({.bits = 2, .group = 20, .scale = number::f32}); };
struct s8_g2504 { static constexpr format_spec spec = uniform({.bits = 8, .group = 2504, .symmetric = true, .scale = number::bf16}); };
struct m4_g32 {
  static constexpr format_spec spec{.name = "m4_g32", .block = 32, .bytes = 22, .codes = {{plane{4, 0, byte(0), {{32}, {4}}}}},
                                    .scale = {number::f32, 16}, .minimum = {number::bf16, 20}};
};
struct z4_g32 {  // a zero-point that is nowhere near the start of a byte
  static constexpr format_spec spec{.name = "z4_g32", .block = 32, .bytes = 20, .codes = {{plane{4, 0, byte(0), {{32}, {4}}}}}, .scale = {number::f16, 18},
                                    .zero_point = {{plane{4, 0, byte(16) + 5, {{1}, {8}}}}}, .unused_bits = 12};
};
struct z6_g32 {  // one in two parts
  static constexpr format_spec spec{.name = "z6_g32", .block = 32, .bytes = 27, .codes = {{plane{6, 0, byte(0), {{32}, {6}}}}}, .scale = {number::f16, 25},
                                    .zero_point = {{plane{4, 0, byte(24) + 1, {{1}, {8}}}, plane{2, 4, byte(24) + 6, {{1}, {8}}}}}, .unused_bits = 2};
};
struct e4_g32 {  // a scale that has no sign
  static constexpr format_spec spec{.name = "e4_g32", .block = 32, .bytes = 17, .codes = {{plane{4, 0, byte(0), {{32}, {4}}}}, 8}, .scale = {number::e8m0_half, 16}};
};
struct t2_g64 {  // a codebook of four
  static constexpr format_spec spec{.name = "t2_g64", .block = 64, .bytes = 18, .codes = {{plane{2, 0, byte(2), {{64}, {2}}}}}, .scale = {number::bf16, 0},
                                    .values = make_codebook(4, {-3, -1, 1, 4})};
};
struct i3_g32 {  // signed codes of fewer than eight bits
  static constexpr format_spec spec{.name = "i3_g32", .block = 32, .bytes = 14, .codes = {{plane{3, 0, byte(0), {{32}, {3}}}}, 0, true}, .scale = {number::f16, 12}};
};
template <int Zero>
struct far_g32 {  // levels far from zero
  static constexpr format_spec spec{.name = "far_g32", .block = 32, .bytes = 20, .codes = {{plane{4, 0, byte(0), {{32}, {4}}}}, Zero}, .scale = {number::f32, 16}};
};
struct n6_g32 {  // nibbles, and two bits more elsewhere
  static constexpr format_spec spec{.name = "n6_g32", .block = 32, .bytes = 26,
                                    .codes = {{plane{4, 0, byte(0), {{32}, {4}}}, plane{2, 4, byte(16), {{32}, {2}}}}, 32}, .scale = {number::f16, 24}};
};
struct b8_g16 {  // bytes that begin within one
  static constexpr format_spec spec{.name = "b8_g16", .block = 16, .bytes = 21, .codes = {{plane{8, 0, 34, {{16}, {8}}}}, 128}, .scale = {number::f16, 0},
                                    .unused_bits = 24};
};
struct t4_g32 {  // a codebook of sixteen, one value twice, in no order
  static constexpr format_spec spec{.name = "t4_g32", .block = 32, .bytes = 18, .codes = {{plane{4, 0, byte(0), {{32}, {4}}}}}, .scale = {number::f16, 16},
                                    .values = make_codebook(16, {0, 3, -1, 7, 2, -2, -4, 5, 1, 4, -3, -8, 6, -6, 3, -5})};
};
struct like_q5_1 {  // q5_1's bits, but not ggml's way of choosing them
  static constexpr format_spec spec = [] {
    format_spec s = q5_1::spec;
    s.gguf = -1;
    return s;
  }();
};
using by_range = detail::concat<all_formats, format_list<u4_g24, s3_g40, u2_g20, s8_g2504, m4_g32, z4_g32, z6_g32, e4_g32, t2_g64, i3_g32, far_g32<40000>, far_g32<-40000>, far_g32<16384>, n6_g32, b8_g16,
                                                      t4_g32, like_q5_1>>::type;
using two_threads = backwards_executor<2>;
bool same(const packed_matrix& a, const packed_matrix& b) { return std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end()); }
}  // namespace

TEST_CASE("every unit's rows are the blocks' bytes, with importance and without") {
  std::size_t compared = 0;
  for (const std::size_t cols : {std::size_t{2048}, std::size_t{608}, std::size_t{40}}) {
    const std::size_t rows = cols == 2048 ? 3 : 13;
    const auto x = hard_weights(round_up(rows * cols, 256), static_cast<std::uint32_t>(cols)), importance = hard_importance(cols, 5);
    const matrix_view<const float> w(x.data(), rows, cols);
    for_each_format(gguf_formats{}, [&]<class F>() {
      constexpr const format_spec& s = spec_of<F>;
      for (const bool with : {false, true}) {
        if (!kernel::can_quantise_as_ggml(s, with)) continue;
        CAPTURE(std::string(s.name));
        CAPTURE(with);
        CAPTURE(cols);
        const auto expected = with ? *quantiser<F, block_by_block<importance_weighted>>::quantise(w, given_importance(importance))
                                   : *quantiser<F, block_by_block<standard>>::quantise(w);
        for (const auto& u : kernel::linked_units()) {
          if (!u.available) continue;
          packed_matrix out(s, rows, cols);
          const kernel::quantise_args all{&s, x.data(), cols, cols, 0, rows, with ? importance.data() : nullptr, out.bytes().data(), true};
          CHECK(u.kernels->quantise_rows(all));
          CHECK_MESSAGE(same(out, expected.weights), std::string(u.name));
          ++compared;
        }
      }
    });
  }
  CHECK(compared >= 3 * 18);
}

TEST_CASE("every unit's rows by range are the blocks' bytes") {
  std::size_t compared = 0;
  for (const std::size_t cols : {std::size_t{5200}, std::size_t{608}, std::size_t{41}, std::size_t{3}}) {
    const std::size_t rows = cols > 5000 ? 2 : 5, stride = cols + 3;
    const auto x = hard_weights(round_up(rows * stride, 256), static_cast<std::uint32_t>(cols));
    const matrix_view<const float> w(x.data(), rows, cols, stride);
    for_each_format(by_range{}, [&]<class F>() {
      constexpr const format_spec& s = spec_of<F>;
      if (!kernel::can_quantise_by_range(s)) return;
      CAPTURE(std::string(s.name));
      CAPTURE(cols);
      const auto expected = *quantiser<F, block_by_block<minmax>>::quantise(w);
      CHECK(same(quantiser<F, minmax>::quantise(w, uncalibrated(), two_threads())->weights, expected.weights));
      for (const auto& u : kernel::linked_units()) {
        if (!u.available) continue;
        packed_matrix out(s, rows, cols);
        std::memset(out.bytes().data(), 0xa5, out.bytes().size());
        CHECK(u.kernels->quantise_rows({&s, x.data(), stride, cols, 0, rows, nullptr, out.bytes().data(), false}));
        CHECK_MESSAGE(same(out, expected.weights), std::string(u.name));
        ++compared;
      }
    });
  }
  CHECK(compared >= 4 * 60);
}

TEST_CASE("a row whose mean square overflows keeps its ordinary blocks, with importance too") {
  std::vector<float> x(64);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = (static_cast<float>(i) - 15.5f) / 16;
  x[40] = 1e30f;
  const std::vector<float> importance(x.size(), 1.0f);
  const matrix_view<const float> w(x.data(), 1, x.size());
  for_each_format(format_list<q4_0, q4_1, q5_0, q5_1>{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const auto check = [&](const packed_matrix& q) {
      std::vector<float> out(x.size());
      decode(q.view(), matrix_view<float>(out.data(), 1, out.size()));
      for (std::size_t i = 0; i < 32; ++i) CHECK(std::fabs(out[i] - x[i]) < 0.14f);  // a step of four bits
    };
    check(quantiser<F, importance_weighted>::quantise(w, given_importance(importance))->weights);
    check(quantiser<F, block_by_block<importance_weighted>>::quantise(w, given_importance(importance))->weights);
  });
}

TEST_CASE("of equal extremes ggml takes the first, and the sign of the first zero that is the least") {
  const auto check = [&]<class F>(std::vector<float> x, auto scale_bits, auto minimum_bits) {
    x.resize(64, 0.125f);  // the second block tells rows from their neighbours
    const auto q = rtn<F>::quantise(matrix_view<const float>(x.data(), 1, x.size()));
    block_parts<F> p;
    ggml_quantise_block<F>(x.data(), p);
    CHECK(p.scale == scale_bits);
    CHECK(p.minimum == minimum_bits);
    read_block<F>(q->weights.row(0), p);
    CHECK(p.scale == scale_bits);
    CHECK(p.minimum == minimum_bits);
  };
  std::vector<float> x(32, 0.5f);
  x[3] = 8;
  x[9] = -8;
  check.template operator()<q4_0>(x, to_f16(-1.0f).bits, 0);
  check.template operator()<q5_0>(x, to_f16(-0.5f).bits, 0);
  std::swap(x[3], x[9]);
  check.template operator()<q4_0>(x, to_f16(1.0f).bits, 0);
  check.template operator()<q8_0>(x, to_f16(8.0f / 127).bits, 0);
  std::fill(x.begin(), x.end(), 0.5f);
  x[0] = 15;
  x[7] = -0.0f;
  x[8] = 0.0f;
  check.template operator()<q4_1>(x, to_f16(1.0f).bits, 0x8000);
  std::swap(x[7], x[8]);
  check.template operator()<q4_1>(x, to_f16(1.0f).bits, 0);
  std::fill(x.begin(), x.end(), 0.0f);
  check.template operator()<q4_0>(x, 0x8000, 0);  // 0 / -8
  check.template operator()<q8_0>(x, 0, 0);
}

TEST_CASE("weights near the largest floats have ggml's bytes") {
  // ggml's definitions, a weight at a time.
  const auto scan = [](float d, float x) {
    constexpr float values[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};
    int best = 0;
    for (int c = 1; c < 16; ++c)
      if (std::fabs(values[c] * d - x) < std::fabs(values[best] * d - x)) best = c;
    return best;
  };
  const auto check = [&]<class F>(std::vector<float> x, auto&& code_of) {
    x.resize(round_up(x.size(), spec_of<F>.block), 1.0f);
    const auto q = rtn<F>::quantise(matrix_view<const float>(x.data(), 1, x.size()));
    block_parts<F> one, row;
    ggml_quantise_block<F>(x.data(), one);
    read_block<F>(q->weights.row(0), row);
    for (std::size_t i = 0; i < spec_of<F>.block; ++i) {
      CHECK(static_cast<int>(one.codes[i]) == code_of(x[i], i));
      CHECK(static_cast<int>(row.codes[i]) == code_of(x[i], i));
    }
  };
  const float most = std::numeric_limits<float>::max();
  std::vector<float> x{1.0f, 3e10f, -3e10f, 0x1.000a6cp+34f, 1e11f, -1e12f, 1e5f, 2500, -2400, 700, 3e3f, 0, 4e4f, -5e4f, 1e6f, 1e9f};
  check.template operator()<nvfp4>(x, [&](float v, std::size_t i) { return scan(i < 16 ? 224.0f : e4m3_half_to_float(to_e4m3(1.0f / 6.0f)), v); });
  check.template operator()<mxfp4>({most, -most, most / 2, most / 3, 1e38f, -2e38f, 1.0f, 0x1p126f}, [&](float v, std::size_t) { return scan(0x1p125f, v); });
  // The range overflows: its inverse is 0, infinity times that a NaN, and the integer of that ends in zeros.
  check.template operator()<q4_1>({3e38f, -3e38f, 1e38f, -1e38f}, [](float, std::size_t) { return 0; });
  check.template operator()<q5_1>({3e38f, -3e38f, 1e38f, -1e38f}, [](float, std::size_t) { return 0; });
}

TEST_CASE("a scale without a sign serves blocks of either") {
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> x(32, sign);
    x[3] = -0.25f * sign;
    const auto q = rtn<e4_g32>::quantise(matrix_view<const float>(x.data(), 1, x.size()));
    std::vector<float> y(32);
    decode_block(spec_of<e4_g32>, q->weights.row(0), y.data());
    for (std::size_t i = 0; i < 32; ++i) CHECK(std::fabs(y[i] - x[i]) <= 0.125f);
  }
}

TEST_CASE("plain floats are narrowed to nearest") {
  const auto x = hard_weights(512, 8);
  const matrix_view<const float> w(x.data(), 3, 157, 160);
  const auto check = [&]<class F>(auto&& narrowed) {
    const auto q = rtn<F>::quantise(w);
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t c = 0; c < w.cols; ++c) {
        decltype(narrowed(0.0f)) stored;
        std::memcpy(&stored, q->weights.row(r) + c * sizeof stored, sizeof stored);
        CHECK(stored == narrowed(w(r, c)));
      }
  };
  check.template operator()<f32>([](float v) { return v; });
  check.template operator()<float16>([](float v) { return to_f16(v).bits; });
  check.template operator()<bfloat16>([](float v) { return to_bf16(v).bits; });
}

TEST_CASE("no product that feeds a sum is fused with it, in any of thousands of blocks") {
  const std::size_t rows = 512, cols = 2048;
  std::mt19937 random(9);
  std::student_t_distribution<float> heavy(1.5f);
  std::exponential_distribution<float> positive;
  std::vector<float> x(rows * cols), importance(cols);
  for (float& v : x) v = 0.02f * heavy(random);
  for (float& v : importance) v = 1e-3f + positive(random);
  const matrix_view<const float> w(x.data(), rows, cols);
  const auto check = [&]<class F>(bool with) {
    const auto expected = with ? *quantiser<F, block_by_block<importance_weighted>>::quantise(w, given_importance(importance))
                               : *quantiser<F, block_by_block<standard>>::quantise(w);
    for (const auto& u : kernel::linked_units()) {
      if (!u.available) continue;
      packed_matrix out(spec_of<F>, rows, cols);
      CHECK(u.kernels->quantise_rows({&spec_of<F>, x.data(), cols, cols, 0, rows, with ? importance.data() : nullptr, out.bytes().data(), true}));
      CHECK_MESSAGE(same(out, expected.weights), (std::string(u.name) + (with ? " with importance" : "")));
    }
  };
  // Of sub-blocks short enough to be unrolled, where GCC fused the first product of a sum.
  check.template operator()<q2_k>(false);
  check.template operator()<q2_k>(true);
}

TEST_CASE("quantisers take that path, for any executor") {
  const auto x = hard_weights(9 * 512, 3);
  const matrix_view<const float> w(x.data(), 9, 512);
  const auto importance = given_importance(hard_importance(512, 6));
  for_each_format(gguf_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    CHECK(same(rtn<F>::quantise(w, uncalibrated(), two_threads())->weights, quantiser<F, block_by_block<standard>>::quantise(w)->weights));
    CHECK(same(quantiser<F, importance_weighted>::quantise(w, importance, two_threads())->weights,
               quantiser<F, block_by_block<importance_weighted>>::quantise(w, importance)->weights));
  });
}

TEST_CASE("weights too large for a weighted search fall back as their blocks do") {
  auto x = hard_weights(2 * 512, 4);
  for (std::size_t i = 0; i < 256; ++i) x[i] *= 0x1p100f;
  const matrix_view<const float> w(x.data(), 2, 512);
  const auto importance = given_importance(hard_importance(512, 7));
  const auto check = [&]<class F>() {
    const auto q = quantiser<F, importance_weighted>::quantise(w, importance);
    CHECK(same(q->weights, quantiser<F, block_by_block<importance_weighted>>::quantise(w, importance)->weights));
  };
  check.template operator()<q4_k>();
  check.template operator()<q4_0>();
  check.template operator()<iq4_xs>();
}
