// What calibration learns of a layer's inputs, streaming: feed tokens as they pass, merge parts from several threads.
//
// Each statistic is a type; a quantiser's policies list the types they need, and a `calibrated<...>` set answers at compile time whether
// it has them. Activations are [tokens, channels]. Sums of channels are kept in double, so that the order of merging hardly matters; the
// Hessian, whose size and time count, in float (hessian.hpp).
#pragma once

#include <lowbit/calibration/hessian.hpp>

#include <Eigen/Core>
#include <cmath>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

namespace lowbit {

namespace detail {
/// A number for every channel, `value(channel)`.
template <class F>
Eigen::VectorXf per_channel(std::size_t channels, F&& value) {
  Eigen::VectorXf v(static_cast<Eigen::Index>(channels));
  for (std::size_t c = 0; c < channels; ++c) v.data()[c] = value(c);
  return v;
}

/// Sums of something of every channel over tokens; `Term` says of what.
template <class Term>
class channel_sum {
 public:
  explicit channel_sum(std::size_t channels) : sum_(channels) {}
  /// What was gathered elsewhere: the channels' means, as if of one token.
  static channel_sum of_means(std::span<const float> means) {
    channel_sum s(means.size());
    for (std::size_t c = 0; c < means.size(); ++c) s.sum_[c] = static_cast<double>(means[c]);
    s.tokens_ = 1;
    return s;
  }
  void add(matrix_view<const float> x) {
    LOWBIT_EXPECTS(x.cols == channels());
    if (x.empty()) return;
    for (std::size_t t = 0; t < x.rows; ++t)
      for (std::size_t c = 0; c < x.cols; ++c) sum_[c] += Term::of(static_cast<double>(x(t, c)));
    tokens_ += x.rows;
  }
  void merge(const channel_sum& other) {
    LOWBIT_EXPECTS(channels() == other.channels());
    for (std::size_t c = 0; c < sum_.size(); ++c) sum_[c] += other.sum_[c];
    tokens_ += other.tokens_;
  }
  /// The statistics of inputs whose channel c is divided by by[c].
  void divide(std::span<const float> by) {
    LOWBIT_EXPECTS(by.size() == channels());
    for (std::size_t c = 0; c < by.size(); ++c) sum_[c] /= Term::of(static_cast<double>(by[c]));
  }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::size_t channels() const noexcept { return sum_.size(); }
  /// The mean of a channel; 1 for all while no token was seen, so that an expert without samples counts its channels alike.
  [[nodiscard]] Eigen::VectorXf mean() const {
    return per_channel(channels(), [this](std::size_t c) { return tokens_ == 0 ? 1.0f : static_cast<float>(sum_[c] / static_cast<double>(tokens_)); });
  }

  // What there is to save: see saved.hpp.
  static constexpr std::string_view name = Term::name;
  static constexpr std::optional<std::size_t> stored_values(std::size_t channels) noexcept { return channels; }
  template <class Self>
  static auto stored(Self& self) { return std::pair(&self.tokens_, std::span(self.sum_)); }

 private:
  std::vector<double> sum_;
  std::size_t tokens_ = 0;
};

struct magnitude_term {
  static constexpr std::string_view name = "channel_magnitude";
  static double of(double x) noexcept { return std::fabs(x); }
};
struct square_term {
  static constexpr std::string_view name = "channel_importance";
  static double of(double x) noexcept { return x * x; }
};
}  // namespace detail

/// Mean |x| of every channel: what AWQ scales by (Lin et al. 2024, section 3.2).
using channel_magnitude = detail::channel_sum<detail::magnitude_term>;
/// Mean x² of every channel: llama.cpp's importance matrix.
using channel_importance = detail::channel_sum<detail::square_term>;

/// The largest |x| of every channel: what SmoothQuant scales by (Xiao et al. 2023, equation 4) and LLM.int8 finds outliers with.
class channel_maximum {
 public:
  explicit channel_maximum(std::size_t channels) : most_(channels) {}
  void add(matrix_view<const float> x) {
    LOWBIT_EXPECTS(x.cols == channels());
    if (x.empty()) return;
    for (std::size_t t = 0; t < x.rows; ++t)
      for (std::size_t c = 0; c < x.cols; ++c) raise(c, std::fabs(x(t, c)));
    tokens_ += x.rows;
  }
  void merge(const channel_maximum& other) {
    LOWBIT_EXPECTS(other.channels() == channels());
    for (std::size_t c = 0; c < channels(); ++c) raise(c, other.most_[c]);
    tokens_ += other.tokens_;
  }
  /// The statistics of inputs whose channel c is divided by by[c].
  void divide(std::span<const float> by) {
    LOWBIT_EXPECTS(by.size() == channels());
    for (std::size_t c = 0; c < by.size(); ++c) most_[c] /= std::fabs(by[c]);
  }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  [[nodiscard]] std::size_t channels() const noexcept { return most_.size(); }
  /// The maximum of a channel, NaNs left out; 1 for all while no token was seen.
  [[nodiscard]] Eigen::VectorXf maximum() const {
    return detail::per_channel(channels(), [this](std::size_t c) { return tokens_ == 0 ? 1.0f : most_[c]; });
  }

