// GPTQ's error feedback (Frantar et al. 2023), inside any format: each column is rounded after the errors of all earlier ones have been
// made up for as well as the Hessian allows.
//
// Computed in LDLQ's form, which rounds the same (Chee et al. 2023, theorem 6): with H = (U + I) D (U + I)ᵀ, U strictly upper, column k
// is rounded from w_k + Σ_{j<k} (w_j - ŵ_j) U_jk, and the loss is Σ_k D_k (that - ŵ_k)². Against the paper's form it takes a third of the
// factorisation's work, no inverse, and sums errors where they are read instead of writing all later columns again and again: per
// weight, cols multiply-adds at the speed of kernel/accumulate.hpp. Rows are independent; 96 of them side by side fill the registers.
#pragma once

#include <lowbit/quantise/damped_factor.hpp>
#include <lowbit/quantise/nearest_values.hpp>
#include <lowbit/quantise/standard.hpp>

#include <limits>
#include <numeric>

namespace lowbit {

/// In which order columns are rounded.
enum class column_order : std::uint8_t {
  natural,
  group_aware,  ///< blocks by their most excited channel, channels within a block by how excited they are: nearly act-order's quality
                ///< with blocks that stay together (GPTQModel's GAR), so that scales can be fitted when a block is reached
  descending    ///< act-order: all channels by how excited they are; scales are fitted before the first column, whatever `headers` says
};

/// From which weights a block's scales are fitted.
enum class header_source : std::uint8_t {
  updated,   ///< from the weights as all earlier columns' errors have left them
  spans,     ///< from the weights as they were at the last multiple of `span` columns: what the reference implementation does
  original   ///< from the weights as given ("static groups")
};

/// Few tokens say little of many channels: with the paper's 1 % of damping, a Hessian of as many tokens as channels made a layer of SmolLM2
/// (1536 inputs) worse than rounding to nearest on other tokens. The damping that was best there was 0.4 where channels / tokens
/// was 0.5, 1.6 where it was 1.5 and above 1.6 where it was 6, so `shrink` takes that ratio; 100 tokens a channel are the paper's 1 %.
struct feedback_options {
  double damping = 0.01;                              ///< what is added to the Hessian's diagonal, in units of its mean, at least
  bool shrink = true;                                 ///< at least channels / tokens: what so few samples leave uncertain (see below)
  column_order order = column_order::group_aware;
  header_source headers = header_source::updated;
  std::size_t span = 128;                             ///< columns that are brought up to date at once
  bool guard = true;                                  ///< keep a row rounded to nearest where that has the smaller loss
  const input_drift* drift = nullptr;                 ///< of the same inputs: weights are first moved to where they make up for it (GPTAQ)
  double drift_strength = 0.25;                       ///< how far; 1 is the least-squares solution, GPTAQ's implementations go a quarter
};

namespace detail {

/// What error feedback prepares for a matrix.
struct feedback_state {
  /// U's columns [begin, end) down to the last row that is not zero, [end][stride]; `at` places.
  struct columns {
    std::size_t begin, end, stride;
    std::vector<float> u;
    [[nodiscard]] const float* at(std::size_t row, std::size_t place) const noexcept { return u.data() + row * stride + (place - begin); }
  };
  feedback_options how;
  std::vector<std::size_t> order;   ///< the channel at each place
  std::vector<columns> spans;
  std::vector<double> weight;       ///< D of each place, in the Hessian's units
  double damping = 0;               ///< in the Hessian's units
  damped_factor factor;             ///< kept where there is a drift to solve for
  rounding_report report;
};

/// Channels in the order in which they are rounded. A ragged last block stays last.
inline std::vector<std::size_t> order_of(column_order how, const hessian& h, std::size_t block) {
  std::vector<std::size_t> order(h.channels());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (how == column_order::natural) return order;
  const auto excited = [&](std::size_t i) {  // a NaN would be no order
    const float d = h(i, i);
    return d > 0 ? d : 0.0f;
  };
  const auto more = [&](std::size_t a, std::size_t b) { return excited(a) > excited(b); };
  if (how == column_order::descending) {
    std::stable_sort(order.begin(), order.end(), more);
    return order;
  }
  // Each whole block's most excited channel says where the block goes, and which block it is.
  std::vector<std::size_t> first, out;
  const auto place = [&](std::size_t c) { return order.begin() + static_cast<std::ptrdiff_t>(c); };
  for (std::size_t c = 0; c < order.size(); c += block) {
    const std::size_t end = std::min(c + block, order.size());
    std::stable_sort(place(c), place(end), more);
    if (end - c == block) first.push_back(order[c]);
  }
  std::stable_sort(first.begin(), first.end(), more);
  for (const std::size_t c : first) out.insert(out.end(), place(c / block * block), place((c / block + 1) * block));
  out.insert(out.end(), place(out.size()), order.end());
  return out;
}

/// Every block's fields of some rows.
class row_fields {
 public:
  row_fields(const format_spec& s, std::size_t rows, std::size_t cols)
      : spec_(&s), blocks_(s.row_blocks(cols)), scales_(rows * blocks_), minima_(rows * blocks_), zero_points_(rows * blocks_),
        sub_scales_(rows * blocks_ * s.sub_blocks()), sub_minima_(rows * blocks_ * s.sub_blocks()), codes_(rows * blocks_ * s.block) {}
  [[nodiscard]] block_fields at(std::size_t row, std::size_t block) noexcept {
    const std::size_t i = row * blocks_ + block;
    return {&scales_[i], &minima_[i], &zero_points_[i], &sub_scales_[i * spec_->sub_blocks()], &sub_minima_[i * spec_->sub_blocks()], &codes_[i * spec_->block]};
  }

