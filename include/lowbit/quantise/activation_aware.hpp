// Activation-aware scaling (AWQ: Lin et al. 2024, section 3.2): input channels that carry much get weights that are rounded less.
//
// W x = (W diag(s)) (x / s). Candidates s = mean|x|^r, or with weights taken into account mean|x|^r / mean|w|^(1-r) ("duo scaling", as
// AutoAWQ has it), r = 0, 1/20 ... 19/20, are tried with the format's own fit and rounding on all layers that share the input, and the
// one with the least loss is kept. The loss is the mean squared error of the layers' outputs, exact from H = (2/tokens) sum x xT without
// passing a token again: sum tr(E H ET), E = Q(W s) / s - W. Or a functor of the caller's, such as the error of an attention block's output.
// No scaling at all is a candidate, so the result is never worse by its own loss. Tasks are cut by the shape alone: the same scales for
// every executor. Zero, NaN or infinite statistics give a channel the scale 1; a statistic without samples gives no scaling.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/quantise/known_inputs.hpp>
#include <lowbit/quantise/round.hpp>
#include <lowbit/quantise/standard.hpp>
#include <lowbit/quantise/transform.hpp>

#include <limits>
#include <optional>
#include <utility>

namespace lowbit {

/// Which candidates are tried.
enum class scaling : std::uint8_t {
  activation,  ///< mean|x|^r: llm-awq
  duo,         ///< mean|x|^r / mean|w|^(1-r): AutoAWQ's default
  both
};

struct scale_search_options {
  scaling kind = scaling::both;
  unsigned ratios = 20;                       ///< r = i / ratios
  std::span<const std::uint32_t> tied = {};   ///< channels with the same number get the same scale (grouped_query_channels); empty: none
};

struct scale_candidate {
  bool duo = false;
  float ratio = 0;
  double loss = 0;  ///< infinity: its weights overflowed, or its loss was not a number
};

/// What a search found.
struct scale_search {
  input_scales scales;                  ///< empty: no scaling was best
  std::optional<scale_candidate> best;  ///< nothing: the same
  double loss_before = 0, loss_after = 0;
  std::vector<scale_candidate> tried;
};

namespace detail {

/// Calls f(begin, end) on runs of at most 64 rows, whatever the executor.
template <executor E, class F>
void for_row_tasks(E& executor, std::size_t rows, F&& f) {
  constexpr std::size_t run = 64;
  for_parts(executor, ceil_div(rows, run), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) f(t * run, std::min(rows, (t + 1) * run));
  });
}

/// out = Q(w diag(s)) / s, rounded to nearest by the fit as a quantiser does. False where something overflows; out is unspecified then.
template <fit_policy Fit>
bool quantised_row(const format_spec& s, const float* w, std::size_t cols, const float* scales, const input_statistics& about,
                   float* scratch, float* out) {
  float probe = 0;  // becomes NaN with the first infinity
  for (std::size_t c = 0; c < cols; ++c) {
    scratch[c] = scales != nullptr ? w[c] * scales[c] : w[c];
    probe += scratch[c] * 0.0f;
  }
  if (probe != 0.0f) return false;
  if (s.is_float()) {
    for (std::size_t c = 0; c < cols; ++c) out[c] = number_value(s.element, number_bits(s.element, scratch[c]));
  } else {
    round_nearest::round_rows<Fit>(s, {}, {scratch, 1, cols}, about, [&](std::size_t, std::size_t b, const block_fields& f) {
      const grid g(s, f);
      const std::size_t first = b * s.block, n = std::min<std::size_t>(s.block, cols - first);
      for (std::size_t i = 0; i < n; ++i) out[first + i] = g.value(f.codes[i], i);
    });
  }
  for (std::size_t c = 0; c < cols; ++c) {
    if (scales != nullptr) out[c] /= scales[c];
    probe += out[c] * 0.0f;
  }
  return probe == 0.0f;
}

/// mean |w| / (group's max + 1e-6) of every channel over all rows of the group's consumers.
inline std::vector<double> relative_magnitudes(consumer_group consumers, std::size_t group) {
  std::vector<double> mean(consumers[0].cols);
  std::size_t rows = 0;
  for (const matrix_view<const float>& w : consumers) {
    rows += w.rows;
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t c = 0; c < w.cols; c += group) {
        const std::size_t end = std::min(w.cols, c + group);
        double most = 0;
        for (std::size_t i = c; i < end; ++i) most = std::max(most, std::fabs(static_cast<double>(w(r, i))));
        for (std::size_t i = c; i < end; ++i) mean[i] += std::fabs(static_cast<double>(w(r, i))) / (most + 1e-6);
      }
  }
  for (double& m : mean) m /= static_cast<double>(rows);
  return mean;
}

