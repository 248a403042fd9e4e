// Error feedback against the equations it comes from, in float64: optimal brain surgery one column at a time, the reference's blocked loop,
// and brute force; and against Hessians that nobody should give it.
#include "../executors.hpp"
#include "matrices.hpp"
#include "reference_gptq.hpp"

#include <lowbit/quantise/by_id.hpp>

#include <doctest/doctest.h>

using namespace lowbit;
using namespace test;

namespace {

template <class F>
void for_each_coded_format(F&& f) {
  for (std::size_t i = 0; i < format_count; ++i)
    if (!all_formats::specs[i]->is_float()) {
      CAPTURE(std::string(all_formats::specs[i]->name));
      f(static_cast<format_id>(i), *all_formats::specs[i]);
    }
}

using three_threads = backwards_executor<3>;

/// Any fit in a format that is not registered.
template <class Fit, class Stats>
quantised feed(const format_spec& s, const matrix& w, const Stats& stats, const feedback_options& options) {
  serial_executor serial;
  auto q = detail::quantise_by<Fit, error_feedback>(s, view(w), stats, serial, options);
  REQUIRE(q);
  return *std::move(q);
}

layer_statistics statistics_of(const matrix& x) {
  layer_statistics s(static_cast<std::size_t>(x.cols()));
  s.add(view(x));
  return s;
}

}  // namespace

TEST_CASE("columns are rounded one by one, and after each the rest solves its least-squares problem") {
  // Optimal brain surgery without any factorisation: with the first k columns fixed, the others minimise e H eᵀ exactly.
  using format = asymmetric_f32<3, 8>;
  const matrix x = correlated_inputs(200, 8, 1), w = normal_matrix(40, 8, 2);
  const auto h = damped<double>(exact_hessian(x), 0.01);
  calibrated<hessian> stats(8);
  stats.add(view(x));
  const quantised got = feed<minmax>(spec_of<format>, w, stats, {.shrink = false, .order = column_order::natural, .headers = header_source::original, .guard = false});
  const matrix values = decoded(got.weights);
  int same = 0;
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    const Eigen::RowVectorXd given = w.row(r).cast<double>();
    const reference_grid<double> grid(given, 3);
    Eigen::RowVectorXd now = given;
    for (Eigen::Index k = 0; k < 8; ++k) {
      now(k) = grid(now(k));
      // Gradient of (now - given) H (now - given)ᵀ in the free columns is zero: H_ff (now - given)_f = -H_fk (now - given)_k.
      const Eigen::Index free = 7 - k;
      if (free == 0) break;
      const Eigen::VectorXd fixed = (now - given).head(k + 1).transpose();
      now.tail(free) = given.tail(free) - h.bottomRightCorner(free, free).ldlt().solve(h.bottomLeftCorner(free, k + 1) * fixed).transpose();
    }
    for (Eigen::Index c = 0; c < 8; ++c) same += std::fabs(values(r, c) - now(c)) < 1e-4;
  }
  CHECK(same >= 318);  // of 320: a value on the boundary of two codes may fall to either side
}

