// The fits that error feedback runs with where nothing else is asked for.
#pragma once

#include <lowbit/quantise/importance.hpp>

namespace lowbit {

/// The fit that pays under error feedback: the range of least squared error, weighted by the diagonal of H. Output error against each format's
/// standard fit, on layers of SmolLM2 and tokens that were not in the statistics: 0.73 to 0.94 of it for uniform codes, 0.70 for q2_k, 0.91
/// for q3_k, 0.83 to 0.96 for tables; but 1.3 for q4_k, so two-level integers of 4 bits and more keep theirs.
struct feedback_fit {
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    const bool searched_better = s.values.present() || !s.sub_scale.present() || s.codes.bits() < 4;
    return searched_better ? mse_search<20>::fit(s, x, n, about, f) : standard::fit(s, x, n, about, f);
  }
};

/// Importance-weighted least squares, and feedback_fit for GGUF's types whose quantiser in ggml heeds no importance (mxfp4, nvfp4, ...): there
/// importance_weighted is the standard fit, which does not pay under error feedback.
struct weighted_feedback_fit {
  using needs = needs_statistics<channel_importance>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    const bool heeded = s.gguf < 0 || kernel::can_quantise_as_ggml(s, true);
    return heeded ? importance_weighted::fit(s, x, n, about, f) : feedback_fit::fit(s, x, n, about, f);
  }
};

}  // namespace lowbit
