// What the methods of the command line are made of: a change of the weights that is undone elsewhere, and the library's fit and rounding.
#pragma once

#include "../engine/thread_pool.hpp"

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/quantise/by_id.hpp>

#include <string>

namespace llm {

/// A scaling of channels that is folded into what produces them.
enum class scaling : unsigned char { none, activation_aware, smooth };

struct recipe {
  std::string_view name;
  lowbit::method method = lowbit::method::rtn;  ///< fit and rounding
  lowbit::method without_data = lowbit::method::rtn;  ///< for a matrix without statistics: an embedding that is only looked up
  bool needs_data = false;                      ///< statistics of the activations
  scaling channels = scaling::none;
  bool rotated = false;                         ///< the residual stream is rotated first
};

/// A method that was named on the command line, or a failure that lists the names.
lowbit::result<recipe> recipe_named(const std::string& name);
/// A matrix by a recipe's fit and rounding.
lowbit::result<lowbit::packed_matrix> quantise_by(const recipe& r, lowbit::format_id format, lowbit::matrix_view<const float> w,
                                                  const lowbit::layer_statistics& about, thread_pool& threads);

/// "rtn, mse, …".
std::string recipe_names();

}  // namespace llm
