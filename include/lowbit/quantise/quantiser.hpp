// quantiser<Format, Fit, Rounding, Transform...>: any algorithm in any format.
//
// Group-wise is the format's block; GPTQ is a rounding; AWQ is a transform and a fit. The same composition runs in q4_k, nf4 or a format
// of the user's own. A statistic that a policy needs and the caller has not gathered is one readable compile-time error.
#pragma once

#include <lowbit/core/error.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/kernel/exchange.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/quantise/round.hpp>
#include <lowbit/quantise/standard.hpp>
#include <lowbit/quantise/transform.hpp>

#include <algorithm>
#include <optional>
#include <string>

namespace lowbit {

/// Quantised weights, and what the layer's inputs must be divided by (empty: nothing).
struct quantised {
  packed_matrix weights;
  input_scales scales;
};

namespace detail {

template <class Stats, class... Needed>
constexpr bool has_all(needs_statistics<Needed...>) {
  return (Stats::template has<Needed> && ...);
}

/// The first weight that is not a finite number, as a failure.
inline std::optional<failure> find_non_finite(matrix_view<const float> w) {
  for (std::size_t r = 0; r < w.rows; ++r) {
    // x * 0 is NaN for NaN and infinity: one pass without a branch per weight.
    float probe = 0;
    for (std::size_t c = 0; c < w.cols; ++c) probe += w(r, c) * 0.0f;
    if (probe == 0.0f) continue;
    for (std::size_t c = 0; c < w.cols; ++c)
      if (!std::isfinite(w(r, c)))
        return failure{errc::bad_value, std::string(std::isnan(w(r, c)) ? "NaN" : "infinity") + " at row " + std::to_string(r) +
                                            ", column " + std::to_string(c)};
  }
  return std::nullopt;
}

/// Stores plain floats.
inline void store_floats(const format_spec& s, const float* row, std::size_t cols, std::uint8_t* out) noexcept {
  for (std::size_t c = 0; c < cols; ++c, out += s.bytes) {
    const std::uint32_t bits = number_bits(s.element, row[c]);
    std::memcpy(out, &bits, s.bytes);
  }
}

/// Rounds every row into `out`. Rows are independent: the same bytes for every executor.
template <fit_policy Fit, rounding Rounding, class Stats, executor E>
void quantise_rows(const format_spec& s, matrix_view<const float> w, const Stats& stats, packed_matrix& out, E& executor) {
  const typename Rounding::template state<Stats> state(stats);
  Eigen::VectorXf importance;
  Eigen::MatrixXf h;
  input_statistics about;
  if constexpr (Stats::template has<channel_importance>) {
    importance = stats.template get<channel_importance>().mean();
    about.importance = importance.data();
  }
  if constexpr (Stats::template has<hessian>) {
    h = stats.template get<hessian>().matrix().template cast<float>();
    about.hessian = h.data();
    about.hessian_stride = static_cast<std::size_t>(h.rows());
  }
  for_parts(executor, w.rows, 1, [&](std::size_t begin, std::size_t end) {
    std::vector<float> row(w.cols);
    block_buffer buffer(s);
    for (std::size_t r = begin; r < end; ++r) {
      if (s.is_float()) {
        store_floats(s, w.row(r), w.cols, out.row(r));
        continue;
      }
      std::copy(w.row(r), w.row(r) + w.cols, row.begin());
      Rounding::template round_row<Fit>(s, state, row.data(), w.cols, about, buffer,
                                        [&](std::size_t b, const block_fields& f) {
                                          std::uint8_t* const block = out.row(r) + b * s.bytes;
                                          write_header(s, f, block);
                                          for (std::size_t i = 0; i < s.block; i += kernel::piece)
                                            kernel::pack_codes<simd::native>(s, f.codes + i, 1, i, std::min<std::size_t>(kernel::piece, s.block - i), block);
                                        });
    }
  });
}

}  // namespace detail

/// Quantises a [out, in] matrix. Fails (bad_value) on a weight that is not finite, naming its row and column.
template <block_format F, fit_policy Fit = standard, rounding Rounding = round_nearest, transform... T>
struct quantiser {
  template <matrix_like W, class Stats = uncalibrated, executor E = serial_executor>
  static result<quantised> quantise(const W& weights, const Stats& stats = Stats(), E&& executor = E()) {
    static_assert(detail::has_all<Stats>(typename Fit::needs{}) && detail::has_all<Stats>(typename Rounding::needs{}) &&
                      (detail::has_all<Stats>(typename T::needs{}) && ...),
                  "lowbit: this quantiser needs calibration statistics that were not given");
    const matrix_view<const float> given = view(weights);
    if (auto bad = detail::find_non_finite(given)) return *std::move(bad);
    quantised q{packed_matrix(spec_of<F>, given.rows, given.cols), {}};
    if constexpr (sizeof...(T) == 0) {
      detail::quantise_rows<Fit, Rounding>(spec_of<F>, given, stats, q.weights, executor);
    } else {
      std::vector<float> changed(given.rows * given.cols);
      const matrix_view<float> w(changed.data(), given.rows, given.cols);
      for (std::size_t r = 0; r < w.rows; ++r) std::copy(given.row(r), given.row(r) + w.cols, w.row(r));
      const auto apply = [&](const input_scales& s) {
        if (q.scales.empty()) q.scales = s;
        else
          for (std::size_t c = 0; c < s.size(); ++c) q.scales[c] *= s[c];
      };
      (apply(T::apply(w, stats)), ...);
      detail::quantise_rows<Fit, Rounding>(spec_of<F>, w, stats, q.weights, executor);
    }
    return q;
  }
};

/// Round to nearest: no data, one pass.
template <block_format F, fit_policy Fit = standard>
using rtn = quantiser<F, Fit, round_nearest>;

}  // namespace lowbit
