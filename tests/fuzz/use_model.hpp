// What the targets that read whole models do with one that was accepted.
#pragma once

#include "fuzz.hpp"

#include "files/build.hpp"
#include "files/load.hpp"
#include "text/tokeniser.hpp"

namespace lowbit::fuzz {

/// Reads every tensor, checks the shapes, and takes a text through the tokeniser and back.
inline void use(const result<llm::checkpoint>& file, const char* text) {
  if (!file) return require(!file.error().message.empty());
  for (const llm::tensor& t : file->tensors) {
    const auto w = t.read();
    if (w) touch({w->view().data, w->view().size_bytes()});
  }
  (void)llm::check_model(*file).ok();
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (tokeniser) (void)tokeniser->decode(tokeniser->encode(text, true));
}

}  // namespace lowbit::fuzz
