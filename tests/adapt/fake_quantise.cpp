// Fake quantisation against the formats' own decoding bit for bit, the papers' formulas in float64, and finite differences of what is smooth.
#include <lowbit/adapt/fake_quantise.hpp>
#include <lowbit/format/runtime.hpp>
#include <lowbit/glue/eigen.hpp>

#include <doctest/doctest.h>

#include <random>

#include "../executors.hpp"
#include "../quantise/matrices.hpp"

using namespace lowbit;
using test::decoded;
using test::matrix;
using test::normal_matrix;

namespace {

bool same_bits(const matrix& a, const matrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), sizeof(float) * static_cast<std::size_t>(a.size())) == 0;
}
/// As if an optimiser had moved them: by a quarter this way or that, and some by much.
void disturb(sub_block_values& v, unsigned seed) {
  std::mt19937 random(seed);
  for (Eigen::Index i = 0; i < v.size(); ++i) v.data()[i] *= i % 11 == 3 ? -0.1f : 0.75f + static_cast<float>(random() % 500) / 1000.0f;
}
using three_threads = backwards_executor<3>;

/// Every format made of planes, and uniform ones of all widths in groups that nobody ships, with every type of scale.
std::vector<const format_spec*> every_format() {
  std::vector<const format_spec*> all(all_formats::specs.begin(), all_formats::specs.end());
  for (unsigned bits = 1; bits <= 8; ++bits)
    for (const std::size_t group : {1, 40, 1000})
      for (const bool symmetric : {false, true})
        for (const number scale : {number::f16, number::bf16, number::f32}) all.push_back(&uniform_format(bits, group, symmetric, scale));
  return all;
}

}  // namespace

TEST_CASE("what is trained is what is stored: the forward pass has the bits of the packed weights, in every format") {
  const matrix w = normal_matrix(3, 600, 1);  // ragged blocks in many
  for (const format_spec* s : every_format()) {
    CAPTURE(std::string(s->name));
    auto q = fake_quantiser<>::fitted(*s, w);
    REQUIRE(q);
    for (unsigned round = 0; round < 2; ++round) {
      matrix forward(3, 600), parallel(3, 600), in_place = w;
      REQUIRE(q->forward(w, forward));
      REQUIRE(q->forward(w, parallel, three_threads{}));
      REQUIRE(q->forward(in_place, in_place));
      const auto packed = q->pack(w);
      REQUIRE(packed);
      CHECK(&packed->spec() == s);
      CHECK(same_bits(forward, decoded(*packed)));
      CHECK(same_bits(forward, parallel));
      CHECK(same_bits(forward, in_place));
      disturb(q->scales(), 2);
      disturb(q->offsets(), 3);
    }
  }
}

TEST_CASE("with the scales of a fit it rounds to nearest as the quantiser with that fit does") {
  const matrix w = normal_matrix(4, 512, 4);
  serial_executor serial;
  for (const format_spec* s : every_format()) {
    if (s->is_float() || s->sub != 0) continue;  // sub-scales are rounded to another unit when they are stored again
    CAPTURE(std::string(s->name));
    packed_matrix nearest(*s, 4, 512);
    detail::quantise_rows<mse_search<20>, round_nearest>(*s, view(w), uncalibrated(), nearest, serial);
    const auto q = fake_quantiser<>::fitted<mse_search<20>>(*s, w);
    REQUIRE(q);
    const auto packed = q->pack(w);
    REQUIRE(packed);
    CHECK(std::equal(packed->bytes().begin(), packed->bytes().end(), nearest.bytes().begin()));
  }
}

namespace {
/// scale * rounded + offset with what rounding and clipping did at (w0, s0, o0) held: e = rounded - clamp(level). What is left is smooth.
struct held_rounding {
  double lowest, highest, error;
  double operator()(double w, double s, double o) const { return s * (std::clamp((w - o) / s, lowest, highest) + error) + o; }
};
}  // namespace

