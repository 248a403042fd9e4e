// Fits against what they promise: errors in their own norm by brute force, quantiles against published definitions, and hostile statistics.
#include "hard_weights.hpp"
#include "matrices.hpp"

#include <lowbit/quantise/clip.hpp>
#include <lowbit/quantise/half_quadratic.hpp>
#include <lowbit/quantise/importance.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;
using namespace test;

namespace {
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
struct u4_free {  // an offset that is a free float32
  static constexpr format_spec spec{.name = "u4_free", .block = 32, .bytes = 24, .codes = {{plane{4, 0, byte(8), {{32}, {4}}}}},
                                    .scale = {number::f32, 0}, .minimum = {number::f32, 4}};
};
using own_formats = detail::concat<bitsandbytes_formats, uniform_formats, format_list<q3_g40>>::type;  // ggml has none of them

matrix heavy_matrix(Eigen::Index rows, Eigen::Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::student_t_distribution<float> heavy(4);
  return matrix::NullaryExpr(rows, cols, [&] { return heavy(random); });
}
/// Inputs whose channels are correlated and of very different size.
matrix uneven_inputs(Eigen::Index tokens, Eigen::Index channels, unsigned seed) {
  matrix x = normal_matrix(tokens, channels, seed);
  for (Eigen::Index c = 0; c < channels; ++c) {
    if (c > 0) x.col(c) += 0.5f * x.col(c - 1);
    x.col(c) *= c % 7 == 0 ? 8.0f : 0.5f;
  }
  return x;
}
double weighted_error(const matrix& q, const matrix& w, const Eigen::VectorXf& importance) {
  return ((q - w).cast<double>().array().square().rowwise() * importance.transpose().cast<double>().array()).sum();
}
double mean_magnitude(const matrix& e) { return e.cast<double>().cwiseAbs().mean(); }
}  // namespace

TEST_CASE("importance-weighted least squares never loses its own error against the whole range, and gains where few levels are") {
  const matrix w = heavy_matrix(12, 400, 1), x = uneven_inputs(64, 400, 2);
  calibrated<channel_importance> stats(400);
  stats.add(view(x));
  const Eigen::VectorXf importance = stats.get<channel_importance>().mean();
  for_each_format(own_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const auto whole = rtn<F, minmax>::quantise(w), fitted = quantiser<F, importance_weighted>::quantise(w, stats);
    const double before = weighted_error(decoded(whole->weights), w, importance), after = weighted_error(decoded(fitted->weights), w, importance);
    CHECK(after <= before * (1 + 1e-12));
    if (spec_of<F>.codes.bits() <= 4) CHECK(after < 0.95 * before);
    // Nor against the unweighted search, which minds the wrong channels.
    const auto searched = rtn<F, mse_search<20>>::quantise(w);
    CHECK(after < weighted_error(decoded(searched->weights), w, importance));
  });
}

TEST_CASE("GGUF's types use the importance, or do not where ggml does not") {
  const matrix w = heavy_matrix(6, 512, 3), x = uneven_inputs(64, 512, 4);
  calibrated<channel_importance> stats(512);
  stats.add(view(x));
  const Eigen::VectorXf importance = stats.get<channel_importance>().mean();
  for_each_format(gguf_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const auto plain = rtn<F>::quantise(w), fitted = quantiser<F, importance_weighted>::quantise(w, stats);
    if constexpr (kernel::ggml::weighted<F>) {
      CHECK(weighted_error(decoded(fitted->weights), w, importance) < weighted_error(decoded(plain->weights), w, importance));
      // The same bytes as block by block, with the mean square of the whole row.
      std::vector<std::uint8_t> block(spec_of<F>.bytes);
      block_parts<F> parts;
      ggml_quantise_block<F>(w.data() + 512 + spec_of<F>.block, parts, importance.data() + spec_of<F>.block, mean_square(w.data() + 512, 512));
      write_block<F>(parts, block.data());
      if (spec_of<F>.block < 512) CHECK(std::equal(block.begin(), block.end(), fitted->weights.row(1) + spec_of<F>.bytes));
    } else {
      CHECK(std::equal(plain->weights.bytes().begin(), plain->weights.bytes().end(), fitted->weights.bytes().begin()));
    }
  });
}