TEST_CASE("with the reference's options the result is that of the reference's loop in float64") {
  const auto compare = [&](const format_spec& format, Eigen::Index cols, unsigned seed) {
    CAPTURE(cols);
    CAPTURE(format.block);
    const matrix x = correlated_inputs(2 * cols, cols, seed), w = normal_matrix(24, cols, seed + 9);
    calibrated<hessian> stats(static_cast<std::size_t>(cols));
    stats.add(view(x));
    const quantised got = feed<minmax>(format, w, stats, {.shrink = false, .order = column_order::natural, .headers = header_source::spans, .guard = false});
    double loss = 0;
    const Eigen::MatrixXd h = exact_hessian(x), expected = reference_gptq<double>(w.cast<double>(), h, format.codes.bits(), format.block, 0.01, loss);
    const matrix rounded = decoded(got.weights);
    const Eigen::MatrixXd values = rounded.cast<double>();
    CHECK((values - w.cast<double>()).norm() == doctest::Approx((expected - w.cast<double>()).norm()).epsilon(1e-3));
    const double same = ((values - expected).array().abs() < 1e-3).cast<double>().mean();
    CHECK(same >= 0.999);
    // The loss is that of the columns, which is that of the whole: against the float64 loop, and against the definition.
    const Eigen::MatrixXd e = w.cast<double>() - values;
    CHECK((e * damped<double>(h, 0.01)).cwiseProduct(e).sum() == doctest::Approx(loss).epsilon(1e-3));
    CHECK(got.report.loss == doctest::Approx((e * h).cwiseProduct(e).sum()).epsilon(1e-4));
    CHECK(got.report.damping == 0.01);
    CHECK(got.report.attempts == 1);
    CHECK(got.report.nearest_rows == 0);
  };
  compare(spec_of<asymmetric_f32<4, 128>>, 256, 10);
  compare(spec_of<asymmetric_f32<3, 32>>, 320, 20);
  compare(spec_of<asymmetric_f32<2, 64>>, 300, 30);    // ragged
  compare(spec_of<asymmetric_f32<4, 256>>, 512, 40);   // groups of more than one span
  compare(spec_of<asymmetric_f32<4, 512>>, 512, 50);   // a scale for the whole row
  compare(spec_of<asymmetric_f32<3, 128>>, 97, 60);
  for (unsigned seed = 100; seed < 108; ++seed) compare(spec_of<asymmetric_f32<4, 32>>, 64 + static_cast<Eigen::Index>(seed % 4) * 50, seed);
}

TEST_CASE("four columns: between round to nearest and the best of all codes") {
  // All 8^4 codes are tried; feedback is greedy, so it misses the best, but it is never beyond it.
  using format = asymmetric_f32<3, 4>;
  const matrix x = correlated_inputs(50, 4, 3), w = normal_matrix(200, 4, 4);
  const Eigen::MatrixXd h = exact_hessian(x);
  calibrated<hessian> stats(4);
  stats.add(view(x));
  const quantised fed = feed<minmax>(spec_of<format>, w, stats, {.headers = header_source::original});
  const auto nearest = rtn<format, minmax>::quantise(w);
  double best = 0;
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    block_buffer buffer(spec_of<format>);
    minmax::fit(spec_of<format>, w.row(r).data(), 4, {}, buffer.fields());
    const grid g(spec_of<format>, buffer.fields());
    double least = INFINITY;
    for (unsigned codes = 0; codes < 4096; ++codes) {
      Eigen::RowVector4d e;
      for (unsigned c = 0; c < 4; ++c) e(c) = w(r, c) - g.value(codes >> (3 * c) & 7u, c);
      least = std::min(least, (e * h * e.transpose())(0));
    }
    best += least;
  }
  const double with = loss_of(w, decoded(fed.weights), h), without = loss_of(w, decoded(nearest->weights), h);
  CHECK(best <= with * (1 + 1e-6));
  CHECK(with < without);
}

TEST_CASE("the layer's error is below round to nearest's in every format, however columns are ordered and scales are fitted") {
  const matrix x = correlated_inputs(400, 300, 5), w = normal_matrix(20, 300, 6);
  const Eigen::MatrixXd h = exact_hessian(x);
  const layer_statistics stats = statistics_of(x);
  serial_executor serial;
  for_each_coded_format([&](format_id id, const format_spec& s) {
    const double nearest = loss_of(w, decoded(*quantise(id, method::rtn, view(w), serial)), h);
    for (const column_order order : {column_order::natural, column_order::group_aware, column_order::descending})
      for (const header_source headers : {header_source::updated, header_source::spans, header_source::original}) {
        CAPTURE(static_cast<int>(order));
        CAPTURE(static_cast<int>(headers));
        const auto q = quantise(id, method::gptq, view(w), stats, serial, {.shrink = false, .order = order, .headers = headers});
        REQUIRE(q);
        const double fed = loss_of(w, decoded(q->weights), h);
        CHECK(fed < (s.levels() <= 4 ? 0.95 : 0.5) * nearest);
        CHECK(q->report.loss == doctest::Approx(fed).epsilon(1e-3));
      }
  });
}

