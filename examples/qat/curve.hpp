// Loss curves as a picture: an SVG file without a library.
#pragma once

#include <string>
#include <vector>

namespace qat {

struct series {
  std::string name;
  std::vector<double> losses;       ///< of each step
};
struct level {
  std::string name;
  double loss = 0;
};

/// The curves, each smoothed over its last twentieth, over dashed horizontal lines; the axes fit what is there. `unit` says what a loss is.
std::string draw_curves(const std::string& title, const std::string& unit, const std::vector<series>& curves, const std::vector<level>& levels);

}  // namespace qat
