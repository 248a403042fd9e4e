// What the targets that read adapters ask of one that was accepted.
#pragma once

#include "fuzz.hpp"

#include <lowbit/io/adapter_file.hpp>

#include <cmath>

namespace lowbit::fuzz {

/// Whole factors of finite numbers, one pair at least; or an error that says something.
inline void use(const result<adapter>& read) {
  if (refuses(read)) return;
  require(!read->weights.empty());
  for (const auto& [name, f] : read->weights) {
    require(f.rank != 0 && f.a.size() == f.rank * f.cols && f.b.size() == f.rows * f.rank && std::isfinite(f.scale));
    for (const auto* values : {&f.a, &f.b})
      for (const float v : *values) require(std::isfinite(v));
  }
}

}  // namespace lowbit::fuzz