TEST_CASE("never above round to nearest: ragged blocks, inputs of any rank, every format") {
  serial_executor serial;
  std::mt19937 random(7);
  int cases = 0;
  for_each_coded_format([&](format_id id, const format_spec&) {
    for (int t = 0; t < 17; ++t, ++cases) {
      const Eigen::Index cols = 1 + static_cast<Eigen::Index>(random() % 200), tokens = 1 + static_cast<Eigen::Index>(random() % (t % 3 == 0 ? 8 : 300));
      matrix x = t % 2 == 0 ? correlated_inputs(tokens, cols, random()) : normal_matrix(tokens, cols, random());
      if (t % 5 == 0) x.col(cols - 1) = x.col(0);
      const matrix w = normal_matrix(3, cols, random());
      const Eigen::MatrixXd h = exact_hessian(x);
      const auto q = quantise(id, t % 2 == 0 ? method::gptq : method::gptq_imatrix, view(w), statistics_of(x), serial,
                              {.order = static_cast<column_order>(t % 3)});
      REQUIRE(q);
      const double fed = loss_of(w, decoded(q->weights), h), nearest = loss_of(w, decoded(*quantise(id, method::rtn, view(w), serial)), h);
      // Losses are compared in float32; what its rounding hides, in units of the whole output, is no loss.
      CHECK(fed <= nearest + 1e-6 * loss_of(w, matrix::Zero(3, cols), h));
    }
  });
  CHECK(cases >= 1000);
}

TEST_CASE("whatever the Hessian, a valid result and a report of what was done") {
  constexpr Eigen::Index n = 70;
  const matrix w = normal_matrix(5, n, 11), normal = normal_matrix(90, n, 12);
  struct hostile {
    const char* name;
    matrix x;
  };
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  std::vector<hostile> all;
  const auto add = [&](const char* name, const matrix& x) { all.push_back({name, x}); };
  const auto with = [&](auto change) {
    matrix x = normal;
    change(x);
    return x;
  };
  add("zero", matrix::Zero(4, n));
  add("one sample", normal.topRows(1));
  add("constant", matrix::Ones(40, n));
  add("duplicated columns", with([](matrix& x) { for (Eigen::Index c = 1; c < n; ++c) x.col(c) = x.col(c % 3); }));
  add("a dead column", with([](matrix& x) { x.col(4).setZero(); }));
  add("tiny", normal * 1e-15f);
  add("denormal", normal * 1e-21f);
  add("huge", normal * 1e15f);
  add("overflowing", normal * 1e19f);
  add("wildly uneven", with([](matrix& x) { for (Eigen::Index c = 0; c < n; ++c) x.col(c) *= std::pow(10.0f, static_cast<float>(c % 31 - 15)); }));
  add("a NaN", with([&](matrix& x) { x(3, 9) = nan; }));
  add("an infinity", with([&](matrix& x) { x(3, 9) = infinity; }));
  add("all NaN", matrix::Constant(3, n, nan));
  add("all infinite", matrix::Constant(3, n, infinity));
  serial_executor serial;
  for (const hostile& c : all) {
    CAPTURE(c.name);
    const layer_statistics stats = statistics_of(c.x);
    for (const char* format : {"u4_g32", "q4_0", "q4_k", "iq4_nl", "nf4", "mxfp4", "nvfp4", "s2_g128"})
      for (const double damping : {0.01, 0.0, std::nan(""), 1e300}) {
        CAPTURE(format);
        CAPTURE(damping);
        const auto q = quantise(*find_format(format), method::gptq, view(w), stats, serial, {.damping = damping, .shrink = damping == 0.01});
        REQUIRE(q);
        const matrix values = decoded(q->weights);
        CHECK(values.allFinite());
        CHECK((values - w).norm() < 4 * w.norm());
        CHECK(std::isfinite(q->report.loss));
        CHECK(q->report.attempts <= 12);
      }
  }
  const auto report = [&](const char* name, const feedback_options& how = {}) {
    for (const hostile& c : all)
      if (std::string_view(c.name) == name) return quantise(*find_format("u4_g32"), method::gptq, view(w), statistics_of(c.x), serial, how)->report;
    return rounding_report{};
  };
  CHECK(report("zero").no_data);
  CHECK(report("zero").nearest_rows == 5);
  CHECK(report("all NaN").no_data);
  CHECK(report("a dead column").dead_channels == 1);
  CHECK(report("a NaN").dead_channels == 1);
  CHECK(report("an infinity").dead_channels == 1);
  CHECK(report("tiny").dead_channels == 0);
  CHECK(report("one sample").damping == 70);
  CHECK(report("one sample", {.shrink = false}).damping == 0.01);
  CHECK(report("one sample", {.damping = 0, .shrink = false}).attempts > 1);
  CHECK(report("one sample", {.damping = 0, .shrink = false}).damping >= 0.01);
  CHECK(report("overflowing").no_data);  // every sum of squares is infinite
}

