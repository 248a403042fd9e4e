// Batches, gates, lists of tokens and epilogues against single plain products and float64 loops.
#include "../executors.hpp"
#include "../kernel/random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/product.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace lowbit;

namespace {
using three_threads = backwards_executor<3>;

/// Ordinary magnitudes, so that exp has something to do.
packed_matrix weights(const format_spec& s, std::size_t rows, std::size_t cols, std::uint32_t seed) {
  packed_matrix w = test::random_blocks(s, rows, cols, seed);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t b = 0; b < s.row_blocks(cols); ++b)
      for (const scalar_field f : {s.scale, s.minimum}) {
        if (!f.present()) continue;
        const std::uint32_t bits = number_bits(f.type, 0.002f * static_cast<float>(1 + (r + b + seed) % 3));
        std::memcpy(w.row(r) + b * s.bytes + f.at, &bits, size_of(f.type));
      }
  return w;
}

/// Levels from 0 up: without the sums of activations that a minimum needs.
struct fives {
  static constexpr format_spec spec = [] {
    format_spec s = spec_of<q5_0>;
    s.name = "fives";
    s.codes.zero = 0;
    return s;
  }();
};

using matrix = std::vector<float>;

matrix plain_product(const matrix& x, std::size_t tokens, const panel_matrix& w, precision how = precision::int8) {
  matrix y(tokens * w.rows());
  workspace space;
  multiply({x.data(), tokens, w.cols()}, w, {y.data(), tokens, w.rows()}, space, how);
  return y;
}
}  // namespace

TEST_CASE("a batch gives what its products give one by one, shared activations or not, for every split") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t cols = 512;
  const format_spec* const specs[] = {&spec_of<q4_0>, &spec_of<q4_0>, &spec_of<iq4_nl>, &spec_of<q6_k>, &spec_of<nf4>, &spec_of<q8_0>, &spec_of<f32>,
                                       &spec_of<symmetric<1, 64>>, &spec_of<q2_0>, &spec_of<symmetric<2, 64>>, &spec_of<fives>, &spec_of<q4_1>};
  for (const precision how : {precision::int8, precision::exact})
    for (const std::size_t tokens : {1u, 9u}) {
      const auto x = test::random_activations(tokens * cols, 1), other = test::random_activations(tokens * cols, 2);
      std::vector<panel_matrix> w;
      std::vector<matrix> y;
      for (std::size_t i = 0; i < std::size(specs); ++i) {
        w.push_back(panel_matrix::from(weights(*specs[i], 1 + 37 * i, cols, static_cast<std::uint32_t>(i)).view(), serial));
        y.emplace_back(tokens * w.back().rows(), -1.0f);
      }
      std::vector<product> batch;
      for (std::size_t i = 0; i < w.size(); ++i)
        batch.push_back({{(i == 2 ? other : x).data(), tokens, cols}, &w[i], {y[i].data(), tokens, w[i].rows()}});
      three_threads threads;
      multiply(std::span<const product>(batch), space, threads, how);
      for (std::size_t i = 0; i < w.size(); ++i) CHECK(y[i] == plain_product(i == 2 ? other : x, tokens, w[i], how));
    }
}

TEST_CASE("a gated product is silu(x Gᵀ) * (x Wᵀ), also where the two are of different formats") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t cols = 256, tokens = 8;
  const auto x = test::random_activations(tokens * cols, 1);
  for (const std::size_t rows : {1u, 16u, 71u})
    for (const auto* gate_spec : {&spec_of<q4_k>, &spec_of<q6_k>, &spec_of<float16>}) {
      const panel_matrix w = panel_matrix::from(weights(spec_of<q4_k>, rows, cols, 1).view(), serial);
      const panel_matrix g = panel_matrix::from(weights(*gate_spec, rows, cols, 2).view(), serial);
      matrix y(tokens * rows);
      product p{{x.data(), tokens, cols}, &w, {y.data(), tokens, rows}};
      p.gate = &g;
      three_threads threads;
      multiply(std::span(&p, 1), space, threads);
      const matrix gates = plain_product(x, tokens, g), values = plain_product(x, tokens, w);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const double a = gates[i], expected = a / (1 + std::exp(-a)) * values[i];
        CHECK(y[i] == doctest::Approx(expected).epsilon(1e-6));
      }
    }
}