TEST_CASE("LSQ's and LSQ+'s derivatives are those of the smooth part by finite differences") {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  unsigned inside = 0, outside = 0;
  for (const level_range levels : {level_range{-2, 1}, level_range{-8, 7}, level_range{0, 3}, level_range{0, 255}, level_range{-1, 1},
                                   level_range{-127, 113}})
    for (int i = 0; i < 500; ++i) {
      const double low = levels.lowest, high = levels.highest, s = 0.3 * std::exp(normal(random)), o = low == 0 ? normal(random) : 0;
      const double w = normal(random) * s * high + o, level = (w - o) / s;
      if (std::min(std::fabs(level - low), std::fabs(level - high)) < 1e-3) continue;  // a kink
      const double rounded = std::nearbyint(std::clamp(level, low, high));
      const held_rounding f{low, high, rounded - std::clamp(level, low, high)};
      const double h = 1e-6 * s;
      const grid_point at{static_cast<float>(level), static_cast<float>(rounded), levels.lowest, levels.highest};
      const grid_partials d = learnt_step_and_offset::at(at);
      CHECK(static_cast<double>(d.weight) == doctest::Approx((f(w + h, s, o) - f(w - h, s, o)) / (2 * h)).epsilon(1e-5));
      CHECK(static_cast<double>(d.scale) == doctest::Approx((f(w, s + h, o) - f(w, s - h, o)) / (2 * h)).epsilon(1e-4));
      CHECK(static_cast<double>(d.offset) == doctest::Approx((f(w, s, o + h) - f(w, s, o - h)) / (2 * h)).epsilon(1e-5));
      CHECK(learnt_step::at(at).scale == d.scale);
      (level > low && level < high ? inside : outside)++;
    }
  CHECK(inside > 500);
  CHECK(outside > 500);
}

TEST_CASE("the policies are the papers' formulas") {
  // Esser et al. 2020, equation 3, at 3 bits: Q_N = 4, Q_P = 3.
  const auto point = [](float v_over_s) { return grid_point{v_over_s, std::nearbyint(std::clamp(v_over_s, -4.0f, 3.0f)), -4, 3}; };
  CHECK(learnt_step::at(point(1.25f)).scale == -0.25f);
  CHECK(learnt_step::at(point(-2.75f)).scale == -0.25f);
  CHECK(learnt_step::at(point(3.25f)).scale == 3.0f);
  CHECK(learnt_step::at(point(-5.0f)).scale == -4.0f);
  CHECK(learnt_step::at(point(2.5f)).weight == 1.0f);
  CHECK(learnt_step::at(point(3.25f)).weight == 0.0f);
  // Bengio et al. 2013: the identity, or that within the range.
  CHECK(straight_through::at(point(9)).weight == 1.0f);
  CHECK(straight_through::at(point(9)).scale == 0.0f);
  CHECK(straight_through_clipped::at(point(9)).weight == 0.0f);
  CHECK(straight_through_clipped::at(point(-3.9f)).weight == 1.0f);
  // Bhalgat et al. 2020: the offset's is 1 where x is clipped and 0 elsewhere.
  CHECK(learnt_step_and_offset::at(point(1.25f)).offset == 0.0f);
  CHECK(learnt_step_and_offset::at(point(7)).offset == 1.0f);
  CHECK(learnt_step_and_offset::at(point(-7)).offset == 1.0f);
  // Choi et al. 2018: dy/dα = 1 for x >= α and 0 below, where α = scale * highest.
  const auto relu = [](float level) { return grid_point{level, std::nearbyint(std::clamp(level, 0.0f, 15.0f)), 0, 15}; };
  CHECK(parameterised_clip::at(relu(15.2f)).scale / 15 == 1.0f);
  CHECK(parameterised_clip::at(relu(15.2f)).weight == 0.0f);
  CHECK(parameterised_clip::at(relu(14.4f)).scale == 0.0f);
  CHECK(parameterised_clip::at(relu(14.4f)).weight == 1.0f);
  CHECK(parameterised_clip::at(relu(-1)).scale == 0.0f);
  CHECK(parameterised_clip::at(relu(-1)).weight == 0.0f);
  // Section 2.2 of LSQ: g = 1 / sqrt(N Q_P).
  CHECK(lsq_gradient_scale({-4, 3}, 8, 100).scale == doctest::Approx(1 / std::sqrt(300.0)));
  CHECK(lsq_gradient_scale({0, 15}, 16, 64).offset == doctest::Approx(1 / std::sqrt(960.0)));
}

