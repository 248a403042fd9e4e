#include "methods.hpp"

#include <array>

namespace llm {
namespace {

using lowbit::method;

constexpr std::array recipes{
    recipe{.name = "rtn"},
    recipe{.name = "mse", .method = method::mse, .without_data = method::mse},
    recipe{.name = "gptq", .method = method::gptq, .needs_data = true},
};

}  // namespace

lowbit::result<lowbit::packed_matrix> quantise_by(const recipe& r, lowbit::format_id format, lowbit::matrix_view<const float> w,
                                                  const lowbit::layer_statistics& about, thread_pool& threads) {
  auto q = lowbit::quantise(format, r.method, w, about, threads);
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
