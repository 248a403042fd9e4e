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

TEST_CASE("the largest magnitude of every channel, of parts and of the whole") {
  matrix x = matrix::Random(57, 12);
  x(3, 4) = -9;
  x(30, 2) = 7;
  channel_maximum first(12), second(12);
  CHECK(first.maximum() == Eigen::VectorXf::Ones(12));
  first.add(view(x).middle_rows(0, 20));
  second.add(view(x).middle_rows(20, 37));
  first.merge(second);
  CHECK(first.tokens() == 57);
  CHECK(first.channels() == 12);
  CHECK(first.maximum() == x.cwiseAbs().colwise().maxCoeff().transpose());
  x(5, 1) = std::nanf("");
  x(6, 0) = -INFINITY;
  channel_maximum hostile(12);
  hostile.add(view(x));
  CHECK(std::isinf(hostile.maximum()[0]));
  CHECK(hostile.maximum()[1] <= 1);
}

TEST_CASE("statistics divided by scales are those of divided inputs") {
  const matrix x = matrix::Random(31, 5);
  const std::vector<float> by{2, 0.5f, 3, 0.1f, 7};
  const matrix divided = x * Eigen::Map<const Eigen::VectorXf>(by.data(), 5).cwiseInverse().asDiagonal();
  calibrated<channel_magnitude, channel_importance, channel_maximum, hessian> changed(5), expected(5);
  changed.add(view(x));
  changed.divide(by);
  expected.add(view(divided));
  CHECK(changed.get<channel_magnitude>().mean().isApprox(expected.get<channel_magnitude>().mean(), 1e-6f));
  CHECK(changed.get<channel_importance>().mean().isApprox(expected.get<channel_importance>().mean(), 1e-6f));
  CHECK(changed.get<channel_maximum>().maximum().isApprox(expected.get<channel_maximum>().maximum(), 1e-6f));
  CHECK(changed.get<hessian>().matrix().isApprox(expected.get<hessian>().matrix(), 1e-6));
  const auto same = changed.get<hessian>().matrix();
  changed.divide({});
  CHECK(changed.get<hessian>().matrix() == same);
}