TEST_CASE("gradients of a matrix are the formula summed over each group, on the scales as they are stored") {
  const matrix w = normal_matrix(3, 100, 6), dy = normal_matrix(3, 100, 7);
  for (unsigned bits = 1; bits <= 8; ++bits)
    for (const bool symmetric : {true, false}) {
      const format_spec& s = uniform_format(bits, 24, symmetric);
      if (s.values.present()) continue;
      CAPTURE(std::string(s.name));
      auto q = fake_quantiser<learnt_step_and_offset>::fitted(s, w);
      REQUIRE(q);
      disturb(q->scales(), 8);
      matrix dw(3, 100);
      fake_gradients steps;
      REQUIRE(q->backward(w, dy, dw, steps));
      REQUIRE(steps.scales.cols() == 5);
      REQUIRE(steps.offsets.size() == (symmetric ? 0 : 15));
      const auto packed = q->pack(w);
      REQUIRE(packed);
      const double low = symmetric ? -std::exp2(bits - 1) : 0, high = low + std::exp2(bits) - 1;
      for (Eigen::Index r = 0; r < 3; ++r)
        for (Eigen::Index b = 0; b < 5; ++b) {
          const std::uint8_t* const block = packed->row(static_cast<std::size_t>(r)) + static_cast<std::size_t>(b) * s.bytes;
          const double scale = static_cast<double>(read_scalar(s.scale, block)), offset = -scale * zero_point_of(s, block);
          const Eigen::Index n = std::min<Eigen::Index>(24, 100 - b * 24);
          double of_scale = 0, of_offset = 0;
          for (Eigen::Index i = b * 24; i < b * 24 + n; ++i) {
            const double level = (static_cast<double>(w(r, i)) - offset) / scale, g = static_cast<double>(dy(r, i));
            const bool clipped = level < low || level > high;
            of_scale += g * (clipped ? std::clamp(level, low, high) : std::nearbyint(level) - level);
            of_offset += clipped ? g : 0;
            CHECK(dw(r, i) == (clipped ? 0.0f : dy(r, i)));
          }
          const double by = 1 / std::sqrt(static_cast<double>(n) * high);
          if (high > 0) CHECK(static_cast<double>(steps.scales(r, b)) == doctest::Approx(of_scale * by).epsilon(1e-3).scale(0.1));
          if (!symmetric) CHECK(static_cast<double>(steps.offsets(r, b)) == doctest::Approx(of_offset * by).epsilon(1e-4));
        }
    }
}

TEST_CASE("formats of two levels and tables have a gradient for every sub-block") {
  const matrix w = normal_matrix(2, 512, 9), dy = normal_matrix(2, 512, 10);
  for (const char* name : {"q2_k", "q3_k", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "nf4", "fp4", "q4_1"}) {
    const format_spec& s = spec_of_id(*find_format(name));
    CAPTURE(std::string(name));
    auto q = fake_quantiser<learnt_step_and_offset>::fitted<minmax>(s, w);
    REQUIRE(q);
    const auto packed = q->pack(w);
    REQUIRE(packed);
    matrix values(2, 512), dw(2, 512);
    fake_gradients steps;
    REQUIRE(q->forward(w, values));
    REQUIRE(q->backward(w, dy, dw, steps));
    const Eigen::Index sub = s.sub_block();
    REQUIRE(steps.scales.cols() == 512 / sub);
    CHECK(steps.offsets.size() == (detail::has_offset(s) ? steps.scales.size() : 0));
    // Where nothing is clipped, s Σ dy (rounded - level) = Σ dy (value - w), whatever the table: the values themselves say what it must be.
    const level_range levels = levels_of(s);
    std::size_t checked = 0;
    for (Eigen::Index r = 0; r < 2; ++r)
      for (Eigen::Index b = 0; b < steps.scales.cols(); ++b) {
        const auto part = [&](const matrix& m) { return m.row(r).segment(b * sub, sub).cast<double>().array(); };
        if ((part(dw) != part(dy)).any()) continue;
        ++checked;
        const auto at = static_cast<std::size_t>(b), width = static_cast<std::size_t>(sub);
        const std::uint8_t* const block = packed->row(static_cast<std::size_t>(r)) + at / s.sub_blocks() * s.bytes;
        const double stored = static_cast<double>(affine_of(s, block, at % s.sub_blocks()).scale);
        const double expected = (part(dy) * (part(values) - part(w))).sum() / stored * lsq_gradient_scale(levels, s.levels(), width).scale;
        CHECK(static_cast<double>(steps.scales(r, b)) == doctest::Approx(expected).epsilon(1e-3).scale(1e-2));
      }
    CHECK(checked > 0);
  }
}

namespace {
/// IQ4_NL with a table of twice its values.
struct doubled_iq4 {
  static constexpr codebook table = [] {
    codebook c = iq4_values;
    for (float& v : c.values) v *= 2;
    for (float& v : c.bounds) v *= 2;
    return c;
  }();
  static constexpr format_spec spec{.name = "doubled_iq4", .block = 32, .bytes = 18, .codes = iq4_nl::spec.codes, .scale = {number::f16, 0},
                                    .values = table};
};
}  // namespace