  static constexpr std::string_view name = "channel_maximum";
  static constexpr std::optional<std::size_t> stored_values(std::size_t channels) noexcept { return channels; }
  template <class Self>
  static auto stored(Self& self) { return std::pair(&self.tokens_, std::span(self.most_)); }

 private:
  void raise(std::size_t c, float value) {
    if (value > most_[c]) most_[c] = value;
  }
  std::vector<float> most_;
  std::size_t tokens_ = 0;
};

/// A list of statistics that a policy needs.
template <class... S>
struct needs_statistics {};

/// The statistics that a caller has gathered of one layer's inputs.
template <class... S>
class calibrated {
 public:
  /// No number of channels: of no data at all.
  static constexpr std::size_t any = static_cast<std::size_t>(-1);

  explicit calibrated(std::size_t channels) : channels_(channels), all_(S(channels)...) {}
  /// Of statistics that are there. Expects as many channels of all.
  explicit calibrated(S... all) : channels_(std::get<0>(std::tie(all...)).channels()), all_(std::move(all)...) {
    LOWBIT_EXPECTS(std::apply([&](const S&... s) { return ((s.channels() == channels_) && ...); }, all_));
  }
  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  void add(matrix_view<const float> x) {
    serial_executor serial;
    add(x, serial);
  }
  /// The same in parallel, as far as a statistic is worth it; the same bits for every executor.
  template <executor E>
  void add(matrix_view<const float> x, E& executor) {
    const auto add_to = [&](auto& s) {
      if constexpr (requires { s.add(x, executor); }) s.add(x, executor);
      else s.add(x);
    };
    std::apply([&](auto&... s) { (add_to(s), ...); }, all_);
  }
  void merge(const calibrated& other) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { (std::get<I>(all_).merge(std::get<I>(other.all_)), ...); }(std::index_sequence_for<S...>{});
  }
  /// The statistics of the same inputs, channel c divided by by[c]: what a transform's scales make of them. Empty: nothing.
  void divide(std::span<const float> by) {
    if (!by.empty()) std::apply([&](auto&... s) { (s.divide(by), ...); }, all_);
  }
  template <class T>
  static constexpr bool has = (std::is_same_v<T, S> || ...);
  template <class T>
  [[nodiscard]] const T& get() const noexcept {
    static_assert(has<T>, "lowbit: this calibration has no such statistic");
    return std::get<T>(all_);
  }
  /// Calls f(statistic) for each.
  template <class F>
  void for_each(F&& f) const {
    std::apply([&](const S&... s) { (f(s), ...); }, all_);
  }
  template <class F>
  void for_each(F&& f) {
    std::apply([&](S&... s) { (f(s), ...); }, all_);
  }

 private:
  std::size_t channels_;
  std::tuple<S...> all_;
};

template <>
class calibrated<> {
 public:
  void divide(std::span<const float>) {}
  static constexpr std::size_t any = static_cast<std::size_t>(-1);
  [[nodiscard]] static constexpr std::size_t channels() noexcept { return any; }
  template <class T>
  static constexpr bool has = false;
};

/// What every method of this library asks of a layer.
using layer_statistics = calibrated<hessian, channel_magnitude, channel_importance, channel_maximum>;

/// No data at all: what round-to-nearest needs.
using uncalibrated = calibrated<>;

}  // namespace lowbit
