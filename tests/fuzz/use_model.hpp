// What the targets that read whole models do with one that was accepted.
#pragma once

#include "fuzz.hpp"

#include "files/build.hpp"
#include "files/hf_json.hpp"
#include "files/load.hpp"
#include "text/tokeniser.hpp"

namespace lowbit::fuzz {

/// Reads every tensor, checks the shapes, takes a text through the tokeniser and back, and writes the tokeniser as Hugging Face does.
inline void use(const result<llm::checkpoint>& file, const char* text) {
  if (!file) return require(!file.error().message.empty());
  for (const llm::tensor& t : file->tensors) {
    const auto w = t.read();
    if (w) touch({w->view().data, w->view().size_bytes()});
  }
  (void)llm::check_model(*file).ok();
  if (llm::vocabulary words = file->words; llm::complete(words)) (void)llm::hf_tokeniser(words);
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (tokeniser) (void)tokeniser->decode(tokeniser->encode(text, true));
}

}  // namespace lowbit::fuzz
