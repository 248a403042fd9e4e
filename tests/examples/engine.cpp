// The engine's arithmetic against float64 written out from the papers.
#include "engine/evaluate.hpp"
#include "engine/sampler.hpp"
#include "files/checkpoint.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/quantise/by_id.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>

using namespace llm;

namespace {

std::vector<float> normal(std::size_t n, unsigned seed) {
  std::mt19937 random{seed};
  std::normal_distribution<float> draw;
  std::vector<float> v(n);
  for (float& x : v) x = draw(random);
  return v;
}

}  // namespace

TEST_CASE("norm and softmax agree with float64") {
  const std::size_t n = 77;
  const auto x = normal(n, 1), w = normal(n, 2);
  double squares = 0.0, exponentials = 0.0;
  for (float v : x) squares += double{v} * v, exponentials += std::exp(double{v});
  std::vector<float> out(n), probability = x;
  rms_norm(x.data(), w.data(), n, 1e-5f, out.data());
  softmax(probability.data(), n);
  for (std::size_t i = 0; i < n; ++i) {
    CHECK(out[i] == doctest::Approx(double{x[i]} * w[i] / std::sqrt(squares / n + 1e-5)).epsilon(1e-6));
    CHECK(probability[i] == doctest::Approx(std::exp(double{x[i]}) / exponentials).epsilon(1e-6));
  }
  CHECK(log_sum_exp(x.data(), n) == doctest::Approx(std::log(exponentials)).epsilon(1e-7));
}

TEST_CASE("the two row orders of RoPE are the same rotation of permuted rows") {
  model_config c;
  c.head_dim = 16;
  c.rope_base = 1e4f;
  const std::size_t heads = 3, cols = 5, rows = heads * c.head_dim;
  const auto w = normal(rows * cols, 3), x = normal(cols, 4);
  const auto project = [&](const std::vector<float>& m) {
    std::vector<float> y(rows, 0.0f);
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t k = 0; k < cols; ++k) y[r] += m[r * cols + k] * x[k];
    return y;
  };
  const lowbit::packed_view view{&lowbit::spec_of<lowbit::f32>, rows, cols, reinterpret_cast<const std::uint8_t*>(w.data())};
  const lowbit::packed_matrix turned = *reorder_rows(view, c.head_dim, rope_order::pairs);
  const lowbit::packed_matrix back = *reorder_rows(turned.view(), c.head_dim, rope_order::halves);
  CHECK(std::memcmp(back.bytes().data(), w.data(), back.bytes().size()) == 0);
  std::vector<float> permuted(rows * cols);
  lowbit::decode(turned.view(), {permuted.data(), rows, cols});

  std::vector<float> halves = project(w), pairs = project(permuted), angles(c.head_dim);
  rope_angles(c, 11, angles.data());
  for (std::size_t h = 0; h < heads; ++h) {
    rope(halves.data() + h * c.head_dim, c.head_dim, rope_order::halves, angles.data());
    rope(pairs.data() + h * c.head_dim, c.head_dim, rope_order::pairs, angles.data());
    for (std::size_t i = 0; i < c.head_dim / 2; ++i) {
      const double angle = 11.0 * std::pow(1e4, -2.0 * static_cast<double>(i) / 16.0);
      const auto before = project(w);
      const double a = before[h * 16 + i], b = before[h * 16 + i + 8];
      CHECK(halves[h * 16 + i] == doctest::Approx(a * std::cos(angle) - b * std::sin(angle)).epsilon(1e-5));
      CHECK(halves[h * 16 + i] == pairs[h * 16 + 2 * i]);
      CHECK(halves[h * 16 + i + 8] == pairs[h * 16 + 2 * i + 1]);
    }
  }
}

