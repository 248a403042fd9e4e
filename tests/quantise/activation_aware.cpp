// Activation-aware scaling against a float64 implementation of AutoAWQ's search, token replay, and hostile statistics.
#include "../executors.hpp"
#include "matrices.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/activation_aware.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;
using namespace test;

namespace {
struct u4_g32_exact { static constexpr format_spec spec = uniform({.bits = 4, .group = 32, .scale = number::f32}); };
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
using statistics = calibrated<channel_magnitude, hessian>;

/// Correlated tokens of which a few channels are much larger, as a language model's are.
matrix outlier_tokens(Eigen::Index tokens, Eigen::Index channels, unsigned seed) {
  matrix x = normal_matrix(tokens, channels, seed) * (matrix::Identity(channels, channels) + 0.3f / std::sqrt(static_cast<float>(channels)) * normal_matrix(channels, channels, seed + 1));
  std::mt19937 random(seed + 2);
  for (int i = 0; i < 4; ++i) x.col(static_cast<Eigen::Index>(random() % static_cast<unsigned>(channels))) *= static_cast<float>(10 + 10 * i);
  return x;
}
statistics statistics_of(const matrix& x) {
  statistics s(static_cast<std::size_t>(x.cols()));
  s.add(view(x));
  return s;
}
double replayed_error(const std::vector<matrix>& w, consumer_group changed, const matrix& x) {
  double sum = 0, outputs = 0;
  for (std::size_t m = 0; m < w.size(); ++m) {
    const Eigen::MatrixXd e = (matrix::Map(changed[m].data, w[m].rows(), w[m].cols()).cast<double>() - w[m].cast<double>());
    sum += (x.cast<double>() * e.transpose()).squaredNorm();
    outputs += static_cast<double>(w[m].rows());
  }
  return sum / static_cast<double>(x.rows()) / outputs;
}
using three_threads = backwards_executor<3>;
std::vector<matrix_view<const float>> views(const std::vector<matrix>& w) {
  std::vector<matrix_view<const float>> v;
  for (const matrix& m : w) v.emplace_back(view(m));
  return v;
}

/// AutoAWQ's search in float64 on one group, as its paper and code describe it: the loss of every ratio, by passing all tokens again.
std::vector<double> reference_losses(const std::vector<matrix>& w, const matrix& x, bool duo, Eigen::Index group) {
  const Eigen::Index n = x.cols();
  const Eigen::VectorXd x_mean = x.cast<double>().cwiseAbs().colwise().mean().transpose();
  Eigen::VectorXd w_mean = Eigen::VectorXd::Zero(n);
  double rows = 0;
  for (const matrix& m : w)
    for (Eigen::Index r = 0; r < m.rows(); ++r, ++rows)
      for (Eigen::Index g = 0; g < n; g += group) {
        const Eigen::VectorXd a = m.row(r).segment(g, std::min(group, n - g)).cast<double>().cwiseAbs().transpose();
        w_mean.segment(g, a.size()) += a / (a.maxCoeff() + 1e-6);
      }
  w_mean /= rows;
  std::vector<double> losses;
  for (int i = 0; i < 20; ++i) {
    const double ratio = i / 20.0;
    Eigen::VectorXd s(n);
    for (Eigen::Index c = 0; c < n; ++c)
      s[c] = std::max(1e-4, duo ? std::pow(x_mean[c], ratio) / (std::pow(w_mean[c], 1 - ratio) + 1e-4) : std::pow(x_mean[c], ratio));
    s /= std::sqrt(s.maxCoeff() * s.minCoeff());
    double sum = 0, outputs = 0;
    for (const matrix& m : w) {
      Eigen::MatrixXd q = m.cast<double>() * s.asDiagonal();
      for (Eigen::Index r = 0; r < m.rows(); ++r)
        for (Eigen::Index g = 0; g < n; g += group) {
          auto block = q.row(r).segment(g, std::min(group, n - g));
          const double low = std::min(0.0, block.minCoeff()), high = std::max(0.0, block.maxCoeff());
          const double scale = std::max(high - low, 1e-5) / 15, zero = std::clamp(std::nearbyint(-low / scale), 0.0, 15.0);
          for (Eigen::Index c = 0; c < block.size(); ++c)
            block[c] = (std::clamp(std::nearbyint(block[c] / scale) + zero, 0.0, 15.0) - zero) * scale;
        }
      q = q * s.cwiseInverse().asDiagonal();
      sum += (x.cast<double>() * (q - m.cast<double>()).transpose()).squaredNorm();
      outputs += static_cast<double>(m.rows());
    }
    losses.push_back(sum / static_cast<double>(x.rows()) / outputs);
  }
  return losses;
}
}  // namespace

