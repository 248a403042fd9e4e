// A Hugging Face folder as the engine opens it: config.json and, behind a byte of zero, model.safetensors, beside a tokenizer of three words.
#include "use_model.hpp"

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  static const fuzz::temporary_folder folder;
  static const bool has_tokeniser = [] {
    folder.write("tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}})");
    return true;
  }();
  fuzz::require(has_tokeniser);
  const auto [config, tensors] = fuzz::text_and_rest(input);
  folder.write("config.json", config);
  folder.write("model.safetensors", fuzz::text_of(tensors));
  fuzz::use(llm::open_hf(folder.path().string()), "ab");
}