 private:
  const format_spec* spec_;
  std::size_t blocks_;
  std::vector<std::uint32_t> scales_, minima_;
  std::vector<std::uint8_t> zero_points_, sub_scales_, sub_minima_, codes_;
};

/// What the weights [place][row] must be moved by to make up for the drift D: W D (H + damping)⁻¹, the minimum over W' of
/// |W x - W' x̂|² (GPTAQ's objective, Li et al. 2025, equation 5, solved for all columns at once instead of after each).
inline std::vector<float> drift_of(const feedback_state& state, const std::vector<float>& weights) {
  constexpr std::size_t width = kernel::accumulate_strip;
  const std::size_t cols = state.order.size();
  const auto d = state.how.drift->sum();
  std::vector<float> by_channel(cols * width), product(cols * width), z(round_up(cols, width) * width), moved(cols * width);
  for (std::size_t p = 0; p < cols; ++p) std::copy_n(&weights[p * width], width, &by_channel[state.order[p] * width]);
  LOWBIT_BEST_KERNEL(accumulate)({d.data, d.stride, by_channel.data(), width, cols, product.data(), width, cols, width});
  const double factor = state.how.drift_strength * 2 / (static_cast<double>(state.how.drift->tokens()) * state.factor.scale);
  for (std::size_t p = 0; p < cols; ++p)
    for (std::size_t r = 0; r < width; ++r)
      z[(cols - 1 - p) * width + r] = static_cast<float>(factor * static_cast<double>(product[state.order[p] * width + r]));
  solve_in_place(state.factor.t, z.data());
  for (std::size_t p = 0; p < cols; ++p) std::copy_n(&z[(cols - 1 - p) * width], width, &moved[p * width]);
  return moved;
}

/// 96 rows of a matrix on their way through error feedback. Everything is [place][row].
template <fit_policy Fit>
class feedback_chunk {
 public:
  static constexpr std::size_t width = kernel::accumulate_strip;

  feedback_chunk(const format_spec& s, const feedback_state& state, matrix_view<const float> w, const input_statistics& about)
      : spec_(s), state_(state), rows_(w.rows), weights_(w.cols * width), errors_(w.cols * width), fields_(s, w.rows, w.cols),
        maps_(s.row_blocks(w.cols) * s.sub_blocks() * width), loss_(w.rows), squares_(w.rows), block_(s.block) {
    for (std::size_t p = 0; p < w.cols; ++p)
      for (std::size_t r = 0; r < rows_; ++r) weights_[p * width + r] = w(r, state.order[p]);
    for (std::size_t r = 0; r < rows_; ++r) about_.push_back(about.with_row(w.row(r), w.cols));
    if (state.how.drift != nullptr) {
      moved_ = drift_of(state, weights_);
      for (std::size_t i = 0; i < moved_.size(); ++i) weights_[i] += moved_[i];
    }
    errors_ = weights_;  // a place's error is its weight as wanted until it is rounded
  }