TEST_CASE("the error of a group's outputs is that of passing every token again") {
  const matrix x = outlier_tokens(70, 205, 1);
  const output_error error(statistics_of(x).get<hessian>().matrix().cast<double>());
  serial_executor serial;
  const std::vector<matrix> w{normal_matrix(70, 205, 2), normal_matrix(3, 205, 3)};
  for (const float size : {1e-25f, 1.0f, 1e25f}) {
    const std::vector<matrix> changed{w[0] + size * normal_matrix(70, 205, 4), w[1] + size * normal_matrix(3, 205, 5)};
    const double expected = replayed_error(w, views(changed), x);
    CHECK(error(views(w), views(changed), serial) == doctest::Approx(expected).epsilon(1e-5));
  }
  CHECK(error(views(w), views(w), serial) == 0);
}

TEST_CASE("the search finds the losses and the ratio that AutoAWQ's and llm-awq's find in float64") {
  serial_executor serial;
  for (unsigned seed = 0; seed < 10; ++seed) {
    const matrix x = outlier_tokens(90, 160, 10 * seed);
    const std::vector<matrix> w{normal_matrix(48, 160, 10 * seed + 3), normal_matrix(80, 160, 10 * seed + 4) * 0.3f};
    for (const bool duo : {false, true}) {
      const auto found = search_scales<minmax>(spec_of<u4_g32_exact>, views(w), statistics_of(x), serial, {duo ? scaling::duo : scaling::activation, 20, {}});
      const std::vector<double> expected = reference_losses(w, x, duo, 32);
      REQUIRE(found.tried.size() == (duo ? 20 : 19));
      for (const scale_candidate& k : found.tried)  // a rounding near a tie may fall the other way in float
        CHECK(k.loss == doctest::Approx(expected[static_cast<std::size_t>(std::lround(k.ratio * 20))]).epsilon(2e-3));
      const auto least = std::min_element(expected.begin(), expected.end());
      REQUIRE(found.best.has_value());
      CHECK(std::lround(found.best->ratio * 20) == least - expected.begin());
      CHECK(found.best->duo == duo);
      CHECK(found.loss_after == doctest::Approx(*least).epsilon(2e-3));
      CHECK(found.loss_after < 0.8 * found.loss_before);  // outlier channels are what the method is for
    }
  }
}

TEST_CASE("no format loses by the search, with one thread or several") {
  const matrix x = outlier_tokens(64, 300, 5);
  const statistics stats = statistics_of(x);
  const std::vector<matrix> w{normal_matrix(67, 300, 6), normal_matrix(5, 300, 7)};
  serial_executor serial;
  three_threads wide;
  for_each_format(all_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const scale_search_options few{scaling::both, 4, {}};
    const auto a = search_scales(spec_of<F>, views(w), stats, serial, few), b = search_scales(spec_of<F>, views(w), stats, wide, few);
    CHECK(a.loss_after <= a.loss_before);
    CHECK(a.scales.empty() == !a.best.has_value());
    CHECK(a.scales == b.scales);
    CHECK(a.loss_after == b.loss_after);
  });
}

TEST_CASE("as a transform of a quantiser, its loss is that of the file's values") {
  const matrix x = outlier_tokens(120, 200, 8), w = normal_matrix(40, 200, 9);
  const statistics stats = statistics_of(x);
  serial_executor serial;
  const auto plain = quantiser<q3_g40, mse_search<20>>::quantise(w, stats);
  const auto scaled = quantiser<q3_g40, mse_search<20>, round_nearest, activation_aware_scaling>::quantise(w, stats);
  REQUIRE(scaled);
  REQUIRE(scaled->scales.size() == 200);
  matrix a(40, 200), b(40, 200);
  decode(plain->weights.view(), view(a));
  decode(scaled->weights.view(), view(b));
  for (Eigen::Index c = 0; c < 200; ++c) b.col(c) /= scaled->scales[static_cast<std::size_t>(c)];
  const auto found = search_scales<mse_search<20>>(spec_of<q3_g40>, views({w}), stats, serial);
  CHECK(found.scales == scaled->scales);
  CHECK(replayed_error({w}, views({a}), x) == doctest::Approx(found.loss_before).epsilon(1e-4));
  CHECK(replayed_error({w}, views({b}), x) == doctest::Approx(found.loss_after).epsilon(1e-4));
}

