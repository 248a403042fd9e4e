// Merging, survival and closest matrices of low rank against float64: outputs token by token, and the paper's closed form.
#include "../kernel/random_weights.hpp"
#include "../quantise/matrices.hpp"

#include <lowbit/adapt/closest_low_rank.hpp>
#include <lowbit/adapt/merge_offsets.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <limits>

using namespace lowbit;
using ::test::matrix;

namespace {

low_rank_factors factors(Eigen::Index rows, Eigen::Index cols, Eigen::Index rank, float scale, unsigned seed) {
  const matrix a = ::test::normal_matrix(rank, cols, seed), b = ::test::normal_matrix(rows, rank, seed + 1);
  return {static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), static_cast<std::size_t>(rank), {a.data(), a.data() + a.size()}, {b.data(), b.data() + b.size()}, scale};
}

Eigen::MatrixXd product_of(const low_rank_factors& f) {
  return static_cast<double>(f.scale) * detail::as_rows(f.b_view()).cast<double>() * detail::as_rows(f.a_view()).cast<double>();
}

matrix merged_with(matrix w, const low_rank_factors& f) {
  serial_executor serial;
  merge(f, view(w), serial);
  return w;
}

}  // namespace

TEST_CASE("merged weights are the sum, rounded once, and several adapters are one") {
  const matrix w = ::test::normal_matrix(19, 40, 1);
  const low_rank_factors f = factors(19, 40, 3, 0.25f, 2), g = factors(19, 40, 5, -2.0f, 4);
  const matrix m = merged_with(w, f);
  const Eigen::MatrixXd expected = w.cast<double>() + product_of(f);
  for (Eigen::Index i = 0; i < m.size(); ++i) REQUIRE(m(i / 40, i % 40) == doctest::Approx(expected(i / 40, i % 40)).epsilon(1e-7));
  const std::vector<low_rank_factors> both{f, g};
  const low_rank_factors sum = sum_of(both);
  CHECK(sum.rank == 8);
  CHECK((product_of(sum) - product_of(f) - product_of(g)).cwiseAbs().maxCoeff() < 1e-5);
}

TEST_CASE("survival is what projecting the layer's outputs, token by token, gives") {
  serial_executor serial;
  const Eigen::Index rows = 70, cols = 96;
  const matrix base = ::test::normal_matrix(rows, cols, 1), x = ::test::correlated_inputs(50, cols, 2);
  const low_rank_factors f = factors(rows, cols, 4, 0.02f, 3);
  const matrix merged = merged_with(base, f);
  const auto packed = rtn<q4_0>::quantise(merged);
  REQUIRE(packed.ok());
  const matrix quantised = ::test::decoded(packed->weights);
  const Eigen::MatrixXd delta = merged.cast<double>() - base.cast<double>(), after = quantised.cast<double>() - base.cast<double>();
  const hessian h = ::test::hessian_of(x);
  for (const bool known : {false, true}) {
    CAPTURE(known);
    const Eigen::MatrixXd inputs = known ? Eigen::MatrixXd(x.cast<double>()) : Eigen::MatrixXd::Identity(cols, cols);
    const Eigen::MatrixXd wanted = inputs * delta.transpose(), got = inputs * after.transpose();
    const survival s = measure_survival(view(merged), view(quantised), f, known ? &h : nullptr, serial);
    CHECK(s.by_inputs == known);
    CHECK(s.share == doctest::Approx(got.cwiseProduct(wanted).sum() / wanted.squaredNorm()).epsilon(1e-4));
    CHECK(s.noise == doctest::Approx((got - wanted).norm() / wanted.norm()).epsilon(1e-4));
  }
}

TEST_CASE("survival where there is nothing to measure by") {
  serial_executor serial;
  const matrix base = ::test::normal_matrix(8, 32, 1);
  low_rank_factors f = factors(8, 32, 2, 1.0f, 3);
  const matrix merged = merged_with(base, f);
  const hessian unseen(32);
  CHECK(measure_survival(view(merged), view(base), f, &unseen, serial).share == doctest::Approx(0).scale(1));
  CHECK(!measure_survival(view(merged), view(base), f, &unseen, serial).by_inputs);
  CHECK(measure_survival(view(merged), view(merged), f, nullptr, serial).share == 1.0);
  matrix dead = ::test::normal_matrix(10, 32, 5);  // inputs that the adapter does not look at
  dead.leftCols(16).setZero();
  for (std::size_t k = 0; k < f.rank; ++k) std::fill(f.a.begin() + static_cast<std::ptrdiff_t>(k * 32 + 16), f.a.begin() + static_cast<std::ptrdiff_t>(k * 32 + 32), 0.0f);
  const matrix other = merged_with(base, f);
  const hessian elsewhere = ::test::hessian_of(dead);
  const survival s = measure_survival(view(other), view(base), f, &elsewhere, serial);
  CHECK(!s.by_inputs);
  CHECK(s.share == doctest::Approx(0).scale(1));
  std::fill(f.b.begin(), f.b.end(), 0.0f);
  CHECK(measure_survival(view(base), view(base), f, nullptr, serial).share == 1.0);
  matrix bad = dead;
  bad(0, 0) = std::numeric_limits<float>::quiet_NaN();
  const hessian poisoned = ::test::hessian_of(bad);
  CHECK(!measure_survival(view(merged), view(base), factors(8, 32, 2, 1.0f, 3), &poisoned, serial).by_inputs);
}

