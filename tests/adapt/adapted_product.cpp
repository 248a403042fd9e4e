// Products with adapters against float64 sums over the decoded weights, on every unit.
#include "../executors.hpp"
#include "../kernel/random_weights.hpp"

#include <lowbit/adapt/adapted_product.hpp>
#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace lowbit;

namespace {

using three_threads = backwards_executor<3>;

low_rank_factors factors(std::size_t rows, std::size_t cols, std::size_t rank, std::uint32_t seed) {
  return {rows, cols, rank, test::random_activations(rank * cols, seed), test::random_activations(rows * rank, seed + 1), 0.3f};
}

/// Σ w x of a row, and the magnitudes that were added.
struct sum64 {
  double value = 0, terms = 0;
  void add(double v, double magnitude) {
    value += v;
    terms += magnitude;
  }
};

sum64 dot(const float* a, const float* b, std::size_t n) {
  sum64 s;
  for (std::size_t i = 0; i < n; ++i) s.add(static_cast<double>(a[i]) * b[i], std::fabs(static_cast<double>(a[i]) * b[i]));
  return s;
}

/// s B (A x) of one output.
sum64 adapted(const low_rank_factors& f, std::size_t row, const float* x) {
  sum64 s;
  for (std::size_t k = 0; k < f.rank; ++k) {
    const sum64 inner = dot(&f.a[k * f.cols], x, f.cols);
    const double b = static_cast<double>(f.scale) * f.b[row * f.rank + k];
    s.add(b * inner.value, std::fabs(b) * inner.terms);
  }
  return s;
}

/// The factors as they run: A in q8_0, its rows below 1, B in 8 bits of each row's largest with everything else in it.
low_rank_factors rounded(const low_rank_factors& f) {
  low_rank_factors r{f.rows, f.cols, f.rank, f.a, f.b, 1.0f};
  for (std::size_t k = 0; k < f.rank; ++k) {
    float largest = 0;
    for (std::size_t c = 0; c < f.cols; ++c) largest = std::max(largest, std::fabs(f.a[k * f.cols + c]));
    int places = 0;
    if (largest > 0) std::frexp(largest, &places);
    for (std::size_t c = 0; c < f.cols; ++c) r.a[k * f.cols + c] = std::ldexp(f.a[k * f.cols + c], -places);
    for (std::size_t i = 0; i < f.rows; ++i) r.b[i * f.rank + k] *= f.scale * std::ldexp(1.0f, places);
  }
  const auto blocks = rtn<q8_0>::quantise(r.a_view());
  decode(blocks->weights.view(), {r.a.data(), r.rank, r.cols});
  for (std::size_t i = 0; i < f.rows; ++i) {
    float largest = 0;
    for (std::size_t k = 0; k < f.rank; ++k) largest = std::max(largest, std::fabs(r.b[i * f.rank + k]));
    for (std::size_t k = 0; k < f.rank; ++k)
      if (largest > 0) r.b[i * f.rank + k] = largest / 127 * std::nearbyint(r.b[i * f.rank + k] / (largest / 127));
  }
  return r;
}

}  // namespace

TEST_CASE("rounded factors err by half a step of their block's or row's largest") {
  const low_rank_factors f = factors(40, 96, 16, 3), r = rounded(f);
  for (std::size_t k = 0; k < f.rank; ++k)
    for (std::size_t i = 0; i < f.rows; ++i) {
      double largest = 0;
      for (std::size_t j = 0; j < f.rank; ++j) largest = std::max<double>(largest, std::fabs(r.b[i * f.rank + j]));
      double a_largest = 0;
      for (std::size_t c = 0; c < f.cols; ++c) a_largest = std::max<double>(a_largest, std::fabs(f.a[k * f.cols + c]));
      const double taken = std::exp2(std::floor(std::log2(a_largest)) + 1);
      REQUIRE(std::fabs(r.b[i * f.rank + k] - static_cast<double>(f.scale) * taken * f.b[i * f.rank + k]) <= largest * (0.5 / 127 + 0x1p-20));
      for (std::size_t c = 0; c < f.cols; ++c) REQUIRE(std::fabs(r.a[k * f.cols + c] * taken - f.a[k * f.cols + c]) <= a_largest * (0.5 / 127 + 0x1p-11));  // and the scale's to float16
    }
}