TEST_CASE("no importance, however absurd, makes a scale that is not a number") {
  const matrix w = heavy_matrix(2, 512, 5);
  const auto fit_all = [&](const std::vector<float>& importance, double at_most, const char* what) {
    CAPTURE(std::string(what));
    input_statistics about;
    about.importance = importance.data();
    for (const format_spec* s : all_formats::specs) {
      if (s->is_float()) continue;
      CAPTURE(std::string(s->name));
      double error = 0, size = 0;
      block_buffer buffer(*s);
      for (std::size_t at = 0; at < 512; at += s->block) {
        const std::size_t n = std::min<std::size_t>(s->block, 512 - at);
        input_statistics here = about.from(at);
        here.row_mean_square = mean_square(w.data(), 512);
        const bool has_codes = importance_weighted::fit(*s, w.data() + at, n, here, buffer.fields());
        const grid g(*s, buffer.fields());
        for (std::size_t i = 0; i < n; ++i) {
          const double v = w.data()[at + i], q = static_cast<double>(g.value(has_codes ? buffer.fields().codes[i] : g.code(w.data()[at + i], i), i));
          error += (v - q) * (v - q);
          size += v * v;
        }
      }
      CHECK(std::isfinite(error));
      CHECK(error < at_most * size);
    }
  };
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  // One-bit codes of heavy tails leave nearly everything; a weight that does not count may be anything.
  fit_all(std::vector<float>(512, 0.0f), 1.5, "all zero");
  fit_all(std::vector<float>(512, -1.0f), 1.5, "negative");
  fit_all(std::vector<float>(512, std::nanf("")), 1.5, "NaN");
  fit_all(std::vector<float>(512, INFINITY), 1.5, "infinite");
  fit_all(std::vector<float>(512, most), 1.5, "the largest number");
  fit_all(std::vector<float>(512, least), 1.5, "the smallest number");
  std::vector<float> mixed(512, 0.0f);
  for (std::size_t i = 0; i < 512; ++i) mixed[i] = i % 64 < 32 ? 0.0f : i % 3 == 0 ? most : 1.0f;
  fit_all(mixed, 1e9, "zero sub-blocks beside huge ones");
  for (std::size_t i = 0; i < 512; ++i) mixed[i] = i % 5 == 0 ? -most : i % 5 == 1 ? least : i % 5 == 2 ? std::nanf("") : 0.0f;
  fit_all(mixed, 1.5, "everything at once");
  for (std::size_t i = 0; i < 512; ++i) mixed[i] = i == 100 ? 1.0f : 0.0f;
  fit_all(mixed, 1e9, "a single channel");
}

TEST_CASE("importance is mended only where it is unusable") {
  float out[8];
  const float good[] = {1, 0, 3, 0x1p50f, 0.25f, 0, 0, 2};
  CHECK(!mend_importance(good, 8, 4, out));
  CHECK(std::equal(good, good + 8, out));
  const float half[] = {0, 0, 0, 0, 0.5f, 0, 4, 2};
  CHECK(mend_importance(half, 8, 4, out));
  const float expected[] = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0, 4, 2};
  CHECK(std::equal(expected, expected + 8, out));
  const float huge[] = {0x1p100f, 0x1.8p99f, 0, 0x1p98f, 0, 0, 0, 0x1p90f};
  CHECK(mend_importance(huge, 8, 4, out));
  const float scaled[] = {1, 0.75f, 0, 0.25f, 0, 0, 0, 0x1p-10f};
  CHECK(std::equal(scaled, scaled + 8, out));
}

