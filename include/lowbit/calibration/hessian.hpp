// The second moments of a layer's inputs: the Hessian of its squared output error, and how far its inputs have drifted.
//
// Sums are float32: half the memory of double, and the multiply-add peak twice as high. Products are summed 96 at a time before they are
// added to the total, so that the error stays near rounding (the tests hold it to 1e-6 of
// the largest element against float64), where quantisers add 1 % of the mean diagonal anyway. Only the upper triangle is kept: 2 n² bytes.
#pragma once

#include <lowbit/calibration/block_triangle.hpp>
#include <lowbit/core/matrix_view.hpp>

#include <Eigen/Core>
#include <optional>
#include <string_view>

namespace lowbit {

/// H = (2 / tokens) Σ x xᵀ: what GPTQ needs (Frantar et al. 2023, equation 1).
class hessian {
 public:
  explicit hessian(std::size_t channels) : sum_(channels) {}
  /// Adds x [tokens, channels]: tokens * channels² multiply-adds over two, at about four fifths of the machine's peak
  /// (78 to 86 GFLOP/s of 102 for 576 to 4096 channels, one core of an AMD Zen 3).
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
    Eigen::MatrixXf m(n, n);
    for (Eigen::Index j = 0; j < n; ++j)
      for (Eigen::Index i = 0; i < n; ++i) m(i, j) = (*this)(static_cast<std::size_t>(i), static_cast<std::size_t>(j));
    return m;
  }

  // What there is to save: see saved.hpp.
  static constexpr std::string_view name = "hessian";
  static constexpr std::optional<std::size_t> stored_values(std::size_t channels) noexcept {
    const std::size_t blocks = ceil_div(channels, block_triangle::width);
    const auto pairs = checked_mul(blocks, blocks + 1);
    return pairs ? checked_mul(*pairs / 2, block_triangle::width * block_triangle::width) : std::nullopt;
  }
  template <class Self>
  static auto stored(Self& self) { return std::pair(&self.tokens_, self.sum_.values()); }

 private:
  [[nodiscard]] double factor() const noexcept { return tokens_ != 0 ? 2.0 / static_cast<double>(tokens_) : 0.0; }
  block_triangle sum_;
  std::size_t tokens_ = 0;
};

/// D = (2 / tokens) Σ (x - x̂) x̂ᵀ: how the inputs x of the float model differ from x̂, those that a layer gets once the layers in front of it
/// are quantised (GPTAQ: Li et al. 2025, equation 8). 4 n² bytes.
class input_drift {
 public:
  explicit input_drift(std::size_t channels) : channels_(channels), stride_(round_up(channels, block_triangle::width)), sum_(channels * stride_) {}
  /// Both [tokens, channels], the same tokens.
  template <executor E>
  void add(matrix_view<const float> x, matrix_view<const float> quantised, E& executor) {
    LOWBIT_EXPECTS(x.cols == channels_ && quantised.cols == channels_ && x.rows == quantised.rows);
    if (x.empty()) return;
    constexpr std::size_t width = block_triangle::width;
    const std::size_t blocks = stride_ / width;
    std::vector<float> difference(x.rows * x.cols), a(x.rows * stride_), b(x.rows * stride_);
    for (std::size_t t = 0; t < x.rows; ++t)
      for (std::size_t c = 0; c < x.cols; ++c) difference[t * x.cols + c] = x(t, c) - quantised(t, c);
    for_parts(executor, blocks, 1, [&](std::size_t begin, std::size_t end) {
      detail::pack_strips({difference.data(), x.rows, x.cols}, a.data(), begin, end);
      detail::pack_strips(quantised, b.data(), begin, end);
    });
    for_parts(executor, blocks, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i)
        for (std::size_t j = 0; j < blocks; ++j)
          LOWBIT_BEST_KERNEL(accumulate)({a.data() + i * width * x.rows, width, b.data() + j * width * x.rows, width, x.rows,
                                          sum_.data() + i * width * stride_ + j * width, stride_, std::min(width, channels_ - i * width), width});
    });
    tokens_ += x.rows;
  }
  void merge(const input_drift& other) {
    LOWBIT_EXPECTS(channels_ == other.channels_);
    for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += other.sum_[i];
    tokens_ += other.tokens_;
  }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  /// tokens / 2 times D, [channels, channels], readable up to the next multiple of 96 columns.
  [[nodiscard]] matrix_view<const float> sum() const noexcept { return {sum_.data(), channels_, channels_, stride_}; }

 private:
  std::size_t channels_, stride_;
  std::vector<float> sum_;
  std::size_t tokens_ = 0;
};

}  // namespace lowbit
