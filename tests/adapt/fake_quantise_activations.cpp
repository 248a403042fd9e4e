// Fake quantisation of activations against PACT's and LSQ+'s formulas in float64.
#include <lowbit/adapt/fake_quantise_activations.hpp>
#include <lowbit/glue/eigen.hpp>

#include <doctest/doctest.h>

#include "../quantise/matrices.hpp"

using namespace lowbit;
using test::matrix;
using test::normal_matrix;

TEST_CASE("PACT clips at alpha, rounds to 2^k - 1 steps, and learns alpha by what it clips") {
  // Choi et al. 2018: y = clip(x, 0, α), y_q = round(y (2^k - 1) / α) α / (2^k - 1); dy_q/dα = 1 where x >= α, else 0.
  const matrix x = normal_matrix(20, 30, 1), dy = normal_matrix(20, 30, 2);
  for (const unsigned bits : {2u, 4u, 8u}) {
    const float alpha = 1.25f;
    const auto q = fake_activations<parameterised_clip>::clipped_at(unsigned_levels(bits), alpha);
    CHECK(q.clip() == doctest::Approx(1.25));
    matrix y(20, 30), dx(20, 30);
    REQUIRE(q.forward(x, y));
    const auto g = q.backward(x, dy, dx);
    REQUIRE(g);
    const double steps = std::exp2(bits) - 1;
    double of_alpha = 0;
    for (Eigen::Index i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x.data()[i]), clipped = std::clamp(v, 0.0, 1.25);
      // Within a rounding of a tie either neighbour is right.
      const double in_steps = clipped * steps / 1.25, to_tie = std::fabs(in_steps - std::floor(in_steps) - 0.5);
      if (to_tie > 1e-4) CHECK(static_cast<double>(y.data()[i]) == doctest::Approx(std::nearbyint(in_steps) * 1.25 / steps).epsilon(1e-6));
      CHECK(dx.data()[i] == (v >= 0 && v <= 1.25 ? dy.data()[i] : 0.0f));
      if (v >= 1.25) of_alpha += static_cast<double>(dy.data()[i]);
    }
    CHECK(static_cast<double>(g->scale) / steps == doctest::Approx(of_alpha).epsilon(1e-5));
    CHECK(g->offset == 0.0f);
  }
}

TEST_CASE("LSQ+ learns scale and offset of a tensor") {
  const matrix x = normal_matrix(9, 11, 3), dy = normal_matrix(9, 11, 4);
  fake_activations<> q(unsigned_levels(3), 0.3f, -0.8f);
  matrix y(9, 11), dx = dy;
  REQUIRE(q.forward(x, y));
  const auto g = q.backward(x, dx, dx);  // in place
  REQUIRE(g);
  double of_scale = 0, of_offset = 0;
  for (Eigen::Index i = 0; i < x.size(); ++i) {
    const double level = (static_cast<double>(x.data()[i]) + 0.8) / 0.3, d = static_cast<double>(dy.data()[i]);
    const double rounded = std::nearbyint(std::clamp(level, 0.0, 7.0));
    CHECK(static_cast<double>(y.data()[i]) == doctest::Approx(0.3 * rounded - 0.8).epsilon(1e-6).scale(0.1));
    const bool clipped = level < 0 || level > 7;
    of_scale += d * (clipped ? rounded : rounded - level);
    of_offset += clipped ? d : 0;
    CHECK(dx.data()[i] == (clipped ? 0.0f : dy.data()[i]));
  }
  CHECK(static_cast<double>(g->scale) == doctest::Approx(of_scale / std::sqrt(99.0 * 7)).epsilon(1e-4));
  CHECK(static_cast<double>(g->offset) == doctest::Approx(of_offset / std::sqrt(99.0 * 7)).epsilon(1e-4));
}

TEST_CASE("signed levels are two's complement, and bad activations are refused") {
  CHECK(signed_levels(4).lowest == -8.0f);
  CHECK(signed_levels(4).highest == 7.0f);
  matrix x = normal_matrix(2, 3, 5), y = x, other(3, 2);
  fake_activations<learnt_step> q(signed_levels(8), 0.01f);
  CHECK(q.forward(x, other).error().kind == errc::shape);
  CHECK(q.backward(x, other, y).error().kind == errc::shape);
  CHECK(q.backward(x, y, other).error().kind == errc::shape);
  x(1, 2) = INFINITY;
  REQUIRE(q.forward(x, y));
  CHECK(y(1, 2) == 0.01f * 127.0f);
  x(1, 2) = std::nanf("");
  CHECK(q.forward(x, y).error().message == "NaN at row 1, column 2");
  x(1, 2) = 0;
  q.scale = 0;
  CHECK(q.forward(x, y).error().kind == errc::bad_value);
}
