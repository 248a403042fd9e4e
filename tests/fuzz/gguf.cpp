// read_gguf: whatever it accepts lies inside the input.
#include "fuzz.hpp"

#include <lowbit/io/gguf.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto content = read_gguf(input);
  if (fuzz::refuses(content)) return;
  for (const gguf_tensor& t : content->tensors) {
    fuzz::require(t.data.size() <= input.size() && t.dims.size() <= 4 && content->find(t.name) == &t);
    fuzz::touch(t.data);
  }
  for (const auto& e : content->metadata.entries()) fuzz::require(content->metadata.find(e.key) == &e.value);
}
