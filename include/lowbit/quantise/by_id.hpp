// Quantising to a format and by a method that are only known at run time: what a command line does.
#pragma once

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/quantiser.hpp>

namespace lowbit {

/// The methods that need no data.
enum class method : std::uint8_t {
  rtn,  ///< each format's standard fit: ggml's reference for GGUF's types, minmax for the others
  mse   ///< mse_search<20>
};

/// The method of that name, or nothing.
constexpr std::optional<method> find_method(std::string_view name) noexcept {
  if (name == "rtn") return method::rtn;
  if (name == "mse") return method::mse;
  return std::nullopt;
}

/// Quantises a [out, in] matrix; fails on a weight that is not finite, naming its row and column, and where the format is only read.
template <executor E>
result<packed_matrix> quantise(format_id id, method how, matrix_view<const float> weights, E& executor) {
  const format_spec& s = spec_of_id(id);
  if (!s.is_writable()) return failure{errc::unsupported, "format " + std::string(s.name) + " is only read"};
  if (auto bad = detail::find_non_finite(weights)) return *std::move(bad);
  packed_matrix out(s, weights.rows, weights.cols);
  const uncalibrated none;
  if (how == method::mse) detail::quantise_rows<mse_search<20>, round_nearest>(s, weights, none, out, executor);
  else detail::quantise_rows<standard, round_nearest>(s, weights, none, out, executor);
  return out;
}

}  // namespace lowbit
