// Statistics against float64, in any order of merging, on any number of threads, saved and loaded, and with every byte missing or changed.
#include "../executors.hpp"
#include "../io/files.hpp"

#include <lowbit/calibration/saved.hpp>
#include <lowbit/calibration/statistics.hpp>
#include <lowbit/glue/eigen.hpp>

#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <random>

using namespace lowbit;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {
using three_threads = backwards_executor<3>;
using all = layer_statistics;

Eigen::MatrixXd exact(const matrix& x) {
  const Eigen::MatrixXd d = x.cast<double>();
  return 2.0 / static_cast<double>(x.rows()) * d.transpose() * d;
}
}  // namespace

TEST_CASE("streamed and merged statistics are those of all tokens at once, in any order") {
  const matrix x = matrix::Random(57, 12);
  all first(12), second(12), third(12);
  first.add(view(x).middle_rows(0, 20));
  first.add(view(x).middle_rows(20, 1));
  second.add(view(x).middle_rows(21, 36));
  third.merge(second);
  third.merge(first);
  first.merge(second);
  const Eigen::MatrixXd d = x.cast<double>();
  for (const all* s : {&first, &third}) {
    CHECK(s->get<channel_magnitude>().tokens() == 57);
    CHECK(s->get<channel_magnitude>().mean().cast<double>().isApprox(d.cwiseAbs().colwise().mean().transpose(), 1e-6));
    CHECK(s->get<channel_importance>().mean().cast<double>().isApprox(d.cwiseAbs2().colwise().mean().transpose(), 1e-6));
    CHECK(s->get<channel_maximum>().maximum() == x.cwiseAbs().colwise().maxCoeff().transpose());
    CHECK(s->get<hessian>().matrix().cast<double>().isApprox(exact(x), 1e-6));
  }
  CHECK(first.get<hessian>().matrix() == third.get<hessian>().matrix());
}

TEST_CASE("no token is a defined state, and adds nothing") {
  all none(5);
  CHECK(none.get<channel_importance>().mean() == Eigen::VectorXf::Ones(5));
  CHECK(none.get<channel_maximum>().maximum() == Eigen::VectorXf::Ones(5));
  CHECK(none.get<hessian>().matrix() == Eigen::MatrixXf::Zero(5, 5));
  none.add(matrix_view<const float>(nullptr, 0, 5));
  CHECK(none.get<hessian>().tokens() == 0);
  all some(5);
  const matrix x = matrix::Random(9, 5);
  some.add(view(x));
  const Eigen::MatrixXf before = some.get<hessian>().matrix();
  some.merge(none);
  CHECK(some.get<hessian>().matrix() == before);
  static_assert(calibrated<hessian>::has<hessian> && !calibrated<hessian>::has<channel_magnitude>);
  all empty(0);
  empty.add(matrix_view<const float>(nullptr, 7, 0));
  CHECK(empty.get<hessian>().matrix().size() == 0);
}

TEST_CASE("a Hessian summed in float32 is float64's to rounding, after many tokens too") {
  std::mt19937 random(1);
  for (const Eigen::Index n : {Eigen::Index{1}, Eigen::Index{95}, Eigen::Index{96}, Eigen::Index{97}, Eigen::Index{250}}) {
    const matrix x = (matrix::Random(500, n).array() + 0.4f).matrix();  // sums that only grow: the worst for a float
    hessian h(static_cast<std::size_t>(n)), wide(static_cast<std::size_t>(n));
    three_threads three;
    h.add(view(x));
    wide.add(view(x), three);
    const Eigen::MatrixXd expected = exact(x);
    CHECK((h.matrix().cast<double>() - expected).cwiseAbs().maxCoeff() <= 1e-6 * expected.cwiseAbs().maxCoeff());
    CHECK(h.matrix() == wide.matrix());
  }
  constexpr Eigen::Index n = 40;
  hessian h(n);
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(n, n);
  constexpr int pieces = 128, tokens = 512;
  for (int i = 0; i < pieces; ++i) {
    const matrix x = (matrix::Random(tokens, n).array() + 0.4f).matrix();
    h.add(view(x));
    const Eigen::MatrixXd d = x.cast<double>();
    sum += d.transpose() * d;
  }
  sum *= 2.0 / (pieces * tokens);
  CHECK(h.tokens() == pieces * tokens);
  CHECK((h.matrix().cast<double>() - sum).norm() <= 1e-6 * sum.norm());
}

