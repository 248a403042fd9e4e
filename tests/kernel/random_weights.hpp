// Random blocks of any format whose scales are ordinary numbers: every code, zero-point and sub-scale can occur.
#pragma once

#include <lowbit/matrix/packed_matrix.hpp>

#include <cmath>
#include <random>

namespace lowbit::test {

inline packed_matrix random_blocks(const format_spec& s, std::size_t rows, std::size_t cols, std::uint32_t seed) {
  std::mt19937 random(seed);
  packed_matrix w(s, rows, cols);
  for (auto& b : w.bytes()) b = static_cast<std::uint8_t>(random());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t b = 0; b < s.row_blocks(cols); ++b) {
      std::uint8_t* const block = w.row(r) + b * s.bytes;
      for (const scalar_field f : {s.scale, s.minimum, scalar_field{s.element, 0}}) {
        if (!f.present()) continue;
        const auto sixty_fourths = 64 + random() % 64;  // two statements: arguments are evaluated in any order
        const auto places = static_cast<int>(random() % 8);
        const float value = std::ldexp(static_cast<float>(sixty_fourths) / 64.0f, -places);
        const std::uint32_t bits = number_bits(f.type, random() % 2 != 0 && f.type != number::e8m0_half ? -value : value);
        std::memcpy(block + f.at, &bits, size_of(f.type));
      }
    }
  return w;
}

inline std::vector<float> random_activations(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace lowbit::test
