#include <lowbit/calibration/statistics.hpp>
#include <lowbit/glue/eigen.hpp>

#include <doctest/doctest.h>

using namespace lowbit;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST_CASE("streamed and merged statistics are those of all tokens at once") {
  const matrix x = matrix::Random(57, 12);
  calibrated<channel_magnitude, channel_importance, hessian> first(12), second(12);
  first.add(view(x).middle_rows(0, 20));
  first.add(view(x).middle_rows(20, 1));
  second.add(view(x).middle_rows(21, 36));
  first.merge(second);
  const Eigen::MatrixXd d = x.cast<double>();
  CHECK(first.get<channel_magnitude>().tokens() == 57);
  CHECK(first.get<channel_magnitude>().mean().cast<double>().isApprox(d.cwiseAbs().colwise().mean().transpose(), 1e-6));
  CHECK(first.get<channel_importance>().mean().cast<double>().isApprox(d.cwiseAbs2().colwise().mean().transpose(), 1e-6));
  CHECK(first.get<hessian>().matrix().isApprox(2.0 / 57 * d.transpose() * d, 1e-12));
}

TEST_CASE("no token is a defined state") {
  const calibrated<channel_importance, hessian> none(5);
  CHECK(none.get<channel_importance>().mean() == Eigen::VectorXf::Ones(5));
  CHECK(none.get<hessian>().matrix() == Eigen::MatrixXd::Zero(5, 5));
  static_assert(decltype(none)::has<hessian> && !decltype(none)::has<channel_magnitude>);
}
