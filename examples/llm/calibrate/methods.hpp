// What the methods of the command line are made of: a change of the weights that is undone elsewhere, and the library's fit and rounding.
#pragma once

#include "../engine/thread_pool.hpp"

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/quantise/by_id.hpp>
#include <lowbit/quantise/transform.hpp>

#include <string>

namespace llm {

/// A scaling of channels that is folded into what produces them.
enum class channel_scaling : unsigned char { none, activation_aware, smooth };

struct recipe {
  std::string_view name;
  lowbit::method method = lowbit::method::rtn;  ///< fit and rounding
  lowbit::method without_data = lowbit::method::rtn;  ///< the same for a matrix without statistics
  bool needs_data = false;                      ///< statistics of the activations
  channel_scaling channels = channel_scaling::none;
  bool rotated = false;                         ///< the residual stream is rotated first
  bool outliers = false;                        ///< channels with large inputs keep float columns (calibrate/outliers.hpp)
};

/// A method that was named on the command line, or a failure that lists the names.
lowbit::result<recipe> recipe_named(const std::string& name);
/// The scales that a recipe wants for a group of matrices that read the same activations, whose statistics are `about`. `tied` channels
/// (by number; empty: none) get the same one. Empty: none are wanted, or none help.
lowbit::input_scales scales_of(const recipe& r, lowbit::format_id format, lowbit::consumer_group consumers, const lowbit::layer_statistics& about,
                               std::span<const std::uint32_t> tied, thread_pool& threads);

/// A matrix by a recipe's fit and rounding. `about` its inputs, or null for a matrix without: an embedding that is only looked up.
lowbit::result<lowbit::packed_matrix> quantise_by(const recipe& r, lowbit::format_id format, lowbit::matrix_view<const float> w,
                                                  const lowbit::layer_statistics* about, thread_pool& threads);

/// "rtn, mse, …".
std::string recipe_names();

}  // namespace llm