TEST_CASE("epilogues change what is stored, one after the other, on full and on ragged tiles") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t cols = 300;
  for (const std::size_t rows : {5u, 16u, 100u})
    for (const std::size_t tokens : {1u, 4u, 13u}) {
      const auto x = test::random_activations(tokens * cols, 1), bias = test::random_activations(rows, 2), scale = test::random_activations(rows, 3);
      const matrix residual = test::random_activations(tokens * rows, 4);
      for (const auto& u : kernel::linked_units()) {
        if (!u.available) continue;
        const panel_matrix w = panel_matrix::from(weights(spec_of<q5_1>, rows, cols, 5).view(), serial, *u.kernels);
        const matrix plain = plain_product(x, tokens, w);
        const auto check = [&](const auto& epilogue, auto&& expected) {
          matrix y = residual;  // so that add_matrix can read what it overwrites
          const matrix_view<float> out(y.data(), tokens, rows);
          multiply({x.data(), tokens, cols}, w, out, space, serial, precision::int8, epilogue(out));
          for (std::size_t i = 0; i < y.size(); ++i)
            REQUIRE(y[i] == doctest::Approx(expected(static_cast<double>(plain[i]), i)).epsilon(1e-5).scale(0.01));
        };
        const auto row = [&](std::size_t i) { return i % rows; };
        check([&](auto) { return add_bias{bias.data()}; }, [&](double v, std::size_t i) { return v + bias[row(i)]; });
        check([&](auto) { return scale_rows{scale.data()}; }, [&](double v, std::size_t i) { return v * scale[row(i)]; });
        check([&](auto out) { return add_matrix{out}; }, [&](double v, std::size_t i) { return v + residual[i]; });
        check([&](auto) { return silu{}; }, [&](double v, std::size_t) { return v / (1 + std::exp(-v)); });
        check([&](auto) { return gelu{}; }, [&](double v, std::size_t) { return v * 0.5 * std::erfc(-v / std::sqrt(2.0)); });
        check([&](auto) { return gelu_tanh{}; }, [&](double v, std::size_t) {
          return 0.5 * v * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v)));
        });
        check([&](auto out) { return chain(scale_rows{scale.data()}, add_bias{bias.data()}, gelu{}, add_matrix{out}); },
              [&](double v, std::size_t i) {
                const double z = v * scale[row(i)] + bias[row(i)];
                return z * 0.5 * std::erfc(-z / std::sqrt(2.0)) + residual[i];
              });
      }
    }
}

TEST_CASE("a mixture of experts: tokens by lists, each expert's results where they belong, experts without tokens") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t cols = 128, rows = 48, tokens = 11, experts = 5, chosen = 2;
  const auto x = test::random_activations(tokens * cols, 1);
  std::vector<panel_matrix> w;
  for (std::uint32_t e = 0; e < experts; ++e) w.push_back(panel_matrix::from(weights(spec_of<q4_0>, rows, cols, e).view(), serial));
  // Token t goes to experts t % 4 and (t + 1) % 4; expert 4 gets none. Results lie by token and choice.
  std::vector<std::vector<std::uint32_t>> from(experts), to(experts);
  for (std::uint32_t t = 0; t < tokens; ++t)
    for (std::uint32_t c = 0; c < chosen; ++c) {
      from[(t + c) % 4].push_back(t);
      to[(t + c) % 4].push_back(t * chosen + c);
    }
  matrix y(tokens * chosen * rows, -3.0f);
  std::vector<product> batch;
  for (std::size_t e = 0; e < experts; ++e) {
    product p{{x.data(), tokens, cols}, &w[e], {y.data(), tokens * chosen, rows}};
    p.from = std::span<const std::uint32_t>(from[e]);
    p.to = std::span<const std::uint32_t>(to[e]);
    batch.push_back(p);
  }
  three_threads threads;
  multiply(std::span<const product>(batch), space, threads);
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t c = 0; c < chosen; ++c) {
      const matrix one(x.begin() + static_cast<std::ptrdiff_t>(t * cols), x.begin() + static_cast<std::ptrdiff_t>((t + 1) * cols));
      const matrix expected = plain_product(one, 1, w[(t + c) % 4]);
      CHECK(std::memcmp(&y[(t * chosen + c) * rows], expected.data(), rows * sizeof(float)) == 0);
    }
}
