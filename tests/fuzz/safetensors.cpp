// read_safetensors: whatever it accepts covers the input's data exactly once.
#include "fuzz.hpp"

#include <lowbit/io/safetensors.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto content = read_safetensors(input);
  if (fuzz::refuses(content)) return;
  std::size_t total = 0;
  for (const safetensor& t : content->tensors) {
    total += t.data.size();
    fuzz::require(content->find(t.name) != nullptr && safetensors_bits(t.dtype));
    fuzz::touch(t.data);
  }
  fuzz::require(total < input.size() || input.empty());
}
