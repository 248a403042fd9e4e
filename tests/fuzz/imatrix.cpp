// read_imatrix: whatever it accepts, of either kind, are sums of squares and counts that quantisers can use.
#include "fuzz.hpp"

#include <lowbit/io/imatrix.hpp>

#include <cmath>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto read = read_imatrix(input);
  if (fuzz::refuses(read)) return;
  for (const imatrix_entry& e : read->entries) {
    fuzz::require(!e.counts.empty() && e.sums.size() % e.counts.size() == 0 && read->find(e.name) != nullptr);
    for (const auto* values : {&e.sums, &e.counts})
      for (const float v : *values) fuzz::require(std::isfinite(v) && v >= 0);
    const std::size_t experts = e.counts.size(), channels = e.sums.size() / experts;
    for (std::size_t i = 0; i < experts; ++i) {
      const auto importance = e.importance(channels, i, experts);
      fuzz::require(importance && importance->size() == channels);
    }
    fuzz::require(!e.importance(channels + 1, 0, experts));
  }
}
