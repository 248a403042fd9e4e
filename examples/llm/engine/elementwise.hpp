// The parts of a Llama that are not matrix products: RMSNorm, RoPE, softmax. All on one row of floats.
//
// Sources: Zhang & Sennrich 2019 (RMSNorm), Su et al. 2021 (RoPE). Sums of squares are in double.
#pragma once

#include "config.hpp"
#include "matrix.hpp"

#include <cmath>

namespace llm {

/// out = x / sqrt(mean(x^2) + epsilon) * weight, over n floats.
inline void rms_norm(const float* x, const float* weight, std::size_t n, float epsilon, float* out) {
  const double mean = array_of(x, n).cast<double>().square().sum() / static_cast<double>(n);
  const auto scale = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon)));
  array_of(out, n) = array_of(x, n) * scale * array_of(weight, n);
}

/// x = exp(x - max) / sum, over n > 0 floats.
inline void softmax(float* x, std::size_t n) {
  auto a = array_of(x, n);
  a = (a - a.maxCoeff()).exp();
  a *= static_cast<float>(1.0 / a.cast<double>().sum());
}

/// log(sum(exp(x))), over n > 0 floats.
inline double log_sum_exp(const float* x, std::size_t n) {
  const auto a = array_of(x, n);
  const float highest = a.maxCoeff();
  return static_cast<double>(highest) + std::log((a - highest).exp().cast<double>().sum());
}

/// The cosines and sines of one position: out[2i], out[2i + 1] for pair i < head_dim / 2.
inline void rope_angles(const model_config& c, std::size_t position, float* out) {
  for (std::size_t i = 0; i < c.head_dim / 2; ++i) {
    double frequency = std::pow(static_cast<double>(c.rope_base), -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
    if (!c.rope_divisors.empty()) frequency /= static_cast<double>(c.rope_divisors[i]);
    const double angle = static_cast<double>(position) * frequency;
    out[2 * i] = static_cast<float>(std::cos(angle));
    out[2 * i + 1] = static_cast<float>(std::sin(angle));
  }
}

/// Turns one head by `angles` as rope_angles gives them.
inline void rope(float* head, std::size_t head_dim, rope_order order, const float* angles) {
  const std::size_t half = head_dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    float& a = order == rope_order::pairs ? head[2 * i] : head[i];
    float& b = order == rope_order::pairs ? head[2 * i + 1] : head[i + half];
    const float x = a, y = b, cosine = angles[2 * i], sine = angles[2 * i + 1];
    a = x * cosine - y * sine;
    b = x * sine + y * cosine;
  }
}

}  // namespace llm
