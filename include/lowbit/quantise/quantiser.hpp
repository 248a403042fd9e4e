// quantiser<Format, Fit, Rounding, Transform...>: any algorithm in any format.
//
// Group-wise is the format's block; GPTQ is a rounding; AWQ is a transform and a fit. The same composition runs in q4_k, nf4 or a format
// of the user's own. A statistic that a policy needs and the caller has not gathered is one readable compile-time error.
#pragma once

#include <lowbit/core/error.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/kernel/exchange.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/quantise/error_feedback.hpp>
#include <lowbit/quantise/feedback_fit.hpp>
#include <lowbit/quantise/known_inputs.hpp>
#include <lowbit/quantise/round.hpp>
#include <lowbit/quantise/rows.hpp>
#include <lowbit/quantise/standard.hpp>
#include <lowbit/quantise/transform.hpp>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>

namespace lowbit {

/// Quantised weights, what the layer's inputs must be divided by (empty: nothing), and what the rounding had to do.
struct quantised {
  packed_matrix weights;
  input_scales scales;
  rounding_report report{};
};

namespace detail {

template <class Stats, class... Needed>
constexpr bool has_all(needs_statistics<Needed...>) {
  return (Stats::template has<Needed> && ...);
}

/// The first weight that is not a finite number, as a failure.
inline std::optional<failure> find_non_finite(matrix_view<const float> w) {
  for (std::size_t r = 0; r < w.rows; ++r) {
    if (LOWBIT_BEST_KERNEL(all_finite)(w.row(r), w.cols)) continue;
    for (std::size_t c = 0; c < w.cols; ++c)
      if (!std::isfinite(w(r, c)))
        return failure{errc::bad_value, std::string(std::isnan(w(r, c)) ? "NaN" : "infinity") + " at row " + std::to_string(r) +
                                            ", column " + std::to_string(c)};
  }
  return std::nullopt;
}

/// The same, in parallel over rows.
template <executor E>
std::optional<failure> find_non_finite(matrix_view<const float> w, E& executor) {
  std::atomic<bool> finite{true};
  for_parts(executor, w.rows, 16, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r)
      if (!LOWBIT_BEST_KERNEL(all_finite)(w.row(r), w.cols)) finite = false;
  });
  if (finite) return std::nullopt;
  return find_non_finite(w);
}

/// Statistics of another layer, as a failure.
template <class Stats>
std::optional<failure> find_other_shape(const Stats& stats, std::size_t cols) {
  if (stats.channels() == cols || stats.channels() == Stats::any) return std::nullopt;
  return failure{errc::shape, "statistics of " + std::to_string(stats.channels()) + " channels for a matrix with " + std::to_string(cols) + " columns"};
}

