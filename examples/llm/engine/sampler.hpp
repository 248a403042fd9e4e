// Chooses the next token from logits: the likeliest, or a draw by temperature and top-p (Holtzman et al. 2020).
//
// The generator is spelt out because the standard's distributions differ between libraries: a seed gives the same text everywhere.
#pragma once

#include "elementwise.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace llm {

/// The index of the largest of n > 0 floats, the first among equals.
inline std::size_t largest(const float* x, std::size_t n) noexcept {
  return static_cast<std::size_t>(std::max_element(x, x + n) - x);
}

struct sampling {
  float temperature = 0.0f;  ///< 0: the likeliest token
  float top_p = 1.0f;        ///< draw among the likeliest tokens that together have this probability
  std::uint64_t seed = 1;
};

/// SplitMix64 (Steele et al. 2014): a seed gives the same numbers everywhere.
class random_bits {
 public:
  explicit random_bits(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// [0, 1), from the upper 53 bits.
  double uniform() noexcept { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

class sampler {
 public:
  explicit sampler(sampling s) : settings_(s), random_(s.seed) {}

  /// A token from n > 0 logits.
  std::size_t next(const float* logits, std::size_t n) {
    if (!(settings_.temperature > 0.0f)) return largest(logits, n);
    probability_.assign(logits, logits + n);
    array_of(probability_.data(), n) /= settings_.temperature;
    softmax(probability_.data(), n);
    order_.resize(n);
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    if (settings_.top_p < 1.0f) {
      std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) { return probability_[a] > probability_[b]; });
      double sum = 0.0;
      std::size_t kept = 0;
      while (kept < n && sum < static_cast<double>(settings_.top_p)) sum += static_cast<double>(probability_[order_[kept++]]);
      order_.resize(std::max<std::size_t>(kept, 1));
    }
    double total = 0.0;
    for (std::size_t i : order_) total += static_cast<double>(probability_[i]);
    double left = random_.uniform() * total;
    for (std::size_t i : order_)
      if ((left -= static_cast<double>(probability_[i])) < 0.0) return i;
    return order_.back();
  }

 private:
  sampling settings_;
  random_bits random_;
  std::vector<float> probability_;
  std::vector<std::size_t> order_;
};

}  // namespace llm
