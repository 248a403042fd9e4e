// read_gguf_adapter: whatever it accepts are whole factors of finite numbers.
#include "fuzz.hpp"

#include <lowbit/io/gguf_adapter.hpp>

#include <cmath>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto read = read_gguf_adapter(input);
  if (!read) return fuzz::require(!read.error().message.empty());
  fuzz::require(!read->weights.empty());
  for (const auto& [name, f] : read->weights) {
    fuzz::require(f.rank != 0 && f.a.size() == f.rank * f.cols && f.b.size() == f.rows * f.rank && std::isfinite(f.scale));
    for (const auto* values : {&f.a, &f.b})
      for (const float v : *values) fuzz::require(std::isfinite(v));
  }
}
