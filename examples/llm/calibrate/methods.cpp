#include "methods.hpp"

#include <array>

namespace llm {
namespace {

using lowbit::method;

constexpr std::array recipes{
    recipe{.name = "rtn"},
    recipe{.name = "mse", .method = method::mse},
};

}  // namespace

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
