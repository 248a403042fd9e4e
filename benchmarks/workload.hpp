// What the benchmarks work on: normal floats, and weights made of them.
#pragma once

#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/matrix/panel_matrix.hpp>
#include <lowbit/quantise/by_id.hpp>

#include <cstring>
#include <random>
#include <vector>

namespace lowbit::bench {

struct shape {
  std::size_t rows, cols;
};

/// What one-token rows rotate through: more than twice any last-level cache that this is likely to meet.
inline constexpr std::size_t streamed_bytes = std::size_t{540} << 20;

inline std::vector<float> normal_floats(std::size_t n, float size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

/// Normal weights, quantised as users would: 16 rows of them, over and over. (Random bits would be quicker to make, but scales beyond
/// all reason bring subnormal sums, which processors take their time with.)
inline packed_matrix random_weights(const format_spec& s, shape n) {
  constexpr std::size_t rows = 16;
  const std::vector<float> weights = normal_floats(rows * n.cols, 0.05f, 1);
  serial_executor serial;
  const auto few = quantise(*find_format(s.name), method::rtn, matrix_view<const float>(weights.data(), rows, n.cols), serial);
  packed_matrix w(s, n.rows, n.cols);
  for (std::size_t r = 0; r < n.rows; ++r) std::memcpy(w.row(r), few->row(r % rows), w.view().row_bytes());
  return w;
}

/// As many copies of a matrix in the run layout as a product of so many tokens rotates through.
inline std::vector<panel_matrix> panels_of(const packed_matrix& w, std::size_t tokens, const kernel::unit& unit) {
  serial_executor serial;
  std::vector<panel_matrix> copies;
  const std::size_t wanted = tokens == 1 ? streamed_bytes : 1;
  for (std::size_t bytes = 0; bytes < wanted; bytes += copies.back().size_bytes()) copies.push_back(panel_matrix::from(w.view(), serial, unit));
  return copies;
}

}  // namespace lowbit::bench
