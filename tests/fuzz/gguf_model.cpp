// A model in GGUF as the engine opens it: configuration, tokenizer, tensors of every type.
#include "use_model.hpp"

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const fuzz::memory_file model(input);
  fuzz::use(llm::open_gguf(model.path()), "ab 12 caf\xc3\xa9<s>");
}
