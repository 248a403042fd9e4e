#include "methods.hpp"

#include <lowbit/quantise/activation_aware.hpp>
#include <lowbit/quantise/smooth.hpp>

#include <array>

namespace llm {
namespace {

using lowbit::method;

constexpr std::array recipes{
    recipe{.name = "rtn"},
    recipe{.name = "mse", .method = method::mse, .without_data = method::mse},
    recipe{.name = "hqq", .method = method::hqq, .without_data = method::hqq},
    recipe{.name = "imatrix", .method = method::imatrix, .needs_data = true},
    recipe{.name = "gptq", .method = method::gptq, .needs_data = true},
    recipe{.name = "gptq+imatrix", .method = method::gptq_imatrix, .needs_data = true},
    recipe{.name = "awq", .method = method::imatrix, .needs_data = true, .channels = channel_scaling::activation_aware},
    recipe{.name = "awq+clip", .method = method::clip, .needs_data = true, .channels = channel_scaling::activation_aware},
    recipe{.name = "awq+gptq", .method = method::gptq_imatrix, .needs_data = true, .channels = channel_scaling::activation_aware},
    recipe{.name = "smooth", .needs_data = true, .channels = channel_scaling::smooth},
    recipe{.name = "llm-int8", .needs_data = true, .outliers = true},
    recipe{.name = "rotate", .rotated = true},
    recipe{.name = "rotate+gptq", .method = method::gptq_imatrix, .needs_data = true, .rotated = true},
};

}  // namespace

lowbit::input_scales scales_of(const recipe& r, lowbit::format_id format, lowbit::consumer_group consumers, const lowbit::layer_statistics& about,
                               std::span<const std::uint32_t> tied, thread_pool& threads) {
  switch (r.channels) {
    case channel_scaling::none: break;
    case channel_scaling::smooth:
      if (tied.empty()) return lowbit::smooth_scales(consumers, about.get<lowbit::channel_maximum>());
      break;  // its authors scale only what a norm produces
    case channel_scaling::activation_aware: {
      lowbit::scale_search_options options;
      options.tied = tied;
      return lowbit::search_scales<>(lowbit::spec_of_id(format), consumers, about, threads, options).scales;
    }
  }
  return {};
}

lowbit::result<lowbit::packed_matrix> quantise_by(const recipe& r, lowbit::format_id format, lowbit::matrix_view<const float> w,
                                                  const lowbit::layer_statistics* about, thread_pool& threads) {
  if (about == nullptr) return lowbit::quantise(format, r.without_data, w, threads);
  auto q = lowbit::quantise(format, r.method, w, *about, threads);
  if (!q) return std::move(q).error();
  return std::move(q->weights);
}

std::string recipe_names() {
  std::string names;
  for (const recipe& r : recipes) names.append(names.empty() ? "" : ", ").append(r.name);
  return names;
}

lowbit::result<recipe> recipe_named(const std::string& name) {
  for (const recipe& r : recipes)
    if (r.name == name) return r;
  return lowbit::failure{lowbit::errc::unsupported, "unknown method '" + name + "'; there are " + recipe_names()};
}

}  // namespace llm