TEST_CASE("error feedback keeps more than rounding to nearest of an adapter whose changes are below half a step, on a base that was on the grid") {
  serial_executor serial;
  const Eigen::Index rows = 96, cols = 128;
  const matrix x = ::test::correlated_inputs(600, cols, 2);
  const auto on_grid = rtn<q4_0>::quantise(::test::normal_matrix(rows, cols, 1));
  REQUIRE(on_grid.ok());
  const matrix base = ::test::decoded(on_grid->weights);
  const low_rank_factors f = factors(rows, cols, 2, 0.05f, 3);  // changes of 0.07, where half a step is 0.15
  const matrix merged = merged_with(base, f);
  calibrated<hessian> about(static_cast<std::size_t>(cols));
  about.add(view(x));
  const auto share = [&](const result<quantised>& q) {
    REQUIRE(q.ok());
    const matrix values = ::test::decoded(q->weights);
    return measure_survival(view(merged), view(values), f, &about.get<hessian>(), serial);
  };
  const survival nearest = share(rtn<q4_0>::quantise(merged)), feedback = share(gptq<q4_0>::quantise(merged, about));
  INFO("nearest " << nearest.share << ", noise " << nearest.noise << "; feedback " << feedback.share << ", noise " << feedback.noise);
  CHECK(nearest.is_weak());
  CHECK(!feedback.is_weak());
  CHECK(feedback.noise < nearest.noise);
  CHECK(survival{.share = std::numeric_limits<double>::quiet_NaN()}.is_weak());
}

TEST_CASE("the closest matrix of low rank is the one of EoRA's eigenvalues, and nothing of its rank is closer") {
  serial_executor serial;
  const Eigen::Index cols = 48;
  const matrix x = ::test::correlated_inputs(300, cols, 7);
  const hessian h = ::test::hessian_of(x);
  Eigen::MatrixXd exact = ::test::exact_hessian(x);
  exact.diagonal().array() += 0.01 * exact.diagonal().mean();
  for (const Eigen::Index rows : {20, 48, 130}) {
    CAPTURE(rows);
    const matrix lost = ::test::normal_matrix(rows, cols, 8);
    for (const bool known : {false, true}) {
      CAPTURE(known);
      const Eigen::MatrixXd metric = known ? exact : Eigen::MatrixXd::Identity(cols, cols);
      const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(metric);
      const Eigen::MatrixXd v = eigen.eigenvectors();
      const Eigen::VectorXd root = eigen.eigenvalues().cwiseSqrt();
      const Eigen::JacobiSVD<Eigen::MatrixXd> svd(lost.cast<double>() * v * root.asDiagonal(), Eigen::ComputeThinU | Eigen::ComputeThinV);
      const auto loss = [&](const Eigen::MatrixXd& ba) {
        const Eigen::MatrixXd e = lost.cast<double>() - ba;
        return (e * metric).cwiseProduct(e).sum();
      };
      for (const std::size_t rank : {1u, 4u, 16u}) {
        CAPTURE(rank);
        const low_rank_factors f = closest_low_rank(view(lost), known ? &h : nullptr, serial, {.rank = rank, .tolerance = 1e-9, .iterations = 500});
        CHECK(f.rank == rank);
        const auto r = static_cast<Eigen::Index>(rank);
        const Eigen::MatrixXd paper = svd.matrixU().leftCols(r) * svd.singularValues().head(r).asDiagonal() * svd.matrixV().leftCols(r).transpose() *
                                      root.cwiseInverse().asDiagonal() * v.transpose();
        const double rest = svd.singularValues().tail(svd.singularValues().size() - r).squaredNorm();
        CHECK(loss(paper) == doctest::Approx(rest).epsilon(1e-9));
        CHECK(loss(product_of(f)) == doctest::Approx(rest).epsilon(1e-3));
        const low_rank_factors quick = closest_low_rank(view(lost), known ? &h : nullptr, serial, {.rank = rank});
        CHECK(loss(product_of(quick)) < 1.02 * rest);
      }
    }
  }
}

