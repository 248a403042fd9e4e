// The second moments of a layer's inputs: the Hessian of its squared output error, and how far its inputs have drifted.
//
// Sums are float32: half the memory of double, and the multiply-add peak twice as high. Products are summed 96 at a time before they are
// added to the total, so that the error stays near rounding: against float64, 2e-7 of the norm after 65,536 tokens (the tests hold it to
// 1e-6), where quantisers add 1 % of the mean diagonal anyway. Only the upper triangle is kept: 2 n² bytes.
#pragma once

#include <lowbit/calibration/block_triangle.hpp>
#include <lowbit/core/matrix_view.hpp>

#include <Eigen/Core>

namespace lowbit {

/// H = (2 / tokens) Σ x xᵀ: what GPTQ needs (Frantar et al. 2023, equation 1).
class hessian {
 public:
  explicit hessian(std::size_t channels) : sum_(channels) {}
  /// Adds x [tokens, channels]: tokens * channels² multiply-adds over two, at about nine tenths of the machine's peak.
  template <executor E>
  void add(matrix_view<const float> x, E& executor) {
    LOWBIT_EXPECTS(x.cols == sum_.size());
    if (x.empty()) return;
    add_gram(sum_, x, executor);
    tokens_ += x.rows;
  }
  void add(matrix_view<const float> x) {
    serial_executor serial;
    add(x, serial);
  }
  void merge(const hessian& other) {
    LOWBIT_EXPECTS(channels() == other.channels());
    for (std::size_t i = 0; i < sum_.values().size(); ++i) sum_.values()[i] += other.sum_.values()[i];
    tokens_ += other.tokens_;
  }
  /// The statistics of inputs whose channel c is divided by by[c].
  void divide(std::span<const float> by) {
    LOWBIT_EXPECTS(by.size() == channels());
    for (std::size_t j = 0; j < by.size(); ++j)
      for (std::size_t i = 0; i <= j; ++i) sum_(i, j) = sum_(i, j) / by[i] / by[j];
  }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::size_t channels() const noexcept { return sum_.size(); }
  /// One element; 0 while no token was seen.
  [[nodiscard]] float operator()(std::size_t i, std::size_t j) const noexcept {
    return static_cast<float>(static_cast<double>(i <= j ? sum_(i, j) : sum_(j, i)) * factor());
  }
  /// The whole symmetric matrix.
  [[nodiscard]] Eigen::MatrixXf matrix() const {
    const auto n = static_cast<Eigen::Index>(channels());
    return Eigen::MatrixXf::NullaryExpr(n, n, [this](Eigen::Index i, Eigen::Index j) {
      return (*this)(static_cast<std::size_t>(i), static_cast<std::size_t>(j));
    });
  }

  /// Calls f(tokens, values) on what there is to save.
  template <class Self, class F>
  static auto stored(Self& self, F&& f) { return f(self.tokens_, self.sum_.values()); }

 private:
  [[nodiscard]] double factor() const noexcept { return tokens_ != 0 ? 2.0 / static_cast<double>(tokens_) : 0.0; }
  block_triangle sum_;
  std::uint64_t tokens_ = 0;
};

}  // namespace lowbit
