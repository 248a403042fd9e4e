// Inputs, weights and what is measured of them, for the tests of quantisers.
#pragma once

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/glue/eigen.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <Eigen/Dense>
#include <random>

namespace test {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline matrix normal_matrix(Eigen::Index rows, Eigen::Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  return matrix::NullaryExpr(rows, cols, [&] { return normal(random); });
}

/// Activations as layers see them: correlated (a quarter of the channels' worth of directions), of uneven size, with an outlier channel.
inline matrix correlated_inputs(Eigen::Index tokens, Eigen::Index channels, unsigned seed) {
  const Eigen::Index rank = channels / 4 + 1;
  matrix x = normal_matrix(tokens, rank, seed) * normal_matrix(rank, channels, seed + 1) / std::sqrt(static_cast<float>(rank)) +
             0.3f * normal_matrix(tokens, channels, seed + 2);
  const matrix size = normal_matrix(1, channels, seed + 3);
  for (Eigen::Index c = 0; c < channels; ++c) x.col(c) *= std::exp(0.5f * size(0, c));
  x.col(channels / 3) *= 8;
  return x;
}

inline lowbit::channel_maximum maximum_of(const matrix& x) {
  lowbit::channel_maximum m(static_cast<std::size_t>(x.cols()));
  m.add(lowbit::view(x));
  return m;
}

inline lowbit::hessian hessian_of(const matrix& x) {
  lowbit::hessian h(static_cast<std::size_t>(x.cols()));
  h.add(lowbit::view(x));
  return h;
}

/// H in float64, from the tokens themselves.
inline Eigen::MatrixXd exact_hessian(const matrix& x) {
  const Eigen::MatrixXd d = x.cast<double>();
  return 2.0 / static_cast<double>(std::max<Eigen::Index>(x.rows(), 1)) * d.transpose() * d;
}

inline matrix decoded(const lowbit::packed_matrix& q) {
  matrix out(static_cast<Eigen::Index>(q.rows()), static_cast<Eigen::Index>(q.cols()));
  lowbit::decode(q.view(), lowbit::view(out));
  return out;
}

/// Σ over rows of (w - ŵ) H (w - ŵ)ᵀ.
inline double loss_of(const matrix& w, const matrix& rounded, const Eigen::MatrixXd& h) {
  const Eigen::MatrixXd e = w.cast<double>() - rounded.cast<double>();
  return (e * h).cwiseProduct(e).sum();
}

}  // namespace test
