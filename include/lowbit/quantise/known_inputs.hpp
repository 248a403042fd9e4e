// What a set of statistics tells fits: the one way from calibration to input_statistics.
#pragma once

#include <lowbit/quantise/fit.hpp>

namespace lowbit::detail {

template <class T, class... Needed>
constexpr bool lists(needs_statistics<Needed...>) {
  return (std::is_same_v<T, Needed> || ...);
}

/// What fits are told of a layer's inputs: mean x² wherever anything knows it, the Hessian where the fit asks for it (it is n² floats).
template <class Fit, class Stats>
struct known_inputs {
  explicit known_inputs([[maybe_unused]] const Stats& stats) {
    if constexpr (Stats::template has<channel_importance>) {
      importance = stats.template get<channel_importance>().mean();
      about.importance = importance.data();
    } else if constexpr (Stats::template has<hessian>) {
      const hessian& h = stats.template get<hessian>();
      importance.resize(static_cast<Eigen::Index>(h.channels()));
      for (std::size_t c = 0; c < h.channels(); ++c) importance[static_cast<Eigen::Index>(c)] = h.tokens() != 0 ? h(c, c) / 2 : 1.0f;
      about.importance = importance.data();
    }
    if constexpr (lists<hessian>(typename Fit::needs{})) {
      whole = stats.template get<hessian>().matrix();
      about.hessian = whole.data();
      about.hessian_stride = static_cast<std::size_t>(whole.rows());
    }
  }
  known_inputs(const known_inputs&) = delete;
  known_inputs& operator=(const known_inputs&) = delete;

  Eigen::VectorXf importance;
  Eigen::MatrixXf whole;
  input_statistics about;
};

}  // namespace lowbit::detail
