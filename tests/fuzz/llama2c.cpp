// llama2.c's checkpoint and its tokenizer. The input's last four bytes say how many bytes before them are the tokenizer's.
#include "use_model.hpp"

#include <cstring>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  std::uint32_t size = 0;
  if (input.size() < sizeof size) return;
  std::memcpy(&size, &input[input.size() - sizeof size], sizeof size);
  input = input.first(input.size() - sizeof size);
  if (size > input.size()) return;
  const fuzz::memory_file model(input.first(input.size() - size)), words(input.last(size));
  fuzz::use(llm::open_llama2c(model.path(), words.path()), "a b<s>");
}
