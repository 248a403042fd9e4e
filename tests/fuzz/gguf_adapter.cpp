// read_gguf_adapter: whatever it accepts are whole factors of finite numbers.
#include "use_adapter.hpp"

#include <lowbit/io/gguf_adapter.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  fuzz::use(read_gguf_adapter(input));
}