TEST_CASE("attention agrees with float64, in one piece or token by token") {
  model_config c;
  c.layers = 2, c.heads = 6, c.kv_heads = 2;
  for (std::size_t head_dim : {8, 16, 20}) {
    c.head_dim = head_dim;
    const std::size_t past = 5, tokens = 70, layer = 1;
    const auto fill = [](matrix& m, unsigned seed) {
      const auto values = normal(m.rows() * m.cols(), seed);
      std::copy(values.begin(), values.end(), m.row(0));
    };
    matrix keys(past + tokens, c.kv_size()), values(past + tokens, c.kv_size()), queries(tokens, c.query_size());
    fill(keys, 5), fill(values, 6), fill(queries, 7);
    const auto part = [](const matrix& m, std::size_t first, std::size_t count) {
      matrix out(count, m.cols());
      std::copy(m.row(first), m.row(first) + count * m.cols(), out.row(0));
      return out;
    };
    thread_pool threads{3};
    kv_cache whole{c, past + tokens}, steps{c, past + tokens};
    for (kv_cache* cache : {&whole, &steps}) {
      cache->store(layer, part(keys, 0, past), part(values, 0, past));
      cache->advance(past);
    }
    matrix out(tokens, c.query_size()), one_out(1, c.query_size());
    whole.store(layer, part(keys, past, tokens), part(values, past, tokens));
    attend({c, queries, whole, layer, out}, threads);

    for (std::size_t t = 0; t < tokens; ++t) {
      const matrix one = part(queries, t, 1);
      steps.store(layer, part(keys, past + t, 1), part(values, past + t, 1));
      attend({c, one, steps, layer, one_out}, threads);
      steps.advance(1);
      for (std::size_t h = 0; h < c.heads; ++h) {
        const std::size_t kv = h / 3 * head_dim;
        std::vector<double> weight(past + t + 1), mixed(head_dim, 0.0);
        double sum = 0.0;
        for (std::size_t p = 0; p < weight.size(); ++p) {
          double dot = 0.0;
          for (std::size_t i = 0; i < head_dim; ++i) dot += double{queries.row(t)[h * head_dim + i]} * keys.row(p)[kv + i];
          sum += weight[p] = std::exp(dot / std::sqrt(static_cast<double>(head_dim)));
        }
        for (std::size_t p = 0; p < weight.size(); ++p)
          for (std::size_t i = 0; i < head_dim; ++i) mixed[i] += weight[p] / sum * values.row(p)[kv + i];
        double worst = 0.0;
        for (std::size_t i = 0; i < head_dim; ++i)
          worst = std::max({worst, std::abs(out.row(t)[h * head_dim + i] - mixed[i]), std::abs(one_out.row(0)[h * head_dim + i] - mixed[i])});
        CHECK(worst < 3e-6);
      }
    }
  }
}

TEST_CASE("attention over a quantised cache is float64's over the numbers that the cache holds") {
  model_config c;
  c.layers = 2, c.heads = 6, c.kv_heads = 2;
  const std::size_t past = 5, tokens = 40, seen_most = past + tokens, layer = 1;
  for (const std::size_t head_dim : {32, 80})
    for (const char* name : {"q8_0", "q4_0", "u5_g32", "s6_g64", "nf4", "bf16"}) {
      CAPTURE(name);
      c.head_dim = head_dim;
      const lowbit::format_spec& format = lowbit::spec_of_id(*lowbit::find_format(name));
      const auto filled = [](std::size_t rows, std::size_t cols, unsigned seed) {
        matrix m(rows, cols);
        const auto values = normal(rows * cols, seed);
        std::copy(values.begin(), values.end(), m.row(0));
        return m;
      };
      const matrix keys = filled(seen_most, c.kv_size(), 5), values = filled(seen_most, c.kv_size(), 6), queries = filled(tokens, c.query_size(), 7);
      const auto part = [](const matrix& m, std::size_t first, std::size_t count) {
        matrix out(count, m.cols());
        std::copy(m.row(first), m.row(first) + count * m.cols(), out.row(0));
        return out;
      };
      thread_pool threads{3};
      kv_cache cache{c, seen_most, {&format, lowbit::precision::exact}};
      CHECK(cache.size_bytes() < 2 * c.layers * c.kv_size() * (seen_most + 16) * sizeof(float));
      cache.store(layer, part(keys, 0, past), part(values, 0, past));
      cache.advance(past);
      cache.store(layer, part(keys, past, tokens), part(values, past, tokens));
      matrix out(tokens, c.query_size());
      attend({c, queries, cache, layer, out}, threads);
      // What the cache holds: every head's rows on their own, through the library's quantiser.
      const auto held = [&](const matrix& m, std::size_t head) {
        std::vector<float> rows(seen_most * head_dim);
        for (std::size_t p = 0; p < seen_most; ++p) std::copy_n(m.row(p) + head * head_dim, head_dim, &rows[p * head_dim]);
        const auto q = lowbit::quantise(*lowbit::find_format(name), lowbit::method::rtn, lowbit::matrix_view<const float>(rows.data(), seen_most, head_dim), threads);
        REQUIRE(q.ok());
        lowbit::decode(q->view(), {rows.data(), seen_most, head_dim});
        return rows;
      };
      double worst = 0.0;
      for (std::size_t h = 0; h < c.heads; ++h) {
        const std::vector<float> k = held(keys, h / 3), v = held(values, h / 3);
        for (std::size_t t = 0; t < tokens; ++t) {
          std::vector<double> weight(past + t + 1), mixed(head_dim, 0.0);
          double sum = 0.0;
          for (std::size_t p = 0; p < weight.size(); ++p) {
            double dot = 0.0;
            for (std::size_t i = 0; i < head_dim; ++i) dot += double{queries.row(t)[h * head_dim + i]} * k[p * head_dim + i];
            sum += weight[p] = std::exp(dot / std::sqrt(static_cast<double>(head_dim)));
          }
          for (std::size_t p = 0; p < weight.size(); ++p)
            for (std::size_t i = 0; i < head_dim; ++i) mixed[i] += weight[p] / sum * v[p * head_dim + i];
          for (std::size_t i = 0; i < head_dim; ++i) worst = std::max(worst, std::abs(out.row(t)[h * head_dim + i] - mixed[i]));
        }
      }
      CHECK(worst < 3e-6);
      // With queries of 8 bits the difference is theirs; and what is not finite is not lost.
      kv_cache quick{c, seen_most, {&format, lowbit::precision::int8}};
      quick.store(layer, part(keys, 0, seen_most), part(values, 0, seen_most));
      matrix all = filled(seen_most, c.query_size(), 8), with_int8(seen_most, c.query_size());
      attend({c, all, quick, layer, with_int8}, threads);
      for (std::size_t i = 0; i < c.query_size(); ++i) CHECK(std::isfinite(with_int8.row(seen_most - 1)[i]));
      quick.clear();
      matrix broken = part(keys, 0, 1);
      broken.row(0)[3] = INFINITY;
      quick.store(layer, broken, part(values, 0, 1));
      matrix one(1, c.query_size());
      const matrix query = part(all, 0, 1);
      attend({c, query, quick, layer, one}, threads);
      CHECK(std::isnan(one.row(0)[0]));
    }
}