TEST_CASE("a table in other units learns the same") {
  const matrix w = normal_matrix(2, 128, 11), dy = normal_matrix(2, 128, 12);
  auto one = fake_quantiser<>::fitted(spec_of<iq4_nl>, w), two = fake_quantiser<>::fitted(spec_of<doubled_iq4>, w);
  REQUIRE(one);
  REQUIRE(two);
  CHECK((one->scales() == 2 * two->scales()).all());
  matrix a(2, 128), b(2, 128);
  fake_gradients of_one, of_two;
  for (int step = 0; step < 3; ++step) {
    REQUIRE(one->backward(w, dy, a, of_one));
    REQUIRE(two->backward(w, dy, b, of_two));
    CHECK(same_bits(a, b));
    CHECK((of_one.scales - 2 * of_two.scales).abs().maxCoeff() <= 1e-5f * of_one.scales.abs().maxCoeff());
    one->scales() -= 1e-3f * of_one.scales;
    two->scales() = one->scales() / 2;
  }
}

TEST_CASE("a layer trained by plain gradient descent recovers what rounding to nearest lost, and its file says the same") {
  // y = x Wᵀ of uneven, correlated inputs; the loss is the mean squared error against the float layer.
  const matrix target = normal_matrix(8, 64, 13);
  const matrix x = normal_matrix(256, 64, 14) + 2 * normal_matrix(256, 4, 15) * normal_matrix(4, 64, 16);
  const auto loss_of = [&](const matrix& values) { return static_cast<double>((x * (values - target).transpose()).squaredNorm()) / 256; };
  for (const char* name : {"s2_g32", "u2_g32", "s3_g64", "q2_k", "iq4_nl", "mxfp4"}) {
    const format_spec& s = spec_of_id(*find_format(name));
    CAPTURE(std::string(name));
    matrix w = target, values(8, 64), dw(8, 64);
    auto q = fake_quantiser<learnt_step_and_offset>::fitted<mse_search<20>>(s, w);
    REQUIRE(q);
    REQUIRE(q->forward(w, values));
    const double before = loss_of(values);
    fake_gradients steps;
    double best = before;
    for (int i = 0; i < 300; ++i) {
      const matrix of_values = (values - target) * (x.transpose() * x) / 256;
      REQUIRE(q->backward(w, of_values, dw, steps));
      w -= 2e-3f * dw;
      q->scales() -= 2e-4f * steps.scales;
      if (q->offsets().size() != 0) q->offsets() -= 2e-4f * steps.offsets;
      REQUIRE(q->forward(w, values));
      best = std::min(best, loss_of(values));
    }
    CHECK(best < 0.5 * before);
    const auto packed = q->pack(w);
    REQUIRE(packed);
    CHECK(same_bits(decoded(*packed), values));
  }
}

TEST_CASE("bad input is an error that names it, and nothing is written") {
  matrix w = normal_matrix(2, 64, 17);
  auto q = fake_quantiser<>::fitted(spec_of<symmetric<3, 32>>, w);
  REQUIRE(q);
  matrix out = matrix::Constant(2, 64, 7), small(2, 63);
  fake_gradients steps;
  CHECK(q->forward(small, out).error().kind == errc::shape);
  CHECK(q->forward(w, small).error().message == "a matrix of 2 x 63 for fake quantisation of 2 x 64");
  CHECK(q->backward(w, small, out, steps).error().kind == errc::shape);
  CHECK(q->backward(w, w, small, steps).error().kind == errc::shape);
  CHECK(q->pack(small).error().kind == errc::shape);
  CHECK(q->refit(small).error().kind == errc::shape);
  const matrix good = w;
  w(1, 33) = std::nanf("");
  for (const failure& f : {q->forward(w, out).error(), q->backward(w, good, out, steps).error(), q->pack(w).error(), q->refit(w).error(),
                           fake_quantiser<>::fitted(spec_of<nf4>, w).error()}) {
    CHECK(f.kind == errc::bad_value);
    CHECK(f.message == "NaN at row 1, column 33");
  }
  q->scales()(0, 1) = INFINITY;
  for (const failure& f : {q->forward(good, out).error(), q->backward(good, good, out, steps).error(), q->pack(good).error()}) {
    CHECK(f.kind == errc::bad_value);
    CHECK(f.message == "scale: infinity at row 0, column 1");
  }
  CHECK((out.array() == 7).all());
  auto offset = fake_quantiser<>::fitted(spec_of<q4_1>, good);
  REQUIRE(offset);
  offset->offsets()(1, 0) = std::nanf("");
  CHECK(offset->pack(good).error().message == "offset: NaN at row 1, column 0");
  for (const char* name : {"iq2_xs", "tq1_0"}) {
    const auto lattice = fake_quantiser<>::fitted(spec_of_id(*find_format(name)), good);
    REQUIRE(!lattice);
    CHECK(lattice.error().kind == errc::unsupported);
  }
  CHECK(fake_quantiser<>::fitted(spec_of<q4_0>, matrix(0, 0)).ok());
}