TEST_CASE("a token gets its own adapter's product or none, of factors rounded to 8 bits, to the rounding of float32 sums, on every unit") {
  three_threads threads;
  adapter_workspace space;
  for (const format_spec* s : {&spec_of<f32>, &spec_of<q4_0>, &spec_of<q4_k>, &spec_of<nf4>, &spec_of<asymmetric<4, 128>>})
    for (const std::size_t rows : {1u, 21u, 64u})
      for (const std::size_t tokens : {1u, 4u, 14u}) {
        CAPTURE(std::string(s->name));
        CAPTURE(rows);
        CAPTURE(tokens);
        constexpr std::size_t cols = 256;
        const packed_matrix w = test::random_blocks(*s, rows, cols, 5);
        std::vector<float> weights(rows * cols);
        decode(w.view(), {weights.data(), rows, cols});
        const auto x = test::random_activations(tokens * cols, 9);
        const std::vector<low_rank_factors> all{factors(rows, cols, 1, 1), factors(rows, cols, 16, 3), factors(rows, cols, 23, 5)}, as_run{rounded(all[0]), rounded(all[1]), rounded(all[2])};
        std::vector<std::uint32_t> chosen;
        for (std::size_t t = 0; t < tokens; ++t) chosen.push_back(t % 5 == 4 ? no_adapter : static_cast<std::uint32_t>((t + 1) % 4));
        for (const auto& u : kernel::linked_units()) {
          if (!u.available) continue;
          CAPTURE(std::string(u.name));
          const panel_matrix panels = panel_matrix::from(w.view(), threads, *u.kernels);
          std::vector<low_rank> ready;
          for (const low_rank_factors& f : all) ready.push_back(low_rank::from(f, threads, *u.kernels));
          const low_rank* const adapters[] = {&ready[0], &ready[1], &ready[2], nullptr};  // 3: the matrix is left alone
          for (const bool one_for_all : {false, true}) {
            std::vector<float> y(tokens * rows);
            const adapted_product p{{{x.data(), tokens, cols}, &panels, {y.data(), tokens, rows}}, std::span(adapters).subspan(one_for_all)};
            multiply(std::span(&p, 1), one_for_all ? std::span<const std::uint32_t>() : std::span<const std::uint32_t>(chosen), space, threads, precision::exact);
            for (std::size_t t = 0; t < tokens; ++t)
              for (std::size_t r = 0; r < rows; ++r) {
                sum64 expected = dot(&weights[r * cols], &x[t * cols], cols);
                expected.terms *= 3;  // scale and minimum are summed apart
                const std::size_t n = one_for_all ? 1 : chosen[t];
                if (n < all.size()) {
                  const sum64 plus = adapted(as_run[n], r, &x[t * cols]);
                  expected.add(plus.value, plus.terms);
                }
                REQUIRE(std::fabs(y[t * rows + r] - expected.value) <= (cols + 40.0) * 0x1p-24 * expected.terms);
              }
            if (kernel::layout_of(*s).shape.has_int8()) {  // rounded activations enter the large product alone
              std::vector<float> rounded(tokens * rows), without(tokens * rows);
              adapted_product q = p;
              q.base.y = {rounded.data(), tokens, rows};
              multiply(std::span(&q, 1), one_for_all ? std::span<const std::uint32_t>() : std::span<const std::uint32_t>(chosen), space, threads);
              multiply(p.base.x, panels, {without.data(), tokens, rows}, space.products);
              for (std::size_t t = 0; t < tokens; ++t)
                for (std::size_t r = 0; r < rows; ++r) {
                  const std::size_t n = one_for_all ? 1 : chosen[t];
                  const sum64 plus = n < all.size() ? adapted(as_run[n], r, &x[t * cols]) : sum64{};
                  const double base = without[t * rows + r];
                  REQUIRE(std::fabs(rounded[t * rows + r] - base - plus.value) <= (cols + 40.0) * 0x1p-24 * (plus.terms + std::fabs(base)));
                }
            }
          }
        }
      }
}

