// Quantising to a format and by a method that are only known at run time: what a command line does.
#pragma once

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/clip.hpp>
#include <lowbit/quantise/feedback_fit.hpp>
#include <lowbit/quantise/half_quadratic.hpp>
#include <lowbit/quantise/importance.hpp>
#include <lowbit/quantise/quantiser.hpp>

namespace lowbit {

/// The methods by which weights are quantised.
enum class method : std::uint8_t {
  rtn,      ///< round to nearest with each format's standard fit: ggml's reference for GGUF's types, minmax for the others
  mse,      ///< round to nearest with mse_search<20>
  hqq,      ///< round to nearest with half_quadratic<>
  imatrix,  ///< round to nearest with importance_weighted; needs statistics of the layer's inputs
  clip,     ///< round to nearest with learnt_clip<>; needs statistics
  gptq,     ///< error feedback with feedback_fit; needs statistics
  gptq_imatrix  ///< error feedback with weighted_feedback_fit; needs statistics
};

inline constexpr std::array<std::pair<std::string_view, method>, 7> method_names{{{"rtn", method::rtn},
                                                                                  {"mse", method::mse},
                                                                                  {"hqq", method::hqq},
                                                                                  {"imatrix", method::imatrix},
                                                                                  {"clip", method::clip},
                                                                                  {"gptq", method::gptq},
                                                                                  {"gptq+imatrix", method::gptq_imatrix}}};

/// The method of that name, or nothing.
constexpr std::optional<method> find_method(std::string_view name) noexcept {
  for (const auto& [known, m] : method_names)
    if (known == name) return m;
  return std::nullopt;
}

/// Whether a method needs statistics of the layer's inputs.
constexpr bool needs_data(method m) noexcept { return m >= method::imatrix; }

namespace detail {
template <fit_policy Fit, rounding Rounding, class Stats, executor E>
result<quantised> quantise_by(const format_spec& s, matrix_view<const float> weights, const Stats& stats, E& executor,
                              const typename Rounding::options& options = {}) {
  if (!s.is_writable()) return failure{errc::unsupported, "format " + std::string(s.name) + " is only read"};
  if (auto bad = find_non_finite(weights, executor)) return *std::move(bad);
  if (auto bad = find_other_shape(stats, weights.cols)) return *std::move(bad);
  quantised q{packed_matrix(s, weights.rows, weights.cols), {}};
  q.report = quantise_rows<Fit, Rounding>(s, weights, stats, q.weights, executor, options);
  return q;
}
}  // namespace detail

/// Quantises a [out, in] matrix with what is known of its inputs. Fails on a weight that is not finite, naming its row and column, where
/// the statistics are of another number of channels than the matrix has, and (unsupported) where the format is only read.
template <executor E>
result<quantised> quantise(format_id id, method how, matrix_view<const float> weights, const layer_statistics& statistics, E& executor,
                           const feedback_options& feedback = {}) {
  const format_spec& s = spec_of_id(id);
  switch (how) {
    case method::rtn: break;
    case method::mse: return detail::quantise_by<mse_search<20>, round_nearest>(s, weights, uncalibrated(), executor);
    case method::hqq: return detail::quantise_by<half_quadratic<>, round_nearest>(s, weights, uncalibrated(), executor);
    case method::imatrix: return detail::quantise_by<importance_weighted, round_nearest>(s, weights, statistics, executor);
    case method::clip: return detail::quantise_by<learnt_clip<>, round_nearest>(s, weights, statistics, executor);
    case method::gptq: return detail::quantise_by<feedback_fit, error_feedback>(s, weights, statistics, executor, feedback);
    case method::gptq_imatrix: return detail::quantise_by<weighted_feedback_fit, error_feedback>(s, weights, statistics, executor, feedback);
  }
  return detail::quantise_by<standard, round_nearest>(s, weights, uncalibrated(), executor);
}

/// The same by method::imatrix, from importance alone.
template <executor E>
result<quantised> quantise(format_id id, matrix_view<const float> weights, const calibrated<channel_importance>& importance, E& executor) {
  return detail::quantise_by<importance_weighted, round_nearest>(spec_of_id(id), weights, importance, executor);
}

/// The same without data: fails (unsupported) on a method that needs them.
template <executor E>
result<packed_matrix> quantise(format_id id, method how, matrix_view<const float> weights, E& executor) {
  if (needs_data(how)) return failure{errc::unsupported, "this method needs statistics of the layer's inputs"};
  auto q = quantise(id, how, weights, layer_statistics(0), executor);
  if (!q) return std::move(q).error();
  return std::move(q->weights);
}

}  // namespace lowbit
