// config.json of a Hugging Face folder: whatever is accepted passes check().
#include "fuzz.hpp"

#include "files/hf_json.hpp"

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto json = llm::parse_json("config.json", fuzz::text_of(input));
  if (fuzz::refuses(json)) return;
  const auto config = llm::read_hf_config("config.json", *json);
  if (!fuzz::refuses(config)) fuzz::require(llm::check(*config).ok());
}
