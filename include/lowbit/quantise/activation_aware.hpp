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
#include <lowbit/quantise/nearest_values.hpp>
#include <lowbit/quantise/standard.hpp>
#include <lowbit/quantise/transform.hpp>

#include <limits>
#include <numeric>
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

/// Rows that are worked on as one task.
inline constexpr std::size_t task_rows = kernel::accumulate_strip;

/// Calls f(begin, end) on runs of at most task_rows rows, whatever the executor.
template <executor E, class F>
void for_row_tasks(E& executor, std::size_t rows, F&& f) {
  for_parts(executor, ceil_div(rows, task_rows), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t t = begin; t < end; ++t) f(t * task_rows, std::min(rows, (t + 1) * task_rows));
  });
}

/// out[rows, cols] = Q(w diag(s)) / s, rounded to nearest by the fit as a quantiser does. False where something overflows; out is
/// unspecified then.
template <fit_policy Fit>
bool quantised_rows(const format_spec& s, matrix_view<const float> w, const float* scales, const input_statistics& about, float* out) {
  float probe = 0;  // becomes NaN with the first infinity
  std::vector<float> scaled;
  if (scales != nullptr) {
    scaled.resize(w.rows * w.cols);
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t c = 0; c < w.cols; ++c) {
        const float v = scaled[r * w.cols + c] = w(r, c) * scales[c];
        probe += v * 0.0f;
      }
    w = {scaled.data(), w.rows, w.cols};
  } else {
    for (std::size_t r = 0; r < w.rows; ++r) probe += LOWBIT_BEST_KERNEL(all_finite)(w.row(r), w.cols) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  if (probe != 0.0f) return false;
  nearest_values<Fit>(s, w, about, out);
  for (std::size_t r = 0; r < w.rows; ++r, out += w.cols)
    for (std::size_t c = 0; c < w.cols; ++c) {
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
  explicit output_error(const Eigen::MatrixXd& h) : cols_(static_cast<std::size_t>(h.rows())), stride_(round_up(cols_, 12)), h_(cols_ * stride_) {
    const auto at = [&](std::size_t i, std::size_t j) {
      const double v = h(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(j));
      return std::isfinite(v) ? v : 0.0;
    };
    for (std::size_t i = 0; i < cols_; ++i)
      for (std::size_t j = 0; j < cols_; ++j) size_ = std::max(size_, std::fabs(at(i, j)));
    for (std::size_t i = 0; i < cols_; ++i)  // whatever the activations' size, nothing overflows
      for (std::size_t j = 0; j < cols_; ++j) h_[i * stride_ + j] = static_cast<float>(at(i, j) / (size_ > 0 ? size_ : 1));
  }

  /// Of `changed` against `original`, matrix by matrix.
  template <executor E>
  double operator()(consumer_group original, consumer_group changed, E& executor) const {
    double total = 0;
    std::size_t outputs = 0;
    for (std::size_t m = 0; m < original.size(); ++m) {
      LOWBIT_EXPECTS(original[m].rows == changed[m].rows && original[m].cols == cols_);
      std::vector<double> sums(ceil_div(original[m].rows, detail::task_rows));
      detail::for_row_tasks(executor, original[m].rows, [&](std::size_t begin, std::size_t end) {
        sums[begin / detail::task_rows] = error_of(original[m].middle_rows(begin, end - begin), changed[m].middle_rows(begin, end - begin));
      });
      for (const double s : sums) total += s;
      outputs += original[m].rows;
    }
    return outputs == 0 ? 0 : total * size_ * 0.5 / static_cast<double>(outputs);  // H counts every token twice
  }

 private:
  /// tr(E H ET) of a task's rows, from the blocks on and below H's diagonal. In float, but for the last sum.
  double error_of(matrix_view<const float> w, matrix_view<const float> changed) const {
    constexpr std::size_t width = detail::task_rows;
    std::vector<float> e(cols_ * width);  // [column][row], as kernel::accumulate takes it
    float most = 0;
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t c = 0; c < cols_; ++c) {
        const float v = e[c * width + r] = changed(r, c) - w(r, c);
        if (!std::isfinite(v)) return std::numeric_limits<double>::quiet_NaN();
        most = std::max(most, std::fabs(v));
      }
    if (most == 0.0f) return 0;
    const float unit = std::exp2(std::floor(std::log2(most)));
    if (!std::isnormal(unit)) return std::numeric_limits<double>::infinity();
    for (float& v : e) v /= unit;
    std::vector<float> product(width * width);
    double total[width] = {};
    for (std::size_t j = 0; j < cols_; j += width) {
      const std::size_t n = std::min(width, cols_ - j), below = cols_ - j - n;
      std::fill(product.begin(), product.end(), 0.0f);
      const auto add = [&](std::size_t first, std::size_t depth) {
        LOWBIT_BEST_KERNEL(accumulate)({&h_[first * stride_ + j], stride_, &e[first * width], width, depth, product.data(), width, n, width});
      };
      if (below != 0) add(j + n, below);
      for (float& v : product) v *= 2;
      add(j, n);
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t r = 0; r < width; ++r) total[r] += static_cast<double>(product[i * width + r]) * static_cast<double>(e[(j + i) * width + r]);
    }
    return std::accumulate(total, total + w.rows, 0.0) * static_cast<double>(unit) * static_cast<double>(unit);
  }

  std::size_t cols_, stride_;
  std::vector<float> h_;
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
      std::vector<std::uint8_t> overflowed(ceil_div(m.rows, detail::task_rows));
      detail::for_row_tasks(executor, m.rows, [&](std::size_t begin, std::size_t end) {
        overflowed[begin / detail::task_rows] = !detail::quantised_rows<Fit>(s, m.middle_rows(begin, end - begin), scales.empty() ? nullptr : scales.data(),
                                                                             now, out + begin * cols);
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
