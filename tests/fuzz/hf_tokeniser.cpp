// tokenizer.json of a Hugging Face folder, to a tokeniser that encodes and decodes.
#include "fuzz.hpp"

#include "files/hf_json.hpp"
#include "text/tokeniser.hpp"

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto json = llm::parse_json("tokenizer.json", fuzz::text_of(input));
  if (fuzz::refuses(json)) return;
  // One file holds all three: settings and configuration are taken from it too.
  auto words = llm::read_hf_tokeniser("tokenizer.json", *json, *json, *json);
  if (fuzz::refuses(words)) return;
  const auto tokeniser = llm::tokeniser::from(*std::move(words));
  if (fuzz::refuses(tokeniser)) return;
  const auto ids = tokeniser->encode("KING: 12 caf\xc3\xa9 <s>", true);
  for (const int id : ids) fuzz::require(id >= 0 && static_cast<std::size_t>(id) < tokeniser->size());
  (void)tokeniser->decode(ids);
}
