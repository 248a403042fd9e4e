// Rounding policies: choosing the codes of some rows, given how their blocks' scales are fitted.
//
// A rounding is a type with `needs`, the statistics it uses; `options`, what may be chosen at run time; `prepare(spec, cols, stats,
// options, executor)`, the state that a whole matrix shares (error feedback factors its Hessian there); `rows_at_once`; and
// `round_rows<Fit>(spec, state, w, about, sink)`, which calls sink(row, block index, fields) once for every block of w, in any order,
// and returns a report. w [up to rows_at_once, cols] is the rounding's to change.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/core/matrix_view.hpp>
#include <lowbit/quantise/fit.hpp>

namespace lowbit {

/// What was done to a matrix, for whoever wants to know why it came out as it did. All zero for round to nearest.
struct rounding_report {
  double damping = 0;             ///< that was added to the Hessian's diagonal, in units of its mean
  std::size_t attempts = 0;       ///< factorisations that it took: 1, or more where the Hessian was bad
  std::size_t dead_channels = 0;  ///< whose inputs were always 0, or not finite: rounded to nearest
  std::size_t nearest_rows = 0;   ///< rows for which rounding to nearest turned out better, or all where there was nothing to go by
  bool no_data = false;           ///< no channel had a usable sample: everything is rounded to nearest
  double loss = 0;                ///< Σ (w - ŵ) H (w - ŵ)ᵀ over rows: the layer's squared output error, twice its mean over tokens
};

/// Every weight to the nearest point of its block's grid. Needs no data.
struct round_nearest {
  using needs = needs_statistics<>;
  struct options {};
  struct state {
    rounding_report report;
  };
  static constexpr std::size_t rows_at_once = 1;

  template <class Stats, executor E>
  static state prepare(const format_spec&, std::size_t, const Stats&, const options&, E&) { return {}; }

  template <fit_policy Fit, class Sink>
  static rounding_report round_rows(const format_spec& s, const state&, matrix_view<float> w, const input_statistics& about, Sink&& sink) {
    block_buffer buffer(s);
    const block_fields f = buffer.fields();
    for (std::size_t r = 0; r < w.rows; ++r) {
      const input_statistics of_row = about.with_row(w.row(r), w.cols);
      for (std::size_t b = 0, c = 0; c < w.cols; ++b, c += s.block) {
        const float* const x = w.row(r) + c;
        const std::size_t n = std::min<std::size_t>(s.block, w.cols - c);
        if (!Fit::fit(s, x, n, of_row.from(c), f)) {
          const grid g(s, f);
          g.round(0, x, n, f.codes);
          std::fill(f.codes + n, f.codes + s.block, std::uint8_t{0});
        }
        sink(r, b, f);
      }
    }
    return {};
  }
};

/// What a rounding must offer.
template <class R>
concept rounding = requires(const format_spec& s, const uncalibrated& none, serial_executor& e) {
  typename R::needs;
  typename R::options;
  { R::rows_at_once } -> std::convertible_to<std::size_t>;
};

}  // namespace lowbit