TEST_CASE("the thread pool runs every task once, however often it is called") {
  for (std::size_t width : {1, 2, 5}) {
    thread_pool pool{width};
    CHECK(pool.concurrency() == width);
    for (int round = 0; round < 500; ++round) {
      std::vector<std::atomic<int>> hits(static_cast<std::size_t>(round % 17));
      pool.run(hits.size(), [&](std::size_t i) { ++hits[i]; });
      for (const auto& h : hits) REQUIRE(h == 1);
    }
  }
}

TEST_CASE("the sampler draws as often as the probabilities say, and the same for the same seed") {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  const auto counts = [&](sampling s, int n) {
    sampler draw{s};
    std::vector<int> count(4, 0);
    for (int i = 0; i < n; ++i) ++count[draw.next(logits.data(), 4)];
    return count;
  };
  const int n = 40000;
  const auto all = counts({.temperature = 1.0f, .seed = 3}, n);
  const double probability[] = {0.5, 0.3, 0.15, 0.05};
  for (std::size_t i = 0; i < 4; ++i)  // five standard deviations
    CHECK(std::abs(all[i] - probability[i] * n) < 5.0 * std::sqrt(n * probability[i] * (1.0 - probability[i])));
  CHECK(all == counts({.temperature = 1.0f, .seed = 3}, n));
  CHECK(all != counts({.temperature = 1.0f, .seed = 4}, n));
  const auto top = counts({.temperature = 1.0f, .top_p = 0.75f, .seed = 3}, n);
  CHECK(std::abs(top[0] - 0.625 * n) < 5.0 * std::sqrt(n * 0.625 * 0.375));
  CHECK(top[2] + top[3] == 0);
  CHECK(counts({}, 10) == std::vector<int>{10, 0, 0, 0});
}

TEST_CASE("evaluation: perplexity and divergence of known distributions") {
  // Two tokens; the model says 3/4 for token 0, the reference 1/2.
  const std::vector<float> model{std::log(3.0f), 0.0f}, reference{0.0f, 0.0f};
  const auto constant = [](const std::vector<float>& row) -> logit_source {
    auto rows = std::make_shared<std::vector<float>>();
    return [rows, row](std::size_t, std::size_t, std::size_t count) -> lowbit::matrix_view<const float> {
      rows->clear();
      for (std::size_t i = 0; i < count; ++i) rows->insert(rows->end(), row.begin(), row.end());
      return {rows->data(), count, row.size()};
    };
  };
  const windows w{{1, 0, 0, 1}, std::vector<int>(130, 0)};
  const evaluation e = evaluate(constant(model), remember(constant(reference), w), w);
  CHECK(e.tokens == 3 + 129);
  CHECK(e.nll == doctest::Approx((131 * -std::log(0.75) - std::log(0.25)) / 132).epsilon(1e-6));
  CHECK(e.perplexity == doctest::Approx(std::exp(e.nll)));
  const double kl = 0.5 * std::log(0.5 / 0.75) + 0.5 * std::log(0.5 / 0.25);
  CHECK(e.kl_mean == doctest::Approx(kl).epsilon(1e-6));
  CHECK(e.kl_p99 == doctest::Approx(kl).epsilon(1e-6));
  CHECK(e.top1_agreement == 1.0);
}

TEST_CASE("windows cover a text without overlap") {
  std::vector<int> ids(25);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(i);
  const windows plain = cut_windows(ids, -1, 10, 0);
  REQUIRE(plain.size() == 3);
  CHECK(plain[2] == std::vector<int>{20, 21, 22, 23, 24});
  const windows with_bos = cut_windows(ids, 99, 10, 12);
  REQUIRE(with_bos.size() == 2);
  CHECK(with_bos[0].size() == 10);
  CHECK(with_bos[1] == std::vector<int>{99, 9, 10, 11});
  CHECK(cut_windows({1}, -1, 10, 0).empty());
}
