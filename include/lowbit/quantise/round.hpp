// Rounding policies: choosing the codes of a row, given how its blocks' scales are fitted.
//
// A rounding is a type with `needs`, the statistics it uses, a `state<Stats>` prepared once for a matrix (error feedback factors its
// Hessian there), and `round_row<Fit>(spec, state, row, cols, about, buffer, sink)`, which calls sink(block index, fields) for every
// block in order. It owns the row's floats and may change those it has not rounded yet: that is all that error feedback does.
#pragma once

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/quantise/fit.hpp>

namespace lowbit {

/// Every weight to the nearest point of its block's grid. Needs no data.
struct round_nearest {
  using needs = needs_statistics<>;

  template <class Stats>
  struct state {
    explicit state(const Stats&) {}
  };

  template <fit_policy Fit, class State, class Sink>
  static void round_row(const format_spec& s, const State&, float* row, std::size_t cols, const input_statistics& about,
                        block_buffer& buffer, Sink&& sink) {
    const block_fields f = buffer.fields();
    for (std::size_t b = 0, c = 0; c < cols; ++b, c += s.block) {
      const std::size_t n = std::min<std::size_t>(s.block, cols - c);
      const bool has_codes = Fit::fit(s, row + c, n, about.from(c), f);
      if (!has_codes) {
        const grid g(s, f);
        for (std::size_t i = 0; i < n; ++i) f.codes[i] = static_cast<std::uint8_t>(g.code(row[c + i], i));
        std::fill(f.codes + n, f.codes + s.block, std::uint8_t{0});
      }
      sink(b, f);
    }
  }
};

/// What a rounding must offer.
template <class R>
concept rounding = requires { typename R::needs; } && requires(const uncalibrated& c) { typename R::template state<uncalibrated>; };

}  // namespace lowbit