TEST_CASE("a gate and what it lets through have adapters of their own, and rows come from and go to lists") {
  serial_executor serial;
  adapter_workspace space;
  constexpr std::size_t rows = 40, cols = 64, tokens = 5;
  const packed_matrix up = test::random_blocks(spec_of<q8_0>, rows, cols, 1), gate = test::random_blocks(spec_of<q4_1>, rows, cols, 2);
  const panel_matrix up_panels = panel_matrix::from(up.view(), serial), gate_panels = panel_matrix::from(gate.view(), serial);
  std::vector<float> up_weights(rows * cols), gate_weights(rows * cols);
  decode(up.view(), {up_weights.data(), rows, cols});
  decode(gate.view(), {gate_weights.data(), rows, cols});
  const low_rank_factors of_up = factors(rows, cols, 4, 3), of_gate = factors(rows, cols, 6, 5);
  const low_rank_factors up_as_run = rounded(of_up), gate_as_run = rounded(of_gate);
  const low_rank up_adapter = low_rank::from(of_up, serial), gate_adapter = low_rank::from(of_gate, serial);
  const low_rank *const up_adapters[] = {&up_adapter}, *const gate_adapters[] = {&gate_adapter};
  auto x = test::random_activations((tokens + 2) * cols, 7);
  for (float& v : x) v *= 0.01f;  // so that SiLU bends
  const std::uint32_t from[] = {6, 0, 3, 3}, to[] = {4, 1, 0, 2}, chosen[] = {0, 0, no_adapter, 9, 0};
  std::vector<float> y(tokens * rows, -7.0f);
  const adapted_product p{{{x.data(), tokens + 2, cols}, &up_panels, {y.data(), tokens, rows}, &gate_panels, std::span<const std::uint32_t>(from), std::span<const std::uint32_t>(to)}, up_adapters, gate_adapters};
  multiply(std::span(&p, 1), chosen, space, serial, precision::exact, scale_rows{std::vector<float>(rows, 2.0f).data()});
  for (std::size_t r = 0; r < rows; ++r) CHECK(y[3 * rows + r] == -7.0f);
  for (std::size_t i = 0; i < std::size(from); ++i)
    for (std::size_t r = 0; r < rows; ++r) {
      const float* const in = &x[from[i] * cols];
      double u = dot(&up_weights[r * cols], in, cols).value, g = dot(&gate_weights[r * cols], in, cols).value;
      if (chosen[to[i]] == 0) {
        u += adapted(up_as_run, r, in).value;
        g += adapted(gate_as_run, r, in).value;
      }
      const double expected = 2 * u * g / (1 + std::exp(-g));
      CHECK(y[to[i] * rows + r] == doctest::Approx(expected).epsilon(1e-3));
    }
}

TEST_CASE("products without adapters are the plain ones, bit for bit") {
  serial_executor serial;
  adapter_workspace space;
  const packed_matrix w = test::random_blocks(spec_of<q4_0>, 33, 96, 1);
  const panel_matrix panels = panel_matrix::from(w.view(), serial);
  const auto x = test::random_activations(3 * 96, 2);
  std::vector<float> y(3 * 33), plain(3 * 33);
  const low_rank empty;
  const low_rank* const none[] = {&empty, nullptr};
  const std::uint32_t chosen[] = {0, 1, no_adapter};
  const adapted_product p{{{x.data(), 3, 96}, &panels, {y.data(), 3, 33}}, none};
  multiply(std::span(&p, 1), chosen, space, serial);
  multiply({x.data(), 3, 96}, panels, {plain.data(), 3, 33}, space.products);
  CHECK(y == plain);
}

TEST_CASE("an adapter of a batch of no tokens does nothing") {
  serial_executor serial;
  adapter_workspace space;
  const packed_matrix w = test::random_blocks(spec_of<q4_0>, 16, 32, 1);
  const panel_matrix panels = panel_matrix::from(w.view(), serial);
  const low_rank l = low_rank::from(factors(16, 32, 2, 1), serial);
  const low_rank* const adapters[] = {&l};
  const adapted_product p{{{nullptr, 0, 32}, &panels, {nullptr, 0, 16}}, adapters};
  multiply(std::span(&p, 1), {}, space, serial);
}

