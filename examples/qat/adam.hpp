// Adam (Kingma & Ba 2015), for any number of arrays.
#pragma once

#include <Eigen/Core>
#include <vector>

namespace qat {

class adam {
 public:
  /// Begins the next step of all arrays; `rate` is how far at most a number moves in it, about.
  void begin_step(float rate) {
    rate_ = rate;
    ++steps_;
    at_ = 0;
  }
  /// Moves an array against its gradient, of the same size. Arrays come in the same order in every step.
  void update(float* x, const float* gradient, Eigen::Index size) {
    if (at_ == moments_.size()) moments_.push_back({array::Zero(size), array::Zero(size)});
    auto& [mean, square] = moments_[at_++];
    const Eigen::Map<const array> g(gradient, size);
    mean = beta1 * mean + (1 - beta1) * g;
    square = beta2 * square + (1 - beta2) * g.square();
    const float unbias_mean = 1 - std::pow(beta1, static_cast<float>(steps_)), unbias_square = 1 - std::pow(beta2, static_cast<float>(steps_));
    Eigen::Map<array>(x, size) -= rate_ / unbias_mean * mean / ((square / unbias_square).sqrt() + epsilon);
  }

 private:
  using array = Eigen::ArrayXf;
  struct moments {
    array mean, square;
  };
  static constexpr float beta1 = 0.9f, beta2 = 0.99f, epsilon = 1e-8f;
  float rate_ = 0;
  int steps_ = 0;
  std::size_t at_ = 0;
  std::vector<moments> moments_;
};

}  // namespace qat
