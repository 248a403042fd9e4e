// load_statistics: whatever it accepts is saved again as the same bytes. The hash at the end is made to fit, so that what lies before it is
// looked at.
#include "fuzz.hpp"

#include <lowbit/calibration/saved.hpp>

#include <algorithm>
#include <cstring>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  std::vector<std::uint8_t> bytes(input.begin(), input.end());
  const std::uint64_t hash = detail::fnv1a(bytes);
  bytes.resize(bytes.size() + sizeof hash);
  std::memcpy(bytes.data() + bytes.size() - sizeof hash, &hash, sizeof hash);
  const auto read = load_statistics<layer_statistics>(bytes);
  if (fuzz::refuses(read)) return;
  fuzz::require(save_statistics(*read) == bytes);
}
