// LLM.int8's split against its formula in float64, with the kernels that run it, and with any format for the rest.
#include "matrices.hpp"

#include <lowbit/adapt/outlier_panels.hpp>

#include <doctest/doctest.h>

using namespace lowbit;
using namespace test;

namespace {
using Eigen::MatrixXd;
/// Rows to 127 levels by their largest magnitude, in float64.
MatrixXd int8_round(MatrixXd m) {
  for (Eigen::Index r = 0; r < m.rows(); ++r) {
    const double scale = m.row(r).cwiseAbs().maxCoeff() / 127;
    if (scale > 0) m.row(r) = (m.row(r) / scale).unaryExpr([](double v) { return std::nearbyint(v); }) * scale;
  }
  return m;
}
}  // namespace

TEST_CASE("outliers are the channels that reach the threshold, or the largest") {
  matrix x = normal_matrix(20, 40, 1).cwiseMax(-3).cwiseMin(3);
  x(4, 7) = -6.0f;
  x(9, 33) = 50.0f;
  x(1, 12) = 5.9f;
  using channels = std::vector<std::uint32_t>;
  CHECK(outlier_channels(maximum_of(x)) == channels{7, 33});
  CHECK(outlier_channels(maximum_of(x), 6.0f, 1) == channels{33});
  CHECK(largest_channels(maximum_of(x), 3) == channels{7, 12, 33});
  CHECK(largest_channels(maximum_of(x), 0).empty());
  CHECK(largest_channels(maximum_of(x), 100).size() == 40);
  CHECK(outlier_channels(channel_maximum(40), 0.5f).empty());
  x(0, 2) = std::nanf("");
  x(0, 3) = INFINITY;
  CHECK(outlier_channels(maximum_of(x)) == channels{3, 7, 33});
}

TEST_CASE("the forward pass is LLM.int8's formula") {
  serial_executor serial;
  adapter_workspace space;
  for (const Eigen::Index in : {Eigen::Index{96}, Eigen::Index{300}, Eigen::Index{517}}) {
    matrix x = normal_matrix(19, in, 2);
    for (const Eigen::Index c : {Eigen::Index{5}, Eigen::Index{64}, in - 1}) x.col(c) *= 30;
    matrix w = normal_matrix(35, in, 3);
    w.col(5) *= 20;
    w.row(8).setZero();
    const format_spec s = int8_rows(static_cast<std::size_t>(in));
    CHECK(count_claims(s).unclaimed == 0);
    CHECK(count_claims(s).overlapping == 0);
    const auto channels = outlier_channels(maximum_of(x), 15.0f);
    REQUIRE(channels == std::vector<std::uint32_t>{5, 64, static_cast<std::uint32_t>(in - 1)});
    const auto split = quantise_with_outliers(s, view(w), channels, serial);
    REQUIRE(split);

    // The formula: outliers apart in float, the others int8 times int8 by rows of x and W.
    MatrixXd x_rest = x.cast<double>(), w_rest = w.cast<double>(), outlier_part = MatrixXd::Zero(19, 35);
    for (const std::uint32_t c : channels) {
      outlier_part += x_rest.col(c) * w_rest.col(c).transpose();
      x_rest.col(c).setZero();
      w_rest.col(c).setZero();
    }
    const MatrixXd expected = int8_round(x_rest) * int8_round(w_rest).transpose() + outlier_part;
    const MatrixXd exact = x.cast<double>() * w.cast<double>().transpose();

    matrix y(19, 35), plain(19, 35);
    const outlier_panels panels = outlier_panels::from(*split, serial);
    multiply(view(std::as_const(x)), panels, view(y), space, serial);
    // Scales are rounded to f16 (2^-11) before the codes are chosen, which moves some codes by one: half a step of one weight each.
    CHECK((y.cast<double>() - expected).norm() < 0.01 * expected.norm());
    CHECK((y.cast<double>() - exact).norm() < 1.2 * (expected - exact).norm());
    multiply(view(std::as_const(x)), panels, view(y), space, serial, precision::exact);
    matrix rest(35, in);
    decode(split->rest.view(), view(rest));
    CHECK((y.cast<double>() - (x_rest * rest.cast<double>().transpose() + outlier_part)).norm() < 1e-6 * exact.norm());

    // And it is what the split is for.
    const auto whole = quantise_with_outliers(s, view(w), {}, serial);
    multiply(view(std::as_const(x)), outlier_panels::from(*whole, serial), view(plain), space, serial);
    multiply(view(std::as_const(x)), panels, view(y), space, serial);
    CHECK(4 * (y.cast<double>() - exact).norm() < (plain.cast<double>() - exact).norm());
  }
}

