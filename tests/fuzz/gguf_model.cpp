// A model in GGUF as the engine opens it: configuration, tokenizer, tensors of every type.
#include "fuzz.hpp"

#include "files/build.hpp"
#include "files/load.hpp"
#include "text/tokeniser.hpp"

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const fuzz::memory_file model(input);
  const auto file = llm::open_gguf(model.path());
  if (!file) return fuzz::require(!file.error().message.empty());
  for (const llm::tensor& t : file->tensors) {
    const auto w = t.read();
    if (w) fuzz::touch({w->view().data, w->view().size_bytes()});
  }
  (void)llm::check_model(*file).ok();
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (tokeniser) (void)tokeniser->decode(tokeniser->encode("ab 12 caf\xc3\xa9<s>", true));
}
