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
  if (refuses(file)) return;
  for (const llm::tensor& t : file->tensors) {
    const auto w = t.read();
    if (!refuses(w)) touch({w->view().data, w->view().size_bytes()});
  }
  (void)refuses(llm::check_model(*file));
  if (llm::vocabulary words = file->words; !refuses(llm::complete(words))) (void)llm::hf_tokeniser(words);
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (!refuses(tokeniser)) (void)tokeniser->decode(tokeniser->encode(text, true));
}

}  // namespace lowbit::fuzz