  void run() {
    if (state_.how.headers == header_source::original) fit_blocks(0, state_.order.size(), weights_.data());
    for (const auto& span : state_.spans) {
      bring_up(span, span.begin, span.end, 0);
      if (state_.how.headers == header_source::spans) fit_blocks(span.begin, span.end, settled(span, span.begin, span.end));
      for (std::size_t a = span.begin, b; a < span.end; a = b) {
        b = std::min(a + (state_.how.headers == header_source::updated ? spec_.block : span.end - a), span.end);
        if (a != span.begin) bring_up(span, a, b, span.begin);
        if (state_.how.headers == header_source::updated) fit_blocks(a, b, settled(span, a, b));
        for (std::size_t c = a; c < b; c += piece) {
          const std::size_t d = std::min(c + piece, b);
          if (c != a) bring_up(span, c, d, a);
          round(span, c, d);
        }
      }
    }
  }
  /// The row's loss without the damping's share.
  [[nodiscard]] double loss(std::size_t row) const noexcept { return loss_[row] - state_.damping * squares_[row]; }
  [[nodiscard]] block_fields fields(std::size_t row, std::size_t block) noexcept { return fields_.at(row, block); }
  /// By how much weights were moved before they were rounded, [place][row]; empty: not at all.
  [[nodiscard]] const std::vector<float>& moved() const noexcept { return moved_; }

 private:
  /// Weights near the largest float may overflow on their way.
  static float finite(float v) noexcept { return std::isfinite(v) ? v : 0.0f; }

  static constexpr std::size_t piece = 24;  ///< columns that are brought up to date one by one

  /// Adds what the errors of places [from, begin) mean for the weights of [begin, end).
  void bring_up(const feedback_state::columns& span, std::size_t begin, std::size_t end, std::size_t from) noexcept {
    if (begin == from) return;
    LOWBIT_BEST_KERNEL(accumulate)({span.at(from, begin), span.stride, &errors_[from * width], width, begin - from, &weights_[begin * width], width,
                                    end - begin, width});
  }
  /// The weights of places [begin, end) that are best while none of them is rounded: each as if those before it were kept as they are here,
  /// not as given. (What has been brought up says that only of the first.) They are what the reference's weights are at this point.
  const float* settled(const feedback_state::columns& span, std::size_t begin, std::size_t end) {
    settled_.assign(weights_.begin() + static_cast<std::ptrdiff_t>(begin * width), weights_.begin() + static_cast<std::ptrdiff_t>(end * width));
    moved_by_.resize(settled_.size());
    for (std::size_t c = begin; c < end; c += piece) {
      const std::size_t d = std::min(c + piece, end);
      if (c != begin)
        LOWBIT_BEST_KERNEL(accumulate)({span.at(begin, c), span.stride, moved_by_.data(), width, c - begin, &settled_[(c - begin) * width], width, d - c, width});
      for (std::size_t p = c; p < d; ++p) {
        float* const w = &settled_[(p - begin) * width];
        for (std::size_t k = c; k < p; ++k) add_product(w, &moved_by_[(k - begin) * width], *span.at(k, p));
        for (std::size_t r = 0; r < width; ++r) moved_by_[(p - begin) * width + r] = errors_[p * width + r] - w[r];
      }
    }
    return settled_.data();
  }
  static void add_product(float* to, const float* from, float factor) noexcept {
    for (std::size_t r = 0; r < width; ++r) to[r] += from[r] * factor;
  }
  /// Fits the blocks that begin at places of [begin, end), whose weights [end - begin][row] are given.
  void fit_blocks(std::size_t begin, std::size_t end, const float* weights) {
    const std::size_t cols = state_.order.size(), size = spec_.block;
    const auto fit = [&](std::size_t block, std::size_t n, auto place_of) {
      for (std::size_t r = 0; r < rows_; ++r) {
        for (std::size_t i = 0; i < n; ++i) block_[place_of(i).second] = finite(weights[(place_of(i).first - begin) * width + r]);
        const block_fields f = fields_.at(r, block);
        Fit::fit(spec_, block_.data(), n, about_[r].from(block * size), f);
        std::fill(f.codes + n, f.codes + size, std::uint8_t{0});
        const grid g(spec_, f);
        for (std::size_t j = 0; j < spec_.sub_blocks(); ++j) maps_[(block * spec_.sub_blocks() + j) * width + r] = g.map(j);
      }
    };
    if (state_.how.order == column_order::descending) {  // a block's channels may be anywhere: `begin, end` is all
      std::vector<std::size_t> place(cols);
      for (std::size_t p = 0; p < cols; ++p) place[state_.order[p]] = p;
      for (std::size_t c = 0; c < cols; c += size)
        fit(c / size, std::min(size, cols - c), [&](std::size_t i) { return std::pair(place[c + i], i); });
    } else {
      for (std::size_t p = begin; p < end; p += size)
        fit(state_.order[p] / size, std::min(size, cols - p), [&](std::size_t i) { return std::pair(p + i, state_.order[p + i] % size); });
    }
  }
  /// Rounds columns one by one, each with the errors of those before it.
  void round(const feedback_state::columns& span, std::size_t begin, std::size_t end) {
    for (std::size_t p = begin; p < end; ++p) {
      float* const w = &weights_[p * width];
      float* const error = &errors_[p * width];
      for (std::size_t k = begin; k < p; ++k) add_product(w, &errors_[k * width], *span.at(k, p));
      const std::size_t block = state_.order[p] / spec_.block, i = state_.order[p] % spec_.block;
      for (std::size_t r = 0; r < rows_; ++r) w[r] = finite(w[r]);
      const kernel::grid_map* const maps = &maps_[(block * spec_.sub_blocks() + i / spec_.sub_block()) * width];
      LOWBIT_BEST_KERNEL(round_weights)({&spec_, w, rows_, maps, true, codes_, values_});
      for (std::size_t r = 0; r < rows_; ++r) {
        fields_.at(r, block).codes[i] = codes_[r];
        const double left = static_cast<double>(w[r]) - static_cast<double>(values_[r]);
        loss_[r] += state_.weight[p] * left * left;
        error[r] -= values_[r];
        squares_[r] += static_cast<double>(error[r]) * static_cast<double>(error[r]);
      }
    }
  }