TEST_CASE("drift is the cross moment of the difference, streamed, merged and in parallel") {
  const matrix x = matrix::Random(130, 101), q = x + 0.1f * matrix::Random(130, 101);
  input_drift one(101), first(101), second(101);
  serial_executor serial;
  three_threads three;
  one.add(view(x), view(q), serial);
  first.add(view(x).middle_rows(0, 60), view(q).middle_rows(0, 60), three);
  second.add(view(x).middle_rows(60, 70), view(q).middle_rows(60, 70), three);
  first.merge(second);
  CHECK(first.tokens() == 130);
  const Eigen::MatrixXd expected = (x - q).cast<double>().transpose() * q.cast<double>();
  for (const input_drift* d : {&one, &first}) {
    double worst = 0;
    for (Eigen::Index i = 0; i < 101; ++i)
      for (Eigen::Index j = 0; j < 101; ++j)
        worst = std::max(worst, std::fabs(d->sum()(static_cast<std::size_t>(i), static_cast<std::size_t>(j)) - expected(i, j)));
    CHECK(worst <= 2e-6 * expected.cwiseAbs().maxCoeff());
  }
}

TEST_CASE("saved statistics come back to the bit, and go on from there") {
  const matrix x = matrix::Random(57, 130);
  all whole(130), half(130);
  whole.add(view(x).middle_rows(0, 30));
  half.add(view(x).middle_rows(0, 30));
  auto loaded = load_statistics<all>(save_statistics(half));
  REQUIRE(loaded);
  CHECK(loaded->channels() == 130);
  whole.add(view(x).middle_rows(30, 27));
  loaded->add(view(x).middle_rows(30, 27));
  CHECK(loaded->get<hessian>().tokens() == 57);
  CHECK(loaded->get<hessian>().matrix() == whole.get<hessian>().matrix());
  CHECK(loaded->get<channel_magnitude>().mean() == whole.get<channel_magnitude>().mean());
  CHECK(loaded->get<channel_importance>().mean() == whole.get<channel_importance>().mean());
  CHECK(loaded->get<channel_maximum>().maximum() == whole.get<channel_maximum>().maximum());
  CHECK(save_statistics(*loaded) == save_statistics(whole));
  const auto none = load_statistics<all>(save_statistics(all(0)));
  REQUIRE(none);
  CHECK(none->channels() == 0);
}

TEST_CASE("statistics with a byte missing, changed or too many are refused") {
  calibrated<channel_magnitude, channel_maximum> s(6);
  s.add(view(matrix::Random(4, 6).eval()));
  using set = decltype(s);
  const auto good = save_statistics(s);
  REQUIRE(load_statistics<set>(good));
  for (std::size_t n = 0; n < good.size(); ++n) {
    const std::vector<std::uint8_t> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n));  // of its own, so that a sanitiser sees a read past it
    const auto r = load_statistics<set>(cut);
    REQUIRE(!r);
    CHECK(r.error().kind == errc::truncated);
  }
  for (std::size_t n = 0; n < good.size(); ++n)
    for (const int bit : {0, 3, 7}) {
      auto changed = good;
      changed[n] ^= static_cast<std::uint8_t>(1 << bit);
      CHECK(!load_statistics<set>(changed));
    }
  auto longer = good;
  longer.push_back(0);
  CHECK(load_statistics<set>(longer).error().kind == errc::malformed);
  CHECK(load_statistics<calibrated<channel_magnitude>>(good).error().message == "statistics of 2 kinds where 1 are wanted");
  CHECK(load_statistics<calibrated<hessian, channel_maximum>>(good).error().message == "no hessian in these statistics");
  auto huge = good;
  for (std::size_t i = 16; i < 24; ++i) huge[i] = 0xff;  // the number of channels
  CHECK(!load_statistics<set>(huge));
  CHECK(!load_statistics<calibrated<hessian>>(huge));
}

