// llama2.c's checkpoint and its tokenizer. The input's last four bytes say how many bytes before them are the tokenizer's.
#include "fuzz.hpp"

#include "files/build.hpp"
#include "files/load.hpp"
#include "text/tokeniser.hpp"

#include <cstring>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  std::uint32_t size = 0;
  if (input.size() < sizeof size) return;
  std::memcpy(&size, &input[input.size() - sizeof size], sizeof size);
  input = input.first(input.size() - sizeof size);
  if (size > input.size()) return;
  const fuzz::memory_file model(input.first(input.size() - size)), words(input.last(size));
  const auto file = llm::open_llama2c(model.path(), words.path());
  if (!file) return fuzz::require(!file.error().message.empty());
  for (const llm::tensor& t : file->tensors) {
    const auto w = t.read();
    if (w) fuzz::touch({w->view().data, w->view().size_bytes()});
  }
  (void)llm::check_model(*file).ok();
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (tokeniser) (void)tokeniser->decode(tokeniser->encode("a b<s>", true));
}