TEST_CASE("weights make up for inputs that have drifted") {
  // |W x - W' x̂|² is what counts; without rounding its minimum is float64's least-squares solution.
  constexpr Eigen::Index n = 130;
  const matrix x = correlated_inputs(600, n, 31), drifted = x + 0.3f * correlated_inputs(600, n, 31).rowwise().reverse() + 0.1f * normal_matrix(600, n, 32);
  const matrix w = normal_matrix(100, n, 33);
  const layer_statistics stats = statistics_of(drifted);
  input_drift drift(n);
  serial_executor serial;
  const format_id q8 = id_of<q8_0>();
  drift.add(view(x), view(drifted), serial);
  const auto output_error = [&](const matrix& rounded) { return (w.cast<double>() * x.cast<double>().transpose() - rounded.cast<double>() * drifted.cast<double>().transpose()).squaredNorm(); };
  for (const column_order order : {column_order::natural, column_order::group_aware}) {
    const auto with = quantise(q8, method::gptq, view(w), stats, serial, {.shrink = false, .order = order, .drift = &drift, .drift_strength = 1});
    const auto some = quantise(q8, method::gptq, view(w), stats, serial, {.shrink = false, .order = order, .drift = &drift});
    const auto without = quantise(q8, method::gptq, view(w), stats, serial, {.shrink = false, .order = order});
    const Eigen::MatrixXd d = drifted.cast<double>(), h = damped<double>(exact_hessian(drifted), 0.01);
    const Eigen::MatrixXd best = w.cast<double>() + w.cast<double>() * (2.0 / 600) * (x.cast<double>() - d).transpose() * d * h.inverse();
    const double least = (w.cast<double>() * x.cast<double>().transpose() - best * d.transpose()).squaredNorm();
    CHECK((decoded(with->weights).cast<double>() - best).norm() < 0.02 * best.norm());
    CHECK(output_error(decoded(with->weights)) == doctest::Approx(least).epsilon(0.01));
    CHECK(output_error(decoded(with->weights)) < output_error(decoded(some->weights)));
    CHECK(output_error(decoded(some->weights)) < output_error(decoded(without->weights)));
  }
  input_drift broken(n);
  broken.add(view(matrix::Constant(2, n, std::nanf("")).eval()), view(matrix::Ones(2, n).eval()), serial);
  const auto ignored = quantise(q8, method::gptq, view(w), stats, serial, {.drift = &broken}), plain = quantise(q8, method::gptq, view(w), stats, serial);
  CHECK(std::equal(ignored->weights.bytes().begin(), ignored->weights.bytes().end(), plain->weights.bytes().begin(), plain->weights.bytes().end()));
}

TEST_CASE("a layer without samples is rounded to nearest, byte for byte; a dead channel does not move the others") {
  const matrix w = normal_matrix(7, 300, 13);
  serial_executor serial;
  for_each_coded_format([&](format_id id, const format_spec&) {
    const auto q = quantise(id, method::gptq, view(w), layer_statistics(300), serial);
    const auto nearest = quantise(id, method::rtn, view(w), serial);
    REQUIRE(q);
    CHECK(std::equal(q->weights.bytes().begin(), q->weights.bytes().end(), nearest->bytes().begin(), nearest->bytes().end()));
  });
  matrix x = correlated_inputs(400, 64, 14);
  x.col(5).setZero();
  matrix a = normal_matrix(4, 64, 15), b = a;
  a.col(5).setConstant(0.1f);  // small enough to leave the scales alone
  b.col(5).setConstant(-0.05f);
  const auto values = [&](const matrix& m) {
    return decoded(quantise(*find_format("q8_0"), method::gptq, view(m), statistics_of(x), serial, {.headers = header_source::original})->weights);
  };
  const matrix difference = values(a) - values(b);
  CHECK(difference.leftCols(5).isZero(0));
  CHECK(difference.rightCols(58).isZero(0));
  CHECK(!difference.col(5).isZero(0));
  CHECK((values(b).col(5) - b.col(5)).norm() < 0.01f * b.norm());  // it is rounded all the same: data that were not seen may excite it
}

