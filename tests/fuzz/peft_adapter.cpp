// read_peft_config and read_peft_adapter: adapter_config.json and, behind a byte of zero, a safetensors file. Whatever is accepted are whole factors of
// finite numbers.
#include "fuzz.hpp"

#include <lowbit/io/peft_adapter.hpp>

#include <cmath>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto [text, tensors] = fuzz::text_and_rest(input);
  const auto config = read_peft_config(text);
  if (!config) return fuzz::require(!config.error().message.empty());
  fuzz::require(config->rank != 0);
  const std::vector<std::uint8_t> file(tensors.begin(), tensors.end());  // as aligned as a mapped file's
  const auto content = read_safetensors(file);
  if (!content) return;
  const auto read = read_peft_adapter(*config, *content);
  if (!read) return fuzz::require(!read.error().message.empty());
  fuzz::require(!read->weights.empty());
  for (const auto& [name, f] : read->weights) {
    fuzz::require(f.rank != 0 && f.a.size() == f.rank * f.cols && f.b.size() == f.rows * f.rank && std::isfinite(f.scale));
    for (const auto* values : {&f.a, &f.b})
      for (const float v : *values) fuzz::require(std::isfinite(v));
  }
}