/// Rounds every row into `out`. Rows are independent and dealt out in fixed chunks: the same bytes for every executor.
template <fit_policy Fit, rounding Rounding, class Stats, executor E>
rounding_report quantise_rows(const format_spec& s, matrix_view<const float> w, const Stats& stats, packed_matrix& out, E& executor,
                              const typename Rounding::options& options = {}) {
  if (s.is_recoded()) {
    packed_matrix planes(s.planes(), w.rows, w.cols);
    const rounding_report of_planes = quantise_rows<Fit, Rounding>(s.planes(), w, stats, planes, executor, options);
    const std::size_t blocks = w.rows * s.row_blocks(w.cols);
    for (std::size_t b = 0; b < blocks; ++b) s.recode.encode(planes.bytes().data() + b * s.planes().bytes, out.bytes().data() + b * s.bytes);
    return of_planes;
  }
  const auto state = Rounding::prepare(s, w.cols, stats, options, executor);
  rounding_report report = state.report;
  if (w.empty()) return report;
  const known_inputs<Fit, Stats> inputs(stats);
  constexpr bool to_nearest = std::is_same_v<Rounding, round_nearest>;
  const row_kernel kernel_rows(s, to_nearest || s.is_float() ? rows_of<Fit>(s) : row_kernels{}, w, inputs.about.importance, out);
  constexpr std::size_t most = Rounding::rows_at_once;
  const std::size_t chunks = ceil_div(w.rows, most);
  std::vector<rounding_report> of_chunk(chunks);
  for_parts(executor, chunks, 1, [&](std::size_t begin, std::size_t end) {
    if (kernel_rows.quantise(begin * most, std::min(end * most, w.rows))) return;
    std::vector<float> rows(most * w.cols);
    for (std::size_t chunk = begin; chunk < end; ++chunk) {
      const auto given = w.middle_rows(chunk * most, std::min(most, w.rows - chunk * most));
      const matrix_view<float> copy(rows.data(), given.rows, given.cols);
      for (std::size_t r = 0; r < given.rows; ++r) std::copy_n(given.row(r), given.cols, copy.row(r));
      of_chunk[chunk] = Rounding::template round_rows<Fit>(s, state, copy, inputs.about, [&](std::size_t r, std::size_t b, const block_fields& f) {
        std::uint8_t* const block = out.row(chunk * most + r) + b * s.bytes;
        write_header(s, f, block);
        for (std::size_t i = 0; i < s.block; i += kernel::piece)
          LOWBIT_BEST_KERNEL(pack_codes)(s, f.codes + i, 1, i, std::min<std::size_t>(kernel::piece, s.block - i), block);
      });
    }
  });
  for (const rounding_report& r : of_chunk) {
    report.nearest_rows += r.nearest_rows;
    report.loss += r.loss;
  }
  return report;
}

}  // namespace detail

/// Quantises a [out, in] matrix. Fails (bad_value) on a weight that is not finite, naming its row and column, and (shape) where a statistic
/// is of another number of channels than the matrix has.
template <block_format F, fit_policy Fit = standard, rounding Rounding = round_nearest, transform... T>
struct quantiser {
  template <matrix_like W, class Stats = uncalibrated, executor E = serial_executor>
  static result<quantised> quantise(const W& weights, const Stats& stats = Stats(), E&& executor = E(), const typename Rounding::options& options = {}) {
    static_assert(detail::has_all<Stats>(typename Fit::needs{}) && detail::has_all<Stats>(typename Rounding::needs{}) &&
                      (detail::has_all<Stats>(typename T::needs{}) && ...),
                  "lowbit: this quantiser needs calibration statistics that were not given");
    static_assert(spec_of<F>.is_writable(), "lowbit: this format is only read");
    const matrix_view<const float> given = view(weights);
    if (auto bad = detail::find_non_finite(given, executor)) return *std::move(bad);
    if (auto bad = detail::find_other_shape(stats, given.cols)) return *std::move(bad);
    quantised q{packed_matrix(spec_of<F>, given.rows, given.cols), {}};
    if constexpr (sizeof...(T) == 0) {
      q.report = detail::quantise_rows<Fit, Rounding>(spec_of<F>, given, stats, q.weights, executor, options);
    } else {
      std::vector<float> changed(given.rows * given.cols);
      const matrix_view<float> w(changed.data(), given.rows, given.cols);
      for (std::size_t r = 0; r < w.rows; ++r) std::copy(given.row(r), given.row(r) + w.cols, w.row(r));
      Stats now = stats;  // of the inputs as the transforms so far leave them
      const auto apply = [&](const input_scales& s) {
        now.divide(s);
        if (q.scales.empty()) q.scales = s;
        else
          for (std::size_t c = 0; c < s.size(); ++c) q.scales[c] *= s[c];
      };
      (apply(detail::apply_transform<T, Fit>(spec_of<F>, w, now, executor)), ...);
      q.report = detail::quantise_rows<Fit, Rounding>(spec_of<F>, w, now, q.weights, executor, options);
    }
    return q;
  }
};

/// Round to nearest: no data, one pass.
template <block_format F, fit_policy Fit = standard>
using rtn = quantiser<F, Fit, round_nearest>;

/// Error feedback: needs the Hessian of the layer's inputs.
template <block_format F, fit_policy Fit = feedback_fit>
using gptq = quantiser<F, Fit, error_feedback>;

}  // namespace lowbit