TEST_CASE("half-quadratic fits never lose in mean |error| on one-level formats, and gain on asymmetric ones") {
  const matrix w = heavy_matrix(12, 400, 6);
  for_each_format(own_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const double before = mean_magnitude(decoded(rtn<F, minmax>::quantise(w)->weights) - w);
    const double after = mean_magnitude(decoded(rtn<F, half_quadratic<>>::quantise(w)->weights) - w);
    CHECK(after <= before * (1 + 1e-12));
  });
  // Scales and codes of two levels are rounded afterwards; on the whole it still pays.
  CHECK(mean_magnitude(decoded(rtn<q4_1, half_quadratic<>>::quantise(w)->weights) - w) < 0.99 * mean_magnitude(decoded(rtn<q4_1, minmax>::quantise(w)->weights) - w));
  CHECK(mean_magnitude(decoded(rtn<q2_k, half_quadratic<>>::quantise(w)->weights) - w) < 0.99 * mean_magnitude(decoded(rtn<q2_k, minmax>::quantise(w)->weights) - w));
}

TEST_CASE("a half-quadratic step is the authors': the zero moves as a float64 transcription of the equations says") {
  // One group in a format whose offset is a free float32: 20 steps, the best iterate by mean |error|.
  const matrix w = heavy_matrix(20, 32, 7);
  for (Eigen::Index r = 0; r < 20; ++r) {
    const Eigen::ArrayXd x = w.row(r).cast<double>();
    const double scale = 15 / (x.maxCoeff() - x.minCoeff());
    double zero = -x.minCoeff() * scale, least = 1e300, last = 1e300;
    std::vector<std::pair<double, double>> iterates;  // offset, mean |error|
    for (int i = 0; i < 21; ++i) {
      const Eigen::ArrayXd q = (x * scale + zero).unaryExpr([](double v) { return std::nearbyint(std::clamp(v, 0.0, 15.0)); });
      const Eigen::ArrayXd e = x - (q - zero) / scale;
      const double error = e.abs().mean();
      iterates.emplace_back(-zero / scale, error);
      least = std::min(least, error);
      if (!(error < last)) break;
      last = error;
      const Eigen::ArrayXd shrunk = e.unaryExpr([](double v) { return v == 0 ? 0 : std::copysign(std::max(0.0, std::fabs(v) - std::pow(std::fabs(v), -0.3) / 10), v); });
      zero = (q - (x - shrunk) * scale).mean();
    }
    block_buffer buffer(spec_of<u4_free>);
    half_quadratic<>::fit(spec_of<u4_free>, w.data() + r * 32, 32, {}, buffer.fields());
    CHECK(static_cast<double>(std::bit_cast<float>(*buffer.fields().scale)) == doctest::Approx(1 / scale).epsilon(1e-6));
    // Mean |error| does not change at all while as many errors are positive as negative, so several iterates may be the best.
    const double minimum = std::bit_cast<float>(*buffer.fields().minimum);
    CHECK(std::any_of(iterates.begin(), iterates.end(), [&](const auto& it) { return it.second <= least * (1 + 1e-6) && std::fabs(it.first - minimum) < 1e-5; }));
  }
}

TEST_CASE("quantiles are those of numpy's default definition") {
  const std::vector<float> v{1, 2, 4, 8, 16};  // numpy.quantile(v, [0, .1, .5, .9, .99, 1])
  CHECK(detail::quantile(v, 0) == 1.0f);
  CHECK(detail::quantile(v, 0.1) == doctest::Approx(1.4));
  CHECK(detail::quantile(v, 0.5) == 4.0f);
  CHECK(detail::quantile(v, 0.9) == doctest::Approx(12.8));
  CHECK(detail::quantile(v, 0.99) == doctest::Approx(15.68));
  CHECK(detail::quantile(v, 1) == 16.0f);
}

