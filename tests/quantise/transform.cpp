// Folds: a model of two layers computes the same after scales have moved from one into the other.
#include "matrices.hpp"

#include <lowbit/quantise/transform.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;
using namespace test;

namespace {
using Eigen::MatrixXd;
using Eigen::VectorXd;

std::vector<float> normal_vector(std::size_t n, unsigned seed) {
  const matrix m = normal_matrix(1, static_cast<Eigen::Index>(n), seed);
  return {m.data(), m.data() + n};
}
VectorXd as_double(const std::vector<float>& v) {
  return Eigen::Map<const Eigen::VectorXf>(v.data(), static_cast<Eigen::Index>(v.size())).cast<double>();
}
/// LayerNorm (or RMSNorm where `centred` is false) of every row, in float64.
MatrixXd norm(const MatrixXd& x, const VectorXd& gain, const VectorXd& bias, bool centred) {
  MatrixXd y = x;
  if (centred) y.colwise() -= y.rowwise().mean();
  y.array().colwise() /= (y.rowwise().squaredNorm().array() / static_cast<double>(y.cols()) + 1e-6).sqrt();
  return (y * gain.asDiagonal()).rowwise() + bias.transpose();
}
input_scales some_scales(std::size_t n, bool powers_of_two) {
  input_scales s(n);
  std::mt19937 random(77);
  for (float& v : s) v = powers_of_two ? std::exp2(static_cast<float>(static_cast<int>(random() % 9) - 4)) : 0.1f + static_cast<float>(random() % 1000) / 77.0f;
  return s;
}
}  // namespace

TEST_CASE("scales folded into a norm leave the model as it was") {
  const MatrixXd x = normal_matrix(13, 24, 1).cast<double>();
  for (const bool powers : {true, false})
    for (const bool layer_norm : {true, false})
      for (const norm_gain gain : {norm_gain::weight, norm_gain::one_plus_weight}) {
        std::vector<float> weight = normal_vector(24, 2), bias = layer_norm ? normal_vector(24, 3) : std::vector<float>{};
        if (powers && gain == norm_gain::one_plus_weight)
          for (float& v : weight) v = std::nearbyint(v * 64) / 64;  // so that 1 + w is exact
        matrix w = normal_matrix(9, 24, 4);
        const auto model = [&] {
          const VectorXd g = as_double(weight).array() + (gain == norm_gain::weight ? 0.0 : 1.0);
          return MatrixXd(norm(x, g, layer_norm ? as_double(bias) : VectorXd::Zero(24), layer_norm) * w.cast<double>().transpose());
        };
        const MatrixXd before = model();
        const input_scales s = some_scales(24, powers);
        divide_norm(weight, bias, s, gain);
        multiply_columns(view(w), s);
        if (powers) CHECK(model() == before);
        else CHECK((model() - before).norm() <= 3e-7 * before.norm());
      }
}

TEST_CASE("scales folded into the rows of the producing layer leave the model as it was") {
  const MatrixXd x = normal_matrix(13, 16, 1).cast<double>();
  for (const bool powers : {true, false})
    for (const bool biased : {true, false}) {
      // A fused layer of 30 rows whose last 12 are read by the consumer.
      matrix first = normal_matrix(30, 16, 2), second = normal_matrix(7, 12, 3);
      std::vector<float> bias = biased ? normal_vector(30, 4) : std::vector<float>{};
      const matrix untouched = first.topRows(18);
      const auto model = [&] {
        MatrixXd h = x * first.cast<double>().transpose();
        if (biased) h.rowwise() += as_double(bias).transpose();
        return MatrixXd(h.rightCols(12) * second.cast<double>().transpose());
      };
      const MatrixXd before = model();
      const input_scales s = some_scales(12, powers);
      divide_rows(view(first), bias, s);
      multiply_columns(view(second), s);
      if (powers) CHECK(model() == before);
      else CHECK((model() - before).norm() <= 3e-7 * before.norm());
      CHECK(first.topRows(18) == untouched);
    }
}

TEST_CASE("no scales fold to nothing") {
  matrix w = normal_matrix(3, 5, 1);
  const matrix before = w;
  std::vector<float> gain = normal_vector(5, 2);
  const std::vector<float> gain_before = gain;
  multiply_columns(view(w), {});
  divide_rows(view(w), {}, {});
  divide_norm(gain, {}, {});
  CHECK(w == before);
  CHECK(gain == gain_before);
}

TEST_CASE("a norm's gain and bias moved into its readers leave the model as it was") {
  const MatrixXd x = normal_matrix(13, 24, 1).cast<double>();
  for (const bool layer_norm : {true, false})
    for (const norm_gain gain : {norm_gain::weight, norm_gain::one_plus_weight}) {
      std::vector<float> weight = normal_vector(24, 2), bias = layer_norm ? normal_vector(24, 3) : std::vector<float>{};
      matrix a = normal_matrix(9, 24, 4), b = normal_matrix(2, 24, 5);
      std::vector<float> a_bias = normal_vector(9, 6), b_bias(2, 0.0f);
      const auto model = [&] {
        const VectorXd g = as_double(weight).array() + (gain == norm_gain::weight ? 0.0 : 1.0);
        const MatrixXd h = norm(x, g, layer_norm ? as_double(bias) : VectorXd::Zero(24), layer_norm);
        MatrixXd y(13, 11);
        y << (h * a.cast<double>().transpose()).rowwise() + as_double(a_bias).transpose(),
            (h * b.cast<double>().transpose()).rowwise() + as_double(b_bias).transpose();
        return y;
      };
      const MatrixXd before = model();
      const linear_view readers[] = {{view(a), a_bias}, {view(b), b_bias}};
      move_norm(weight, bias, readers, gain);
      CHECK((model() - before).norm() <= 3e-7 * before.norm());
      for (const float g : weight) CHECK(g == (gain == norm_gain::weight ? 1.0f : 0.0f));
      for (const float v : bias) CHECK(v == 0.0f);
    }
}
