// Weights and importances that are hard on quantisers, the same on every machine: integers out of std::mt19937, exact conversions, and
// single IEEE 754 operations. Kinds change every 256 weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

/// `n` weights, n a multiple of 256: smooth, heavy-tailed, all positive, with zero runs, full of ties, with outliers, tiny, and negative.
inline std::vector<float> hard_weights(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto unit = [&] { return static_cast<float>(random() >> 8) * 0x1p-24f; };  // [0, 1)
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float smooth = ((unit() - unit()) + (unit() - unit())) * 0.0625f;
    const float heavy = (unit() - unit()) / (unit() + 0x1p-12f) * 0.0625f;
    const std::uint32_t word = random();
    switch (i / 256 % 8) {
      case 0: x[i] = smooth; break;
      case 1: x[i] = heavy; break;
      case 2: x[i] = heavy < 0 ? -heavy : heavy; break;
      case 3: x[i] = (i / 16 % 3 == 0 || i % 97 == 5) ? 0.0f : smooth; break;
      case 4: x[i] = static_cast<float>(static_cast<int>(word % 15) - 7) * 0.03125f; break;
      case 5: x[i] = word % 101 == 0 ? smooth * 64.0f : smooth; break;
      case 6: x[i] = (i / 32 % 2 != 0 ? smooth * 0x1p-30f : heavy * 0x1p-44f) * (i / 256 % 16 < 8 ? 1.0f : 0x1p-90f); break;
      default: x[i] = (smooth < 0 ? smooth : -smooth) - 0.001f; break;
    }
  }
  return x;
}

/// One number > 0 for each of `n` channels, over six orders of magnitude.
inline std::vector<float> hard_importance(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> w(n);
  for (float& v : w) {
    v = static_cast<float>((random() >> 8) + 1) * 0x1p-24f;
    if (random() % 16 == 0) v *= 0x1p-20f;
    if (random() % 64 == 0) v *= 0x1p8f;
  }
  return w;
}

/// The CRC-32 of zlib and gzip.
inline std::uint32_t crc32_of(const std::uint8_t* bytes, std::size_t n) {
  std::uint32_t crc = 0xffffffffu;
  for (std::size_t i = 0; i < n; ++i) {
    crc ^= bytes[i];
    for (int k = 0; k < 8; ++k) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xedb88320u : 0u);
  }
  return ~crc;
}