TEST_CASE("percentile clipping cuts an outlier off and is the whole range at 100 %") {
  matrix w = heavy_matrix(4, 256, 8).cwiseMax(-1).cwiseMin(1);
  for_each_format(own_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    const auto whole = rtn<F, minmax>::quantise(w), all = rtn<F, percentile_clip<10000>>::quantise(w);
    CHECK(std::equal(whole->weights.bytes().begin(), whole->weights.bytes().end(), all->weights.bytes().begin()));
  });
  w(0, 5) = 100;
  // Of 128 weights one is an outlier: at 98 % the bound lies between the third and fourth largest.
  const matrix clipped = decoded(rtn<symmetric<4, 128>, percentile_clip<9800>>::quantise(w)->weights);
  CHECK(clipped.maxCoeff() < 1.2f);
  CHECK(mean_magnitude((clipped - w).block(0, 6, 1, 122)) < 0.1);
}

TEST_CASE("learnt clipping finds the bound of least output error, by brute force over all tokens") {
  using format = asymmetric<3, 32>;
  const matrix w = heavy_matrix(6, 64, 9), x = uneven_inputs(50, 64, 10);
  calibrated<hessian> stats(64);
  stats.add(view(x));
  const matrix fitted = decoded(quantiser<format, learnt_clip<>>::quantise(w, stats)->weights);
  std::size_t clipped = 0;
  for (Eigen::Index r = 0; r < 6; ++r)
    for (Eigen::Index g = 0; g < 64; g += 32) {
      double least = 1e300;
      matrix best;
      for (int i = 0; i < 10; ++i) {
        const float bound = w.block(r, g, 1, 32).cwiseAbs().maxCoeff() * (1.0f - static_cast<float>(i) / 20.0f);
        // The scale of the clipped weights; then every weight, a clipped one too, to the nearest value.
        const matrix all = w.block(r, g, 1, 32), bounded = all.cwiseMax(-bound).cwiseMin(bound);
        block_buffer buffer(spec_of<format>);
        minmax::fit(spec_of<format>, bounded.data(), 32, {}, buffer.fields());
        const grid levels(spec_of<format>, buffer.fields());
        const matrix q = all.unaryExpr([&](float v) { return levels.value(levels.code(v, 0), 0); });
        const double error = ((q - w.block(r, g, 1, 32)).cast<double>() * x.middleCols(g, 32).cast<double>().transpose()).squaredNorm();
        if (error < least) {
          least = error;
          best = q;
          clipped += i > 0;
        }
      }
      CHECK((fitted.block(r, g, 1, 32) - best).cwiseAbs().maxCoeff() < 1e-6f);
    }
  CHECK(clipped > 0);
}

TEST_CASE("learnt clipping survives any Hessian") {
  const matrix w = heavy_matrix(3, 96, 11);
  for (const float value : {0.0f, 1e30f, std::nanf(""), INFINITY, -1.0f}) {
    std::vector<float> h(96 * 96, value);
    for_each_format(own_formats{}, [&]<class F>() {
      block_buffer buffer(spec_of<F>);
      input_statistics about;
      about.hessian = h.data();
      about.hessian_stride = 96;
      learnt_clip<>::fit(spec_of<F>, w.data(), std::min<std::size_t>(96, spec_of<F>.block), about, buffer.fields());
      CHECK(std::isfinite(number_value(spec_of<F>.scale.type, *buffer.fields().scale)));
    });
  }
}

TEST_CASE("zeros stay zeros under every fit") {
  const matrix zeros = matrix::Zero(2, 300);
  calibrated<channel_importance, hessian> stats(300);
  stats.add(view(matrix(matrix::Ones(3, 300))));
  for_each_format(all_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    CHECK(decoded(quantiser<F, importance_weighted>::quantise(zeros, stats)->weights).isZero(0));
    CHECK(decoded(quantiser<F, learnt_clip<>>::quantise(zeros, stats)->weights).isZero(0));
    CHECK(decoded(rtn<F, half_quadratic<>>::quantise(zeros)->weights).isZero(0));
    CHECK(decoded(rtn<F, percentile_clip<>>::quantise(zeros)->weights).isZero(0));
  });
}