TEST_CASE("a loss of the caller's decides, and one that is not a number never wins") {
  const std::vector<matrix> w{normal_matrix(8, 64, 1), normal_matrix(4, 64, 2)};
  std::vector<float> magnitudes(64, 1.0f);
  magnitudes[3] = 20;
  serial_executor serial;
  int calls = 0;
  const auto with = [&](auto&& loss) { return search_scales(spec_of<q4_0>, views(w), magnitudes, loss, serial); };
  const auto last = with([&](consumer_group g) {
    CHECK((g.size() == 2 && g[0].rows == 8 && g[1].rows == 4 && g[1].cols == 64));
    return -static_cast<double>(calls++);
  });
  CHECK(calls == 1 + 19 + 20);
  CHECK((last.best && last.best->duo && last.best->ratio == 0.95f));
  CHECK(last.loss_before == 0);
  CHECK(last.loss_after == -39);
  const auto never = with([first = true](consumer_group) mutable { return std::exchange(first, false) ? 1.0 : std::nan(""); });
  CHECK((!never.best && never.scales.empty() && never.loss_after == 1.0));
  for (const scale_candidate& k : never.tried) CHECK(std::isinf(k.loss));
}

TEST_CASE("tied channels get one scale, which folds into grouped values exactly where it is a power of two") {
  // Two key-value heads of 3, six query heads: the output projection reads 18 channels that come from 6.
  const auto tied = grouped_query_channels(6, 2, 3);
  CHECK(tied == std::vector<std::uint32_t>{0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5});
  const matrix x = outlier_tokens(50, 18, 3);
  const std::vector<matrix> w{normal_matrix(30, 18, 4)};
  serial_executor serial;
  const auto found = search_scales(spec_of<q4_0>, views(w), statistics_of(x), serial, {scaling::both, 20, tied});
  REQUIRE(found.scales.size() == 18);
  for (std::size_t c = 0; c < 18; ++c) CHECK(found.scales[c] == found.scales[tied[c] < 3 ? tied[c] : tied[c] + 6]);
  const input_scales producer = producer_scales(found.scales, tied);
  REQUIRE(producer.size() == 6);
  for (std::size_t c = 0; c < 18; ++c) CHECK(found.scales[c] == producer[tied[c]]);
}

TEST_CASE("hostile statistics and weights have defined results") {
  serial_executor serial;
  const std::vector<matrix> w{normal_matrix(6, 96, 1)};
  const auto finite = [](const scale_search& f) {
    return std::all_of(f.scales.begin(), f.scales.end(), [](float s) { return s > 0 && std::isfinite(s) && std::isfinite(1 / s); });
  };
  const statistics none(96);
  for (const std::string_view name : {"q4_0", "q4_k", "u4_g32", "nf4", "mxfp4", "q2_k"}) {
    const format_spec& s = spec_of_id(*find_format(name));
    CAPTURE(std::string(name));
    const auto unseen = search_scales(s, views(w), none, serial);
    CHECK((unseen.scales.empty() && unseen.loss_before == 0 && unseen.loss_after == 0));
    const auto zero = search_scales(s, views(w), statistics_of(matrix::Zero(9, 96)), serial);
    CHECK((zero.scales.empty() && zero.loss_after == 0));

    matrix x = outlier_tokens(40, 96, 2);
    x.col(5).setZero();
    const auto dead = search_scales(s, views(w), statistics_of(x), serial);
    CHECK(finite(dead));
    CHECK(dead.loss_after <= dead.loss_before);
    for (const float bad : {std::nanf(""), INFINITY}) {
      x(3, 7) = bad;
      const auto f = search_scales(s, views(w), statistics_of(x), serial);
      CHECK(finite(f));
      CHECK(std::isfinite(f.loss_after));
      if (!f.scales.empty()) CHECK(f.scales[7] == 1.0f);
    }
    for (const float size : {0.0f, 1e-38f, 1e-20f, 1e20f, 1e37f}) {
      const matrix x2 = outlier_tokens(40, 96, 2);
      const auto f = search_scales(s, views({w[0] * size}), statistics_of(x2), serial);
      CHECK(finite(f));
      CHECK(f.loss_after <= f.loss_before);
    }
    for (const float size : {1e-30f, 1e30f}) {
      const auto f = search_scales(s, views(w), statistics_of(outlier_tokens(40, 96, 2) * size), serial);
      CHECK(finite(f));
      CHECK(f.loss_after <= f.loss_before);
    }
    CHECK(search_scales(s, views({matrix(0, 96)}), none, serial).scales.empty());
  }
}