TEST_CASE("matrices of low rank at the ends: all of it, none of it, nothing lost, channels that nobody saw") {
  serial_executor serial;
  const matrix lost = ::test::normal_matrix(10, 33, 1);
  CHECK((product_of(closest_low_rank(view(lost), nullptr, serial, {.rank = 99})) - lost.cast<double>()).cwiseAbs().maxCoeff() < 1e-4);
  CHECK(closest_low_rank(view(lost), nullptr, serial, {.rank = 99}).rank == 10);
  CHECK(closest_low_rank(view(lost), nullptr, serial, {.rank = 0}).rank == 0);
  const matrix zero = matrix::Zero(10, 33);
  const low_rank_factors nothing = closest_low_rank(view(zero), nullptr, serial, {.rank = 3});
  CHECK(product_of(nothing).isZero());
  matrix x = ::test::normal_matrix(50, 33, 2);
  x.col(5).setZero();
  const hessian h = ::test::hessian_of(x);
  const low_rank_factors f = closest_low_rank(view(lost), &h, serial, {.rank = 99});
  CHECK((product_of(f) - lost.cast<double>()).cwiseAbs().maxCoeff() < 1e-3);
}

namespace {
/// q4_1's idea with an offset in float32, in blocks that do not divide the row.
struct offsets_f32 {
  static constexpr format_spec spec = [] {
    format_spec s{};
    s.name = "offsets_f32";
    s.block = 20;
    s.bytes = 18;
    s.scale = {number::f32, 0};
    s.minimum = {number::f32, 4};
    s.codes.planes[0] = {4, 0, byte(8), {{20}, {4}}};
    return s;
  }();
};

/// An adapter whose A is the same over every block.
low_rank_factors pooled(std::size_t rows, std::size_t cols, std::size_t block, const std::vector<std::uint32_t>& inputs, float scale) {
  low_rank_factors f = factors(static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(cols), 3, scale, 9);
  const std::vector<float> random = f.a;
  for (std::size_t k = 0; k < f.rank; ++k)
    for (std::size_t c = 0; c < cols; ++c) f.a[k * cols + (inputs.empty() ? c : inputs[c])] = random[k * cols + c / block];
  return f;
}
}  // namespace

TEST_CASE("an adapter that is pooled over blocks goes into their offsets, and codes stay") {
  std::vector<std::uint32_t> order(64);
  for (std::uint32_t c = 0; c < 64; ++c) order[c] = (c * 37 + 11) % 64;
  for (const format_spec* s : {&spec_of<q4_1>, &spec_of<q5_1>, &spec_of<offsets_f32>})
    for (const bool reordered : {false, true}) {
      CAPTURE(std::string(s->name));
      CAPTURE(reordered);
      packed_matrix w = lowbit::test::random_blocks(*s, 7, 64, 3);
      if (reordered) {
        w.set_inputs(order);
        w.set_factor(0.5);
      }
      const matrix before = ::test::decoded(w);
      const low_rank_factors f = pooled(7, 64, s->block, w.inputs(), 0.125f);
      const auto rounding = merge_offsets(f, w);
      REQUIRE(rounding.ok());
      const Eigen::MatrixXd error = ::test::decoded(w).cast<double>() - before.cast<double>() - product_of(f);
      // Beyond the offsets' own rounding only that of decoding two float32 numbers of this size.
      CHECK(error.cwiseAbs().maxCoeff() <= *rounding + 4e-6);
      CHECK(*rounding <= (s->minimum.type == number::f32 ? 1e-6 : 4e-3));
    }
}

TEST_CASE("what does not go into offsets is refused, and the weights stay") {
  packed_matrix w = lowbit::test::random_blocks(spec_of<q4_1>, 4, 64, 3), k = lowbit::test::random_blocks(spec_of<q4_k>, 4, 256, 3);
  const std::vector<std::uint8_t> before(w.bytes().begin(), w.bytes().end());
  const auto untouched = [&] { return std::equal(before.begin(), before.end(), w.bytes().begin()); };
  const auto uneven = merge_offsets(factors(4, 64, 2, 1.0f, 1), w);
  REQUIRE(!uneven.ok());
  CHECK(uneven.error().message.find("pooled over blocks of 32") != std::string::npos);
  CHECK(untouched());
  CHECK(!merge_offsets(pooled(4, 64, 32, {}, 1e6f), w).ok());  // past float16
  CHECK(untouched());
  const auto shared = merge_offsets(pooled(4, 256, 256, {}, 1.0f), k);
  REQUIRE(!shared.ok());
  CHECK(shared.error().kind == errc::unsupported);
  CHECK(find_unpooled(pooled(4, 64, 32, {}, 1.0f), 32) == std::nullopt);
  CHECK(find_unpooled(pooled(4, 64, 32, {}, 1.0f), 64) == std::optional<std::size_t>(0));
}
