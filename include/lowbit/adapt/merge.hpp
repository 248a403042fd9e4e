// Merging an adapter into weights, and how much of it outlives their quantising again.
//
// W' = dequant(W) + s B A, on the base that the adapter was trained beside (QLoRA: Dettmers et al. 2023), is floats; any quantiser brings it to
// any format from there. At few bits a weak adapter may vanish in that: its change of a weight is smaller than half a step of the grid, and
// rounding to nearest takes every weight back to where it was. Error feedback keeps more of it, since what one weight loses moves the next.
#pragma once

#include <lowbit/calibration/hessian.hpp>
#include <lowbit/core/error.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/low_rank.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

namespace lowbit {

/// w += scale * B A. Sums in double, rounded once. Expects w of the factors' shape.
template <executor E>
void merge(const low_rank_factors& f, matrix_view<float> w, E& executor) {
  LOWBIT_EXPECTS(w.rows == f.rows && w.cols == f.cols);
  for_parts(executor, f.rows, 16, [&](std::size_t begin, std::size_t end) {
    std::vector<double> row(f.cols);
    for (std::size_t r = begin; r < end; ++r) {
      std::fill(row.begin(), row.end(), 0.0);
      for (std::size_t k = 0; k < f.rank; ++k) {
        const double b = static_cast<double>(f.scale) * static_cast<double>(f.b[r * f.rank + k]);
        for (std::size_t c = 0; c < f.cols; ++c) row[c] += b * static_cast<double>(f.a[k * f.cols + c]);
      }
      for (std::size_t c = 0; c < f.cols; ++c) w(r, c) = static_cast<float>(static_cast<double>(w(r, c)) + row[c]);
    }
  });
}

/// Several adapters of one matrix as one: their sum. Its rank is the sum of theirs, its scale 1. Expects equal shapes, and at least one.
inline low_rank_factors sum_of(std::span<const low_rank_factors> all) {
  LOWBIT_EXPECTS(!all.empty());
  low_rank_factors sum{all[0].rows, all[0].cols, 0, {}, {}, 1.0f};
  for (const low_rank_factors& f : all) {
    LOWBIT_EXPECTS(f.rows == sum.rows && f.cols == sum.cols);
    sum.rank += f.rank;
    sum.a.insert(sum.a.end(), f.a.begin(), f.a.end());
  }
  for (std::size_t r = 0; r < sum.rows; ++r)
    for (const low_rank_factors& f : all)
      for (std::size_t k = 0; k < f.rank; ++k) sum.b.push_back(f.scale * f.b[r * f.rank + k]);
  return sum;
}

/// What became of an adapter's effect on a layer's output. Δ = s B A is what it changes, Δ' what the quantised merged weights differ from
/// the base by, and <M, N> = tr(M H Nᵀ): twice the mean over tokens of the products of M's and N's outputs; without a Hessian tr(M Nᵀ).
struct survival {
  double share = 1;        ///< <Δ', Δ> / <Δ, Δ>: 1 if all of it is there, 0 if none, whatever else changed; 1 for an adapter that does nothing
  double noise = 0;        ///< |Δ' - Δ| / |Δ|: what else changed, in units of the effect; above 1 it is the larger of the two
  bool by_inputs = false;  ///< a Hessian said what matters

  /// Whether so much of the adapter is lost that it had better be kept beside the weights.
  [[nodiscard]] bool is_weak(double least = 0.9) const noexcept { return !(share >= least); }
};

namespace detail {

using float_rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Products of rows, and in double the sum of their elements' products. Templates, so that Eigen's expressions are compiled where an adapter is
/// measured and not wherever this header is read.
template <class A, class B>
float_rows rows_times(const A& a, const B& b) {
  return a * b;
}
template <class Rows>
double sum_of_products(const Rows& a, const Rows& b) {
  return a.template cast<double>().cwiseProduct(b.template cast<double>()).sum();
}

/// The Hessian's matrix where it says anything; empty: every channel counts alike.
inline Eigen::MatrixXf metric_of(const hessian* h) {
  if (h == nullptr || h->tokens() == 0) return {};
  const std::size_t n = h->channels();
  float trace = 0;
  for (std::size_t c = 0; c < n; ++c) trace += (*h)(c, c);
  Eigen::MatrixXf m = h->matrix();
  return trace > 0 && LOWBIT_BEST_KERNEL(all_finite)(m.data(), n * n) ? m : Eigen::MatrixXf();
}

}  // namespace detail

/// `merged` is the base with the adapter in it, before it was quantised; `quantised` what came out, as floats. All [out, in]; `inputs`, of
/// the layer's inputs, may be null. Where the inputs never meet the adapter, or are not finite, the measure is the one without them.
template <executor E>
survival measure_survival(matrix_view<const float> merged, matrix_view<const float> quantised, const low_rank_factors& f,
                          const hessian* inputs, E& executor) {
  LOWBIT_EXPECTS(merged.rows == f.rows && merged.cols == f.cols && quantised.rows == f.rows && quantised.cols == f.cols);
  LOWBIT_EXPECTS(inputs == nullptr || inputs->channels() == f.cols);
  const Eigen::MatrixXf metric = detail::metric_of(inputs);
  detail::float_rows a(static_cast<Eigen::Index>(f.rank), static_cast<Eigen::Index>(f.cols));
  std::copy(f.a.begin(), f.a.end(), a.data());
  constexpr std::size_t chunk = 64;
  struct sums {
    double effect = 0, lost = 0, error = 0;  // <Δ, Δ>, <Δ' - Δ, Δ>, <Δ' - Δ, Δ' - Δ>
  };
  const auto measure = [&](const Eigen::MatrixXf& h) {
    const auto seen_by = [&](const detail::float_rows& m) { return h.size() != 0 ? detail::rows_times(m, h) : m; };
    const detail::float_rows a_seen = seen_by(a);  // A H
    std::vector<sums> parts(ceil_div(f.rows, chunk));
    for_parts(executor, parts.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t p = begin; p < end; ++p) {
        const std::size_t first = p * chunk, n = std::min(chunk, f.rows - first);
        detail::float_rows error(static_cast<Eigen::Index>(n), a.cols()), b(static_cast<Eigen::Index>(n), a.rows());
        for (std::size_t r = 0; r < n; ++r) {
          for (std::size_t c = 0; c < f.cols; ++c) error.data()[r * f.cols + c] = quantised(first + r, c) - merged(first + r, c);
          for (std::size_t k = 0; k < f.rank; ++k) b.data()[r * f.rank + k] = f.b[(first + r) * f.rank + k] * f.scale;
        }
        const detail::float_rows effect_seen = detail::rows_times(b, a_seen);
        const detail::float_rows effect = detail::rows_times(b, a), error_seen = seen_by(error);
        parts[p] = {detail::sum_of_products(effect, effect_seen), detail::sum_of_products(error, effect_seen), detail::sum_of_products(error, error_seen)};
      }
    });
    sums all;
    for (const sums& s : parts) {
      all.effect += s.effect;
      all.lost += s.lost;
      all.error += s.error;
    }
    return all;
  };
  sums s = measure(metric);
  survival out;
  out.by_inputs = metric.size() != 0 && s.effect > 0;
  if (!out.by_inputs && metric.size() != 0) s = measure({});
  if (!(s.effect > 0)) return out;
  out.share = 1 + s.lost / s.effect;
  out.noise = std::sqrt(std::max(0.0, s.error) / s.effect);
  return out;
}

}  // namespace lowbit