TEST_CASE("factors of any size run: what one of them lacks the other has") {
  serial_executor serial;
  adapter_workspace space;
  low_rank_factors f = factors(16, 32, 2, 1);
  for (float& v : f.a) v *= 0x1p100f;
  for (float& v : f.b) v *= 0x1p-100f;
  std::fill(f.a.begin() + 32, f.a.end(), 0.0f);
  const packed_matrix w(spec_of<q4_0>, 16, 32);
  const panel_matrix panels = panel_matrix::from(w.view(), serial);
  const low_rank l = low_rank::from(f, serial);
  const low_rank* const adapters[] = {&l};
  const auto x = test::random_activations(32, 3);
  std::vector<float> y(16);
  const adapted_product p{{{x.data(), 1, 32}, &panels, {y.data(), 1, 16}}, adapters};
  multiply(std::span(&p, 1), {}, space, serial);
  for (std::size_t r = 0; r < 16; ++r) {
    const sum64 expected = adapted(rounded(f), r, x.data());
    CHECK(std::fabs(y[r] - expected.value) <= 80 * 0x1p-24 * expected.terms);
    CHECK(y[r] != 0.0f);
  }
}

TEST_CASE("columns beside a matrix that ignores their inputs: each input enters one of the two, on every unit") {
  three_threads threads;
  adapter_workspace space;
  constexpr std::size_t rows = 37, cols = 320, tokens = 7;
  const std::vector<std::uint32_t> channels{0, 5, 64, 319};
  const packed_matrix w = test::random_blocks(spec_of<q8_0>, rows, cols, 5), g = test::random_blocks(spec_of<q4_0>, rows, cols, 6);
  auto x = test::random_activations(tokens * cols, 9);
  for (std::size_t t = 0; t < tokens; ++t)
    for (const std::uint32_t c : channels) x[t * cols + c] *= 50;
  std::vector<float> without = x;
  for (std::size_t t = 0; t < tokens; ++t)
    for (const std::uint32_t c : channels) without[t * cols + c] = 0;
  const auto columns = test::random_activations(rows * channels.size(), 3);
  const low_rank beside = low_rank::of_columns({columns.data(), rows, channels.size()}, channels, cols);
  CHECK(beside.rank() == channels.size());
  CHECK(beside.cols() == cols);
  CHECK(beside.rows() == rows);
  const low_rank* const adapters[] = {&beside};
  const std::uint32_t chosen[] = {0, no_adapter, 0, 0, no_adapter, 0, 0};
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    panel_matrix panels = panel_matrix::from(w.view(), threads, *u.kernels), gate = panel_matrix::from(g.view(), threads, *u.kernels);
    const panel_matrix whole = panel_matrix::from(w.view(), threads, *u.kernels), whole_gate = panel_matrix::from(g.view(), threads, *u.kernels);
    panels.ignore(channels);
    gate.ignore(channels);
    CHECK(panels.ignored() == channels);
    for (const precision how : {precision::int8, precision::int16, precision::exact}) {
      std::vector<float> y(tokens * rows), plain(tokens * rows);
      const auto check = [&](std::span<const std::uint32_t> who) {
        for (std::size_t t = 0; t < tokens; ++t)
          for (std::size_t r = 0; r < rows; ++r) {
            double plus = 0, terms = std::fabs(plain[t * rows + r]);
            for (std::size_t k = 0; k < channels.size() && (who.empty() || who[t] == 0); ++k) {
              const double p = static_cast<double>(columns[r * channels.size() + k]) * x[t * cols + channels[k]];
              plus += p;
              terms += std::fabs(p);
            }
            REQUIRE(std::fabs(y[t * rows + r] - (plain[t * rows + r] + plus)) <= 8 * 0x1p-24 * terms);
          }
      };
      multiply({without.data(), tokens, cols}, whole, {plain.data(), tokens, rows}, space.products, threads, how);
      adapted_product p{{{x.data(), tokens, cols}, &panels, {y.data(), tokens, rows}}, adapters};
      multiply(std::span(&p, 1), {}, space, threads, how);
      check({});
      multiply(std::span(&p, 1), chosen, space, threads, how);
      check(chosen);
      // With a gate, whose columns are not apart: the bits of a product with zeros.
      p.adapters = {};
      p.base.gate = &gate;
      const product both{{without.data(), tokens, cols}, &whole, {plain.data(), tokens, rows}, &whole_gate};
      multiply(std::span(&p, 1), {}, space, threads, how);
      multiply(std::span(&both, 1), space.products, threads, how);
      CHECK(y == plain);
    }
  }
}
