// y = x W against float64, for every format, shape and executor.
#include "../executors.hpp"
#include "../kernel/random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/transposed_product.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace lowbit;

namespace {
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
using formats = detail::concat<all_formats, format_list<q3_g40>>::type;

using backwards = backwards_executor<5>;
}  // namespace

TEST_CASE("the product over rows is float64's, and the same bits however it is dealt out") {
  struct shape { std::size_t rows, cols, tokens; };
  serial_executor serial;
  backwards wide;
  transposed_workspace space;
  for (const format_spec* s : formats::specs) {
    CAPTURE(std::string(s->name));
    for (const shape n : {shape{1, 1, 1}, shape{205, s->block, 3}, shape{97, 300, 13}}) {
      CAPTURE(n.cols);
      const packed_matrix w = test::random_blocks(*s, n.rows, n.cols, 5);
      std::vector<float> weights(n.rows * n.cols), x(n.tokens * n.rows), y(n.tokens * n.cols, 7.0f), other(y.size());
      decode(w.view(), {weights.data(), n.rows, n.cols});
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i * i % 1009));
      multiply_transposed({x.data(), n.tokens, n.rows}, w.view(), {y.data(), n.tokens, n.cols}, space, serial);
      multiply_transposed({x.data(), n.tokens, n.rows}, w.view(), {other.data(), n.tokens, n.cols}, space, wide);
      CHECK(y == other);
      bool near = true;
      for (std::size_t t = 0; t < n.tokens; ++t)
        for (std::size_t c = 0; c < n.cols; ++c) {
          double sum = 0, size = 0;
          for (std::size_t r = 0; r < n.rows; ++r) {
            const double term = double{x[t * n.rows + r]} * weights[r * n.cols + c];
            sum += term;
            size += std::fabs(term);
          }
          near &= std::fabs(sum - y[t * n.cols + c]) <= 1e-6 * size;
        }
      CHECK(near);
    }
  }
}

TEST_CASE("no rows give zeros") {
  serial_executor serial;
  transposed_workspace space;
  const packed_matrix w(spec_of<q8_0>, 0, 32);
  std::vector<float> y(64, 7.0f);
  multiply_transposed({nullptr, 2, 0}, w.view(), {y.data(), 2, 32}, space, serial);
  CHECK(y == std::vector<float>(64, 0.0f));
}
