// Registers of floats against scalar arithmetic.
#include <lowbit/kernel/lanes.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <random>

using namespace lowbit;

TEST_CASE("quotients and roots are rounded correctly, to the last bit") {
  using floats = kernel::lane_floats<xsimd::default_arch, 2>;
  constexpr std::size_t n = floats::lanes;
  std::minstd_rand random(7);
  const auto any_float = [&] {
    const float mantissa = 1.0f + static_cast<float>(random() % 8388608u) * 0x1p-23f;
    return std::ldexp(mantissa, static_cast<int>(random() % 40) - 20);
  };
  for (int i = 0; i < 10000; ++i) {
    float a[n], b[n], quotient[n], root[n];
    for (std::size_t k = 0; k < n; ++k) a[k] = any_float(), b[k] = any_float();
    (floats::load(a) / floats::load(b)).store(quotient);
    square_root(floats::load(a)).store(root);
    for (std::size_t k = 0; k < n; ++k) {
      // In double both are exact enough: rounding twice gives the same float (Figueroa 1995: 53 >= 2 * 24 + 2 bits).
      REQUIRE(quotient[k] == static_cast<float>(static_cast<double>(a[k]) / static_cast<double>(b[k])));
      REQUIRE(root[k] == static_cast<float>(std::sqrt(static_cast<double>(a[k]))));
    }
  }
}