  const format_spec& spec_;
  const feedback_state& state_;
  std::size_t rows_;
  std::vector<float> weights_, errors_, moved_;
  row_fields fields_;
  std::vector<kernel::grid_map> maps_;  ///< [block][sub-block][row]
  std::vector<double> loss_, squares_;
  std::vector<input_statistics> about_;  ///< of each row
  std::vector<float> block_, settled_, moved_by_;
  std::uint8_t codes_[width];  // of a column
  float values_[width];
};

/// The losses of those rows of `errors` [place][row] for which it is below `limit`, infinity for the others; stops as soon as none is left.
inline std::vector<double> losses_below(const feedback_state& state, const std::vector<float>& errors, const std::vector<double>& limit) {
  constexpr std::size_t width = kernel::accumulate_strip;
  const std::size_t rows = limit.size();
  std::vector<double> loss(rows);
  for (std::size_t p = 0; p < state.order.size(); ++p)
    for (std::size_t r = 0; r < rows; ++r) loss[r] -= state.damping * static_cast<double>(errors[p * width + r]) * static_cast<double>(errors[p * width + r]);
  std::vector<float> z;
  for (const auto& span : state.spans) {
    z.assign(errors.begin() + static_cast<std::ptrdiff_t>(span.begin * width), errors.begin() + static_cast<std::ptrdiff_t>(span.end * width));
    LOWBIT_BEST_KERNEL(accumulate)({span.at(0, span.begin), span.stride, errors.data(), width, span.end, z.data(), width, span.end - span.begin, width});
    bool any = false;
    for (std::size_t p = span.begin; p < span.end; ++p)
      for (std::size_t r = 0; r < rows; ++r) {
        const double v = z[(p - span.begin) * width + r];
        loss[r] += state.weight[p] * v * v;
      }
    for (std::size_t r = 0; r < rows; ++r) {
      if (!(loss[r] < limit[r])) loss[r] = std::numeric_limits<double>::infinity();
      any = any || loss[r] < limit[r];
    }
    if (!any) break;
  }
  return loss;
}

}  // namespace detail

/// GPTQ as a rounding. Whatever the Hessian is, the result is valid; the report says what had to be done.
struct error_feedback {
  using needs = needs_statistics<hessian>;
  using options = feedback_options;
  using state = detail::feedback_state;
  static constexpr std::size_t rows_at_once = kernel::accumulate_strip;