/// Every channel's value replaced by the mean of those that it is tied to.
inline void tie(std::vector<double>& values, std::span<const std::uint32_t> tied) {
  if (tied.empty()) return;
  LOWBIT_EXPECTS(tied.size() == values.size());
  std::vector<double> sum(1 + static_cast<std::size_t>(*std::max_element(tied.begin(), tied.end()))), count(sum.size());
  for (std::size_t c = 0; c < values.size(); ++c) {
    sum[tied[c]] += values[c];
    count[tied[c]] += 1;
  }
  for (std::size_t c = 0; c < values.size(); ++c) values[c] = sum[tied[c]] / count[tied[c]];
}

/// x^r, or x^r / (w^(1-r) + 1e-4), at least 1e-4, divided by the geometric mean of the largest and the smallest.
inline input_scales candidate_scales(const std::vector<double>& x, const std::vector<double>& w, const scale_candidate& k) {
  std::vector<double> s(x.size());
  const double r = static_cast<double>(k.ratio);
  double most = 0, least = std::numeric_limits<double>::infinity();
  for (std::size_t c = 0; c < s.size(); ++c) {
    s[c] = std::max(std::pow(x[c], r) / (k.duo ? std::pow(w[c], 1.0 - r) + 1e-4 : 1.0), 1e-4);
    if (!std::isfinite(x[c]) || !std::isfinite(s[c])) continue;
    most = std::max(most, s[c]);
    least = std::min(least, s[c]);
  }
  const double middle = std::sqrt(most * least);
  input_scales out(s.size());
  for (std::size_t c = 0; c < s.size(); ++c) out[c] = std::isfinite(x[c]) ? usable_scale(s[c] / middle) : 1.0f;
  return out;
}

}  // namespace detail

/// The mean squared error, over tokens and outputs, that changed weights of a group of layers give, from the inputs' Hessian.
class output_error {
 public:
  /// `h` as hessian::matrix() gives it. Entries that are not finite count as 0: the channel of an infinite input is left out.
  explicit output_error(const Eigen::MatrixXd& h) {
    const Eigen::MatrixXd finite = h.unaryExpr([](double v) { return std::isfinite(v) ? v : 0.0; });
    size_ = finite.size() != 0 ? finite.cwiseAbs().maxCoeff() : 0;
    h_ = (finite / (size_ > 0 ? size_ : 1)).cast<float>();  // whatever the activations' size, nothing overflows
  }

  /// Of `changed` against `original`, matrix by matrix.
  template <executor E>
  double operator()(consumer_group original, consumer_group changed, E& executor) const {
    double total = 0;
    std::size_t outputs = 0;
    for (std::size_t m = 0; m < original.size(); ++m) {
      LOWBIT_EXPECTS(original[m].rows == changed[m].rows && static_cast<Eigen::Index>(original[m].cols) == h_.rows());
      std::vector<double> sums(ceil_div(original[m].rows, 64));
      detail::for_row_tasks(executor, original[m].rows, [&](std::size_t begin, std::size_t end) {
        sums[begin / 64] = error_of(original[m].middle_rows(begin, end - begin), changed[m].middle_rows(begin, end - begin));
      });
      for (const double s : sums) total += s;
      outputs += original[m].rows;
    }
    return outputs == 0 ? 0 : total * size_ * 0.5 / static_cast<double>(outputs);  // H counts every token twice
  }

 private:
  /// tr(E H ET) of a few rows, from the blocks on and below H's diagonal. In float, but for the last sum.
  double error_of(matrix_view<const float> w, matrix_view<const float> changed) const {
    using rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    rows e = detail::as_eigen(changed) - detail::as_eigen(w);
    const float most = e.size() != 0 ? e.cwiseAbs().maxCoeff() : 0.0f;
    if (!(most > 0.0f)) return most == 0.0f ? 0.0 : std::numeric_limits<double>::quiet_NaN();
    const float unit = std::exp2(std::floor(std::log2(most)));
    if (!std::isnormal(unit)) return std::numeric_limits<double>::infinity();
    e /= unit;
    constexpr Eigen::Index width = 96;
    double total = 0;
    rows product;
    for (Eigen::Index j = 0; j < e.cols(); j += width) {
      const Eigen::Index n = std::min(width, e.cols() - j), below = e.cols() - j - n;
      product.noalias() = e.middleCols(j, n) * h_.block(j, j, n, n);
      if (below != 0) product.noalias() += 2.0f * e.rightCols(below) * h_.block(j + n, j, below, n);
      total += product.cwiseProduct(e.middleCols(j, n)).cast<double>().sum();
    }
    return total * static_cast<double>(unit) * static_cast<double>(unit);
  }

  Eigen::MatrixXf h_;
  double size_ = 0;
};

/// Searches the scales of a group. `loss(consumer_group changed)` says how bad weights are, the less the better; it is called on the
/// calling thread, first with the plainly quantised weights. `magnitudes`: mean |x| of every channel. `about`: what the fit is told of
/// the inputs as they are.
template <fit_policy Fit = standard, class Loss, executor E>
  requires std::invocable<Loss&, consumer_group>