TEST_CASE("the quantised part is int8 by rows: the codes of W * 127 / SCB") {
  matrix w = normal_matrix(21, 130, 4) * 0.05f;
  const format_spec s = int8_rows(130);
  serial_executor serial;
  const auto split = quantise_with_outliers(s, view(w), {}, serial);
  int moved = 0;
  for (std::size_t r = 0; r < 21; ++r) {
    const double scb = static_cast<double>(w.row(static_cast<Eigen::Index>(r)).cwiseAbs().maxCoeff());
    for (std::size_t c = 0; c < 130; ++c) {
      const int code = static_cast<std::int8_t>(split->rest.row(r)[2 + c]);
      const double exact = static_cast<double>(w(static_cast<Eigen::Index>(r), static_cast<Eigen::Index>(c))) * 127 / scb;
      CHECK(std::fabs(code - exact) <= 0.5 + 127 * 0x1p-11);
      moved += code != static_cast<int>(std::nearbyint(exact));
    }
  }
  CHECK(moved < 21 * 130 / 25);
}

namespace {
/// Remembers the least importance of a block's eighth channel: 0 where an outlier there no longer counts.
struct watching {
  using needs = needs_statistics<channel_importance>;
  static inline float seen = INFINITY;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    seen = std::min(seen, about.importance[7]);
    return minmax::fit(s, x, n, about, f);
  }
};
}  // namespace

TEST_CASE("any format serves for the rest; columns are float copies; bad weights are refused") {
  const matrix x = normal_matrix(20, 64, 5), w = normal_matrix(10, 64, 6);
  calibrated<channel_importance> stats(64);
  stats.add(view(x));
  serial_executor serial;
  const std::uint32_t channels[] = {0, 7, 63};
  for_each_format(format_list<q4_0, q8_0, q4_k, nf4, mxfp4, nvfp4, asymmetric<4, 32>, symmetric<3, 32>, asymmetric<2, 64>>{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    for (const bool searched : {false, true}) {
      const auto q = searched ? quantise_with_outliers<mse_search<5>>(spec_of<F>, view(w), channels, serial)
                              : quantise_with_outliers(spec_of<F>, view(w), channels, serial);
      REQUIRE(q);
      matrix rest(10, 64);
      decode(q->rest.view(), view(rest));
      const matrix columns = Eigen::Map<const matrix>(q->columns.data(), 10, 3);
      for (Eigen::Index i = 0; i < 3; ++i) {
        CHECK(columns.col(i) == w.col(channels[i]));
        if (!spec_of<F>.minimum.present()) CHECK(rest.col(channels[i]).isZero(0));  // others need not have a zero
      }
      CHECK((rest - w).rightCols(60).leftCols(50).norm() < 0.7f * w.norm());
    }
  });
  REQUIRE(quantise_with_outliers<watching>(spec_of<q4_0>, view(w), {}, serial, stats));
  CHECK(watching::seen > 0.1f);
  REQUIRE(quantise_with_outliers<watching>(spec_of<q4_0>, view(w), channels, serial, stats));
  CHECK(watching::seen == 0);

  matrix bad = w;
  bad(3, 7) = std::nanf("");
  const auto refused = quantise_with_outliers(spec_of<q8_0>, view(bad), channels, serial);
  REQUIRE(!refused);
  CHECK(refused.error().message == "NaN at row 3, column 7");
  CHECK(quantise_with_outliers(spec_of<q8_0>, matrix_view<const float>(nullptr, 0, 64), channels, serial)->rest.bytes().empty());
}
