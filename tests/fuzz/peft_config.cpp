// read_peft_config: JSON of any kind where an object of certain kinds is due.
#include "fuzz.hpp"

#include <lowbit/io/peft_adapter.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto config = read_peft_config(fuzz::text_of(input));
  if (!config) return fuzz::require(!config.error().message.empty());
  fuzz::require(config->rank != 0);
  (void)read_peft_adapter(*config, {}).ok();
}