scale_search search_scales(const format_spec& s, consumer_group consumers, std::span<const float> magnitudes, Loss&& loss, E& executor,
                           const scale_search_options& options = {}, const input_statistics& about = {}) {
  LOWBIT_EXPECTS(!consumers.empty() && options.ratios != 0);
  const std::size_t cols = magnitudes.size();
  std::size_t rows = 0;
  for (const matrix_view<const float>& w : consumers) {
    LOWBIT_EXPECTS(w.cols == cols);
    rows += w.rows;
  }
  scale_search found;
  if (rows == 0 || cols == 0) return found;

  std::vector<double> x(magnitudes.begin(), magnitudes.end()), w;
  for (double& v : x) v = std::isfinite(v) ? std::clamp(v, 1e-8, 1e8) : v;
  detail::tie(x, options.tied);
  if (options.kind != scaling::activation) {
    w = detail::relative_magnitudes(consumers, s.is_float() ? cols : s.sub_block());
    detail::tie(w, options.tied);
  }

  std::vector<float> memory(rows * cols), importance, h;
  std::vector<matrix_view<const float>> changed;
  for (std::size_t m = 0, at = 0; m < consumers.size(); at += consumers[m++].rows * cols)
    changed.emplace_back(memory.data() + at, consumers[m].rows, cols);
  const auto loss_of = [&](const input_scales& scales) {
    input_statistics now = about;
    if (!scales.empty() && about.importance != nullptr) {
      importance.resize(cols);
      for (std::size_t c = 0; c < cols; ++c) importance[c] = about.importance[c] / (scales[c] * scales[c]);
      now.importance = importance.data();
    }
    if (!scales.empty() && about.hessian != nullptr) {
      h.resize(cols * cols);
      for (std::size_t i = 0; i < cols; ++i)
        for (std::size_t j = 0; j < cols; ++j) h[i * cols + j] = about.hessian[i * about.hessian_stride + j] / scales[i] / scales[j];
      now.hessian = h.data();
      now.hessian_stride = cols;
    }
    float* out = memory.data();
    for (const matrix_view<const float>& m : consumers) {
      std::vector<std::uint8_t> overflowed(ceil_div(m.rows, 64));
      detail::for_row_tasks(executor, m.rows, [&](std::size_t begin, std::size_t end) {
        std::vector<float> scratch(cols);
        for (std::size_t r = begin; r < end && overflowed[begin / 64] == 0; ++r)
          overflowed[begin / 64] = !detail::quantised_row<Fit>(s, m.row(r), cols, scales.empty() ? nullptr : scales.data(), now,
                                                               scratch.data(), out + r * cols);
      });
      if (std::count(overflowed.begin(), overflowed.end(), 0) != static_cast<std::ptrdiff_t>(overflowed.size()))
        return std::numeric_limits<double>::infinity();
      out += m.rows * cols;
    }
    const double l = loss(consumer_group(changed));
    return std::isfinite(l) ? l : std::numeric_limits<double>::infinity();
  };

  found.loss_before = found.loss_after = loss_of({});
  for (const bool duo : {false, true}) {
    if ((duo && options.kind == scaling::activation) || (!duo && options.kind == scaling::duo)) continue;
    for (unsigned i = duo ? 0 : 1; i < options.ratios; ++i) {  // mean|x|^0 is no scaling
      scale_candidate k{duo, static_cast<float>(i) / static_cast<float>(options.ratios), 0};
      input_scales scales = detail::candidate_scales(x, w, k);
      k.loss = loss_of(scales);
      found.tried.push_back(k);
      if (!(k.loss < found.loss_after)) continue;
      found.loss_after = k.loss;
      found.best = k;
      found.scales = std::move(scales);
    }
  }
  return found;
}

/// The same by the error of the group's outputs. `stats`: a calibrated<...> set that has channel_magnitude and hessian.
template <fit_policy Fit = standard, class Stats, executor E>
  requires(Stats::template has<hessian>)
scale_search search_scales(const format_spec& s, consumer_group consumers, const Stats& stats, E& executor,
                           const scale_search_options& options = {}) {
  const Eigen::VectorXf magnitudes = stats.template get<channel_magnitude>().mean();
  const detail::known_inputs<Fit, Stats> inputs(stats);
  const output_error error(stats.template get<hessian>().matrix().template cast<double>());
  return search_scales<Fit>(
      s, consumers, {magnitudes.data(), static_cast<std::size_t>(magnitudes.size())},
      [&](consumer_group changed) { return error(consumers, changed, executor); }, executor, options, inputs.about);
}

/// The search as a quantiser's transform, the matrix a group of its own.
template <scaling Kind, unsigned Ratios = 20>
struct activation_aware {
  using needs = needs_statistics<channel_magnitude, hessian>;
  template <fit_policy Fit, class Stats, executor E>
  static input_scales apply(const format_spec& s, matrix_view<float> w, const Stats& stats, E& executor) {
    const matrix_view<const float> one = w;
    input_scales scales = search_scales<Fit>(s, consumer_group(&one, 1), stats, executor, {Kind, Ratios, {}}).scales;
    multiply_columns(w, scales);
    return scales;
  }
};
using activation_aware_scaling = activation_aware<scaling::both>;

}  // namespace lowbit