TEST_CASE("statistics of all layers but one can be elsewhere") {
  struct store {
    std::map<std::string, std::vector<std::uint8_t>>* kept;
    status put(const std::string& name, std::vector<std::uint8_t> bytes) {
      (*kept)[name] = std::move(bytes);
      return done{};
    }
    result<std::vector<std::uint8_t>> get(const std::string& name) {
      const auto found = kept->find(name);
      if (found == kept->end()) return failure{errc::not_found, "no " + name};
      return found->second;
    }
  };
  std::map<std::string, std::vector<std::uint8_t>> kept;
  spilled_statistics<calibrated<hessian>, store> spilled(store{&kept});
  const matrix x = matrix::Random(40, 20);
  calibrated<hessian> expected(20);
  for (std::size_t t = 0; t < 40; t += 10) {
    const auto piece = view(x).middle_rows(t, 10);
    expected.add(piece);
    for (const char* layer : {"a", "b"}) REQUIRE(spilled.update(layer, 20, [&](auto& s) { s.add(piece); }));
  }
  CHECK(spilled.load("b")->get<hessian>().matrix() == expected.get<hessian>().matrix());
  CHECK(spilled.load("c").error().kind == errc::not_found);
  kept["a"].pop_back();
  CHECK(spilled.update("a", 20, [](auto&) {}).error().message == "a: statistics end early, after " + std::to_string(kept["a"].size()) + " bytes");
}

TEST_CASE("experts of a mixture: each from the tokens that reach it, in files between their batches") {
  struct file_store {
    const test::scratch_folder* folder;
    status put(const std::string& name, const std::vector<std::uint8_t>& bytes) {
      test::write_all(*folder / name, std::string(bytes.begin(), bytes.end()));
      return done{};
    }
    result<std::vector<std::uint8_t>> get(const std::string& name) {
      std::ifstream file(*folder / name, std::ios::binary);
      if (!file) return failure{errc::not_found, "no " + name};
      return std::vector<std::uint8_t>(std::istreambuf_iterator<char>(file), {});
    }
  };
  const test::scratch_folder folder;
  constexpr Eigen::Index channels = 24;
  constexpr unsigned experts = 4;  // nothing reaches the last one
  spilled_statistics<calibrated<hessian, channel_importance>, file_store> layers(file_store{&folder});
  std::vector<Eigen::MatrixXd> sums(experts, Eigen::MatrixXd::Zero(channels, channels));
  std::vector<double> tokens(experts);
  std::mt19937 random(5);
  for (int batch = 0; batch < 6; ++batch) {
    const matrix x = matrix::Random(30, channels);
    std::vector<std::vector<Eigen::Index>> routed(experts);
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      for (const unsigned e : {static_cast<unsigned>(random() % 2), 2u}) routed[e].push_back(t);  // two experts a token
    for (unsigned e = 0; e < experts; ++e) {
      if (routed[e].empty()) continue;
      const matrix own = x(routed[e], Eigen::all);
      REQUIRE(layers.update("blk.0.ffn_gate." + std::to_string(e), static_cast<std::size_t>(channels), [&](auto& s) { s.add(view(own)); }));
      sums[e] += own.cast<double>().transpose() * own.cast<double>();
      tokens[e] += static_cast<double>(own.rows());
    }
  }
  for (unsigned e = 0; e + 1 < experts; ++e) {
    const auto found = layers.load("blk.0.ffn_gate." + std::to_string(e));
    REQUIRE(found);
    const Eigen::MatrixXd expected = 2 / tokens[e] * sums[e];
    CHECK((found->get<hessian>().matrix().cast<double>() - expected).norm() < 1e-6 * expected.norm());
    CHECK(found->get<channel_importance>().tokens() == static_cast<std::size_t>(tokens[e]));
  }
  CHECK(layers.load("blk.0.ffn_gate.3").error().kind == errc::not_found);
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
