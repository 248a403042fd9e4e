// read_peft_config and read_peft_adapter: adapter_config.json and, behind a byte of zero, a safetensors file. Whatever is accepted are whole factors of
// finite numbers.
#include "use_adapter.hpp"

#include <lowbit/io/peft_adapter.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto [text, tensors] = fuzz::text_and_rest(input);
  const auto config = read_peft_config(text);
  if (fuzz::refuses(config)) return;
  fuzz::require(config->rank != 0);
  const std::vector<std::uint8_t> file(tensors.begin(), tensors.end());  // as aligned as a mapped file's
  const auto content = read_safetensors(file);
  if (fuzz::refuses(content)) return;
  fuzz::use(read_peft_adapter(*config, *content));
}
