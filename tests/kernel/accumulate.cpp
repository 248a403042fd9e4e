// c += aᵀ b against float64, with rests in every direction, on every instruction set that this machine has.
#include <lowbit/kernel/dispatch.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

using namespace lowbit;

TEST_CASE("sums of outer products are float64's to rounding, write nothing else, and do not depend on the split") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    for (const std::size_t rows : {1, 6, 13, 96})
      for (const std::size_t cols : {1, 16, 33, 96})
        for (const std::size_t depth : {0, 1, 255, 600}) {
          constexpr std::size_t stride = 103;
          std::vector<float> a(depth * stride + 32), b(depth * stride + 32), c(rows * stride);
          for (auto* m : {&a, &b, &c})
            for (float& v : *m) v = normal(random);
          for (const bool subtract : {false, true}) {
            std::vector<float> got = c, pieces = c;
            u.kernels->accumulate({a.data(), stride, b.data(), stride, depth, got.data(), stride, rows, cols, subtract});
            for (std::size_t i = 0; i < rows; ++i)
              for (std::size_t j = 0; j < stride; ++j) {
                double sum = 0, size = 0;
                for (std::size_t k = 0; k < depth && j < cols; ++k) {
                  const double term = static_cast<double>(a[k * stride + i]) * b[k * stride + j];
                  sum += term;
                  size += std::fabs(term);
                }
                const double expected = c[i * stride + j] + (subtract ? -sum : sum);
                REQUIRE(std::fabs(got[i * stride + j] - expected) <= 1e-6 * (size + std::fabs(expected)) * (j < cols));
              }
            // One row and one column at a time.
            for (std::size_t i = 0; i < rows; ++i)
              for (std::size_t j = 0; j < cols; ++j)
                u.kernels->accumulate({&a[i], stride, &b[j], stride, depth, &pieces[i * stride + j], stride, 1, 1, subtract});
            REQUIRE(got == pieces);
          }
        }
  }
}
