// The matrix of low rank that makes up best for what quantising lost: EoRA (Liu et al. 2024) in closed form, from calibration alone.
//
// Of all B A of rank r, the one that minimises tr((E - B A) H (E - B A)ᵀ), the squared error of the layer's output. With H = C Cᵀ that is
// the truncated singular value decomposition of E C (Eckart and Young 1936), A divided by C again. The paper takes C from H's eigenvalues;
// any C gives the same B A, and Cholesky's costs a fraction and exists once H is damped. The leading singular vectors come from subspace iteration
// (Halko, Martinsson and Tropp 2011, algorithm 4.4), which reads E a few times and never forms E C.
#pragma once

#include <lowbit/adapt/merge.hpp>
#include <lowbit/quantise/damped_factor.hpp>

#include <Eigen/Eigenvalues>
#include <Eigen/QR>

#include <numeric>

namespace lowbit {

struct low_rank_options {
  std::size_t rank = 16;        ///< at most; never more than the matrix has
  double damping = 0.01;        ///< added to the Hessian's diagonal, in units of its mean: what calibration did not see counts a little
  std::size_t oversampling = 8; ///< singular vectors more than wanted that iterate along, for a faster approach
  double tolerance = 1e-6;      ///< stop when an iteration gains less than this share of what is caught
  std::size_t iterations = 40;  ///< at most
};

namespace detail {
inline auto as_rows(matrix_view<const float> m) {
  return Eigen::Map<const float_rows, 0, Eigen::OuterStride<>>(m.data, static_cast<Eigen::Index>(m.rows), static_cast<Eigen::Index>(m.cols),
                                                               Eigen::OuterStride<>(static_cast<Eigen::Index>(m.stride)));
}
}  // namespace detail

/// The factors (scale 1, their parts of equal size) closest to `lost` [out, in], which is weights minus quantised weights. `inputs`, of the
/// layer's inputs, may be null: then in the Frobenius norm. Expects finite values.
template <executor E>
low_rank_factors closest_low_rank(matrix_view<const float> lost, const hessian* inputs, E& executor, const low_rank_options& how = {}) {
  LOWBIT_EXPECTS(inputs == nullptr || inputs->channels() == lost.cols);
  using matrix = Eigen::MatrixXf;
  const std::size_t least = std::min(lost.rows, lost.cols);
  const auto rank = static_cast<Eigen::Index>(std::min(how.rank, least));
  const auto width = static_cast<Eigen::Index>(std::min(how.rank + how.oversampling, least));
  const auto rows = static_cast<Eigen::Index>(lost.rows), cols = static_cast<Eigen::Index>(lost.cols);
  low_rank_factors out{lost.rows, lost.cols, static_cast<std::size_t>(rank), std::vector<float>(lost.cols * static_cast<std::size_t>(rank)),
                       std::vector<float>(lost.rows * static_cast<std::size_t>(rank)), 1.0f};
  if (rank == 0) return out;
  const auto error = detail::as_rows(lost);

  // H / its mean + damping = TᵀT, T upper: C is Tᵀ.
  matrix t;
  if (detail::metric_of(inputs).size() != 0) {
    std::vector<std::size_t> backwards(lost.cols);
    std::iota(backwards.rbegin(), backwards.rend(), std::size_t{0});
    const damped_factor f = factor_damped(*inputs, backwards, how.damping, executor);
    if (f.scale != 0)
      t = matrix::NullaryExpr(cols, cols, [&](Eigen::Index r, Eigen::Index c) {
        return r <= c ? f.t(static_cast<std::size_t>(r), static_cast<std::size_t>(c)) : 0.0f;
      });
  }
  const auto upper = [&] { return t.triangularView<Eigen::Upper>(); };
  const auto forward = [&](const matrix& v) -> matrix {
    return t.size() != 0 ? matrix(error * matrix(upper().transpose() * v)) : matrix(error * v);
  };
  const auto backward = [&](const matrix& y) -> matrix {
    const matrix seen = error.transpose() * y;
    return t.size() != 0 ? matrix(upper() * seen) : seen;
  };
  const auto orthonormal = [&](const matrix& m) -> matrix {
    return Eigen::HouseholderQR<matrix>(m).householderQ() * matrix::Identity(m.rows(), width);
  };

  std::uint32_t state = 1;  // any start does that is not orthogonal to what is looked for; this one is the same everywhere
  matrix x(cols, width), q;
  for (Eigen::Index c = 0; c < width; ++c)
    for (Eigen::Index r = 0; r < cols; ++r) {
      state = state * 1664525u + 1013904223u;
      x(r, c) = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
    }
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> small;
  double caught = 0;
  for (std::size_t i = 0; i < how.iterations; ++i) {
    q = orthonormal(forward(orthonormal(x)));
    x = backward(q);  // (Qᵀ E C)ᵀ
    small.compute(x.cast<double>().transpose() * x.cast<double>());
    const double now = small.eigenvalues().tail(rank).sum();
    if (!(now > caught * (1 + how.tolerance))) break;
    caught = now;
  }
  // The wanted part of Q Qᵀ E C, its singular values shared out evenly.
  const matrix turn = small.eigenvectors().rightCols(rank).cast<float>();
  const Eigen::ArrayXf root = small.eigenvalues().tail(rank).cwiseMax(0.0).array().sqrt().sqrt().cast<float>();
  const Eigen::ArrayXf inverse = (root > 0.0f).select(root.inverse(), 0.0f);
  const matrix b = (q * turn) * root.matrix().asDiagonal();
  matrix a = (x * turn) * inverse.matrix().asDiagonal();  // transposed
  if (t.size() != 0) a = upper().solve(a);
  Eigen::Map<detail::float_rows>(out.a.data(), rank, cols) = a.transpose();
  Eigen::Map<detail::float_rows>(out.b.data(), rows, rank) = b;
  return out;
}

}  // namespace lowbit