  template <class Stats, executor E>
  static state prepare(const format_spec& s, std::size_t cols, const Stats& stats, const options& how, E& executor) {
    const hessian& h = stats.template get<hessian>();
    LOWBIT_EXPECTS(h.channels() == cols);
    state st;
    st.how = how;
    if (s.is_float() || cols == 0) return st;
    if (how.order == column_order::descending) st.how.headers = header_source::original;
    st.order = detail::order_of(how.order, h, s.block);
    if (how.drift != nullptr) {
      LOWBIT_EXPECTS(how.drift->channels() == cols);
      const auto d = how.drift->sum();
      bool usable = how.drift->tokens() != 0;
      for (std::size_t r = 0; r < cols && usable; ++r)
        for (std::size_t c = 0; c < cols; ++c) usable = usable && std::isfinite(d(r, c));
      if (!usable) st.how.drift = nullptr;
    }
    const double few = how.shrink && h.tokens() != 0 ? static_cast<double>(cols) / static_cast<double>(h.tokens()) : 0.0;
    const double wanted_damping = how.damping > few ? how.damping : few;
    damped_factor f = factor_damped(h, st.order, wanted_damping, executor);
    st.report.damping = f.damping;
    st.report.attempts = f.attempts;
    st.report.dead_channels = f.dead;
    st.report.no_data = f.scale == 0;
    if (f.scale == 0) return st;
    st.damping = f.damping * f.scale;
    st.weight.resize(cols);
    for (std::size_t p = 0; p < cols; ++p) {
      const double d = f.t(cols - 1 - p, cols - 1 - p);
      st.weight[p] = d * d * f.scale;
    }
    // Whole blocks, as many as make a span, so that no block's columns are brought up to date in two goes.
    const std::size_t wanted = std::max<std::size_t>(how.span, 1), size = s.block < wanted ? wanted / s.block * s.block : s.block;
    for (std::size_t c = 0; c < cols; c += size) st.spans.push_back({c, std::min(c + size, cols), 0, {}});
    for_parts(executor, st.spans.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        auto& span = st.spans[i];
        span.stride = round_up(span.end - span.begin, 12);
        span.u.assign(span.end * span.stride + 12, 0.0f);  // kernels read past a piece's columns
        for (std::size_t p = span.begin; p < span.end; ++p) {
          const std::size_t row = cols - 1 - p;
          const float diagonal = f.t(row, row);
          for (std::size_t k = 0; k < p; ++k) span.u[k * span.stride + (p - span.begin)] = f.t(row, cols - 1 - k) / diagonal;
        }
      }
    });
    if (st.how.drift != nullptr) st.factor = std::move(f);
    return st;
  }

  template <fit_policy Fit, class Sink>
  static rounding_report round_rows(const format_spec& s, const state& st, matrix_view<float> w, const input_statistics& about, Sink&& sink) {
    rounding_report report;
    if (st.spans.empty()) {
      round_nearest::round_rows<standard>(s, {}, w, about, sink);
      report.nearest_rows = w.rows;
      return report;
    }
    detail::feedback_chunk<Fit> chunk(s, st, w, about);
    chunk.run();
    std::vector<double> loss(w.rows), nearest_loss(w.rows, std::numeric_limits<double>::infinity());
    for (std::size_t r = 0; r < w.rows; ++r) loss[r] = chunk.loss(r);
    if (st.how.guard) {
      constexpr std::size_t width = kernel::accumulate_strip;
      std::vector<float> rounded(w.rows * w.cols);
      detail::nearest_values<standard>(s, {w.data, w.rows, w.cols, w.stride}, about, rounded.data());
      std::vector<float> errors(w.cols * width);
      for (std::size_t p = 0; p < w.cols; ++p)
        for (std::size_t r = 0; r < w.rows; ++r)
          errors[p * width + r] = w(r, st.order[p]) - rounded[r * w.cols + st.order[p]] + (chunk.moved().empty() ? 0.0f : chunk.moved()[p * width + r]);
      nearest_loss = detail::losses_below(st, errors, loss);
    }
    for (std::size_t r = 0; r < w.rows; ++r) {
      const bool better = nearest_loss[r] < loss[r];
      report.nearest_rows += better;
      report.loss += std::max(0.0, better ? nearest_loss[r] : loss[r]);
      if (better)
        round_nearest::round_rows<standard>(s, {}, w.middle_rows(r, 1), about, [&](std::size_t, std::size_t b, const block_fields& f) { sink(r, b, f); });
      else
        for (std::size_t b = 0; b < s.row_blocks(w.cols); ++b) sink(r, b, chunk.fields(r, b));
    }
    return report;
  }
};

}  // namespace lowbit
