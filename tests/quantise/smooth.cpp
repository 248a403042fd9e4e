// SmoothQuant against its equation in float64, and against what it is for: activations that int8 can hold.
#include "matrices.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/quantiser.hpp>
#include <lowbit/quantise/smooth.hpp>

#include <doctest/doctest.h>

using namespace lowbit;
using namespace test;

namespace {
/// Rounds every row to 8 bits, symmetrically, in float64: activations per token, weights per output.
Eigen::MatrixXd int8_rows(const Eigen::MatrixXd& m) {
  const Eigen::VectorXd scale = m.cwiseAbs().rowwise().maxCoeff() / 127;
  return scale.asDiagonal() * (scale.cwiseInverse().asDiagonal() * m).unaryExpr([](double v) { return std::nearbyint(v); });
}
}  // namespace

TEST_CASE("scales are the equation's, over all layers of the group") {
  matrix x = normal_matrix(40, 30, 1);
  x.col(7) *= 60;
  const matrix a = normal_matrix(9, 30, 2), b = normal_matrix(4, 30, 3) * 2;
  const matrix_view<const float> group[] = {view(a), view(b)};
  for (const double alpha : {0.0, 0.3, 0.5, 1.0}) {
    const input_scales s = smooth_scales(group, maximum_of(x), alpha);
    REQUIRE(s.size() == 30);
    for (Eigen::Index c = 0; c < 30; ++c) {
      const double most_x = x.col(c).cwiseAbs().cast<double>().maxCoeff();
      const double most_w = std::max(a.col(c).cwiseAbs().maxCoeff(), b.col(c).cwiseAbs().maxCoeff());
      CHECK(s[static_cast<std::size_t>(c)] == doctest::Approx(std::pow(most_x, alpha) / std::pow(most_w, 1 - alpha)).epsilon(1e-6));
    }
  }
}

TEST_CASE("with 8-bit activations and weights the error falls several times where channels stand out") {
  matrix x = normal_matrix(64, 128, 4);
  for (const Eigen::Index c : {5, 60, 99}) x.col(c) *= 50;
  const matrix w = normal_matrix(32, 128, 5);
  matrix smoothed = w;
  calibrated<channel_maximum> stats(128);
  stats.add(view(x));
  const input_scales s = smooth_quant<50>::apply(view(smoothed), stats);
  const Eigen::VectorXd by = Eigen::Map<const Eigen::VectorXf>(s.data(), 128).cast<double>();
  const Eigen::MatrixXd exact = x.cast<double>() * w.cast<double>().transpose();
  const auto error = [&](const Eigen::MatrixXd& xs, const Eigen::MatrixXd& ws) { return (int8_rows(xs) * int8_rows(ws).transpose() - exact).norm(); };
  const Eigen::MatrixXd divided = x.cast<double>() * by.cwiseInverse().asDiagonal();
  CHECK((divided * smoothed.cast<double>().transpose() - exact).norm() < 1e-6 * exact.norm());
  CHECK(error(divided, smoothed.cast<double>()) < 0.4 * error(x.cast<double>(), w.cast<double>()));
}

TEST_CASE("as a transform of a quantiser, and missing or hostile data keep the scale 1") {
  const matrix w = normal_matrix(4, 64, 6);
  calibrated<channel_maximum> stats(64);
  const auto unseen = quantiser<q8_0, standard, round_nearest, smooth_quant<>>::quantise(w, stats);
  const auto plain = quantiser<q8_0>::quantise(w);
  REQUIRE((unseen && plain));
  CHECK(std::equal(unseen->weights.bytes().begin(), unseen->weights.bytes().end(), plain->weights.bytes().begin()));

  matrix x = normal_matrix(10, 64, 7), hostile = w;
  x.col(1).setZero();
  x(2, 2) = INFINITY;
  x.col(3).setConstant(std::nanf(""));
  x.col(4).setConstant(1e-44f);
  x.col(5).setConstant(3e38f);
  hostile.col(6).setZero();
  hostile.col(7).setConstant(1e-44f);
  hostile.col(8).setConstant(3e38f);
  const matrix_view<const float> one = view(hostile);
  for (const double alpha : {0.0, 0.5, 1.0}) {
    const input_scales s = smooth_scales(consumer_group(&one, 1), maximum_of(x), alpha);
    for (const float v : s) CHECK((v > 0 && std::isfinite(v)));
    for (const std::size_t c : {1, 2, 3, 6}) CHECK(s[c] == 1.0f);
  }
}