TEST_CASE("the same bytes for every executor; empty matrices; statistics of another layer") {
  const matrix x = correlated_inputs(300, 333, 16), w = normal_matrix(211, 333, 17);
  serial_executor serial;
  three_threads wide;
  layer_statistics one(333), many(333);
  one.add(view(x));
  many.add(view(x), wide);
  for_each_coded_format([&](format_id id, const format_spec& s) {
    if (s.block % 32 != 0 || s.name.find("_g") != s.name.npos) return;
    const auto a = quantise(id, method::gptq, view(w), one, serial), b = quantise(id, method::gptq, view(w), many, wide);
    REQUIRE(a);
    CHECK(std::equal(a->weights.bytes().begin(), a->weights.bytes().end(), b->weights.bytes().begin(), b->weights.bytes().end()));
    CHECK(a->report.loss == b->report.loss);
  });
  for (std::size_t i = 0; i < format_count; ++i) {
    const auto id = static_cast<format_id>(i);
    CHECK(quantise(id, method::gptq, matrix_view<const float>(nullptr, 0, 333), one, serial)->weights.bytes().empty());
    CHECK(quantise(id, method::gptq, matrix_view<const float>(nullptr, 5, 0), layer_statistics(0), serial)->weights.bytes().empty());
    const auto wrong = quantise(id, method::gptq, view(w), layer_statistics(332), serial);
    REQUIRE(!wrong);
    CHECK(wrong.error().kind == errc::shape);
    CHECK(wrong.error().message == "statistics of 332 channels for a matrix with 333 columns");
    CHECK(quantise(id, method::gptq, view(w), serial).error().kind == errc::unsupported);
  }
  CHECK(find_method("gptq") == method::gptq);
  CHECK(!find_method("gptq2"));
}

TEST_CASE("the same bytes whatever the compiler") {
  // The expected numbers are one compiler's: the test is that the others agree. Rows of sse2, which every x86-64 processor has.
  const kernel::unit& unit = kernel::best_unit();
  if (std::string_view(unit.name) != "sse2") {
    MESSAGE("skipped: runs with LOWBIT_ARCH=sse2");
    return;
  }
  std::uint32_t state = 1;
  const auto values = [&](Eigen::Index rows, Eigen::Index cols) {  // no library's distribution, no sum that may be fused
    return matrix::NullaryExpr(rows, cols, [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
    }).eval();
  };
  matrix x = values(500, 320), w = values(33, 320);
  for (Eigen::Index c = 0; c < 320; c += 7) x.col(c) *= 8;
  for (Eigen::Index c = 1; c < 320; c += 3) x.col(c) += x.col(c - 1);
  serial_executor serial;
  const layer_statistics about = statistics_of(x);
  const auto hash_of = [&](const char* format, method how) {
    const auto q = quantise(*find_format(format), how, view(w), about, serial);
    REQUIRE(q);
    std::uint64_t h = 0xcbf29ce484222325u;  // FNV-1a
    for (std::size_t i = 0; i < q->weights.bytes().size(); ++i) h = (h ^ q->weights.bytes()[i]) * 0x100000001b3u;
    return h;
  };
  CHECK(hash_of("u4_g128", method::gptq) == 0x8c055782878d62d7u);
  CHECK(hash_of("u3_g32", method::gptq_imatrix) == 0x61eb3c6a424e4193u);
  CHECK(hash_of("q4_k", method::gptq) == 0x16305d6b3ef6390cu);
  CHECK(hash_of("q3_k", method::gptq_imatrix) == 0x2cb38c382068f84bu);
  CHECK(hash_of("mxfp4", method::gptq) == 0xf744677e43a34f55u);
  CHECK(hash_of("iq4_nl", method::imatrix) == 0x1d724efc3f72c71du);
  CHECK(hash_of("nf4", method::clip) == 0x4afd2f6f20323f79u);
  CHECK(hash_of("s4_g64", method::hqq) == 0x88251f10b0d54e73u);
}
