// GPTQ (Frantar et al. 2023, algorithm 1) in any precision, written from the paper and from what its authors' code does where the paper is silent.
#pragma once

#include <lowbit/format/uniform.hpp>

#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <vector>

namespace test {

/// Scales as float32, so that a float64 transcription can hold the same ones.
template <unsigned Bits, unsigned Group>
struct asymmetric_f32 {
  static constexpr lowbit::format_spec spec = lowbit::uniform({.bits = Bits, .group = Group, .scale = lowbit::number::f32});
};

/// The grid of GPTQ's quantiser (asymmetric, range with zero in it).
template <class Real>
struct reference_grid {
  Real scale = 1, zero = 0, top = 0;
  bool tied = false;  ///< the zero-point was
  reference_grid(const Eigen::RowVectorX<Real>& w, unsigned bits) : top(static_cast<Real>((1 << bits) - 1)) {
    Real low = std::min<Real>(0, w.minCoeff()), high = std::max<Real>(0, w.maxCoeff());
    if (low == 0 && high == 0) low = -1, high = 1;
    scale = static_cast<float>((high - low) / top);
    zero = std::nearbyint(-low / scale);
    tied = is_tied(-low / scale);
  }
  Real operator()(Real v) const { return scale * (std::clamp<Real>(std::nearbyint(v / scale) + zero, 0, top) - zero); }
  /// Whether a quotient that is rounded is a tie, or so near one that float32 cannot tell.
  static bool is_tied(Real quotient) { return std::fabs(quotient - std::floor(quotient) - Real(0.5)) < 1e-5; }
};

template <class Real>
Eigen::MatrixX<Real> damped(Eigen::MatrixX<Real> h, double damping) {
  h.diagonal().array() += static_cast<Real>(damping) * h.diagonal().mean();
  return h;
}

/// The paper's algorithm 1 with lazy batches, as its authors' code runs it: the scales of a group come from the weights as they were when
/// the batch of 128 began, errors are divided by the diagonal of the inverse's factor.
/// `tied`, if asked for, says of each row whether anything that was rounded in it was a tie.
template <class Real>
Eigen::MatrixX<Real> reference_gptq(Eigen::MatrixX<Real> w, const Eigen::MatrixX<Real>& h, unsigned bits, Eigen::Index group, double damping, Real& loss,
                                    std::vector<bool>* tied = nullptr) {
  const Eigen::Index n = w.cols();
  const Eigen::MatrixX<Real> inverse = damped(h, damping).inverse();
  const Eigen::MatrixX<Real> u = Eigen::LLT<Eigen::MatrixX<Real>>(inverse).matrixU();
  Eigen::MatrixX<Real> q(w.rows(), n);
  loss = 0;
  if (tied != nullptr) tied->assign(static_cast<std::size_t>(w.rows()), false);
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    reference_grid<Real> grid(w.block(r, 0, 1, 1), bits);
    for (Eigen::Index begin = 0; begin < n; begin += 128) {
      const Eigen::Index end = std::min(begin + 128, n);
      Eigen::RowVectorX<Real> block = w.block(r, begin, 1, end - begin), errors(end - begin);
      for (Eigen::Index i = 0; i < end - begin; ++i) {
        const Eigen::Index c = begin + i;
        if (c % group == 0) grid = reference_grid<Real>(w.block(r, c, 1, std::min(group, n - c)), bits);
        if (tied != nullptr && (grid.tied || grid.is_tied(block(i) / grid.scale))) (*tied)[static_cast<std::size_t>(r)] = true;
        q(r, c) = grid(block(i));
        errors(i) = (block(i) - q(r, c)) / u(c, c);
        loss += errors(i) * errors(i);
        for (Eigen::Index j = i; j < end - begin; ++j) block(j) -= errors(i) * u(c, begin + j);
      }
      w.block(r, end, 1, n - end) -= errors * u.block(begin, end, end - begin, n - end);
    }
  }
  return q;
}

}  // namespace test
