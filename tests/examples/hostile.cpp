// The engine's readers against their corpora: bad files refused with one line, good ones read, cut ones never a crash.
#include "../io/corpus.hpp"

#include "files/build.hpp"
#include "files/hf_json.hpp"
#include "files/load.hpp"
#include "text/tokeniser.hpp"

using namespace lowbit::test;
using lowbit::status;

namespace {

std::string_view text_of(const bytes& b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

status read_config(std::string_view text) {
  const auto json = llm::parse_json("config.json", text);
  if (!json) return json.error();
  const auto config = llm::read_hf_config("config.json", *json);
  if (!config) return config.error();
  return lowbit::done{};
}
status read_tokeniser(std::string_view text) {
  const auto json = llm::parse_json("tokenizer.json", text);
  if (!json) return json.error();
  const auto words = llm::read_hf_tokeniser("tokenizer.json", *json, *json, *json);
  if (!words) return words.error();
  const auto tokeniser = llm::tokeniser::from(*words);
  if (!tokeniser) return tokeniser.error();
  return lowbit::done{};
}
/// All that is checked of a model before it is built.
status whole_model(const lowbit::result<llm::checkpoint>& file) {
  if (!file) return file.error();
  const auto tokeniser = llm::tokeniser::from(file->words);
  if (!tokeniser) return tokeniser.error();
  return llm::check_model(*file);
}
std::string string_of(const bytes& b) { return std::string(text_of(b)); }

}  // namespace

TEST_CASE("config.json and tokenizer.json: bad ones are refused, good ones read, cut ones refused at every byte") {
  for (const auto& [reader, read] : {std::pair{"hf_config", &read_config}, std::pair{"hf_tokeniser", &read_tokeniser}})
    for_each_in_corpus(reader, [read = read](const std::string&, const bytes& file, bool is_bad) {
      const status s = read(text_of(file));
      CHECK_MESSAGE(s.ok() == !is_bad, (s.ok() ? std::string() : s.error().message));
      if (!s) check_message(s.error());
      for (std::size_t n = 0; n < file.size() && !is_bad; ++n) REQUIRE(!read(text_of(first_of(file, n))));
    });
}

TEST_CASE("GGUF models and llama2.c checkpoints: bad ones are refused, good ones read, cut ones refused at every byte") {
  const scratch_folder folder;
  const auto path = [&](const std::string& name) { return (folder / name).string(); };
  for_each_in_corpus("gguf_model", [&](const std::string&, const bytes& file, bool is_bad) {
    const auto read = [&](const bytes& b) {
      write_all(path("m.gguf"), string_of(b));
      return whole_model(llm::open_gguf(path("m.gguf")));
    };
    const status s = read(file);
    CHECK_MESSAGE(s.ok() == !is_bad, (s.ok() ? std::string() : s.error().message));
    if (!s) check_message(s.error());
    for (std::size_t n = 0; n + 32 < file.size() && !is_bad; ++n) REQUIRE(!read(first_of(file, n)));  // the last 32 may be padding
  });
  for_each_in_corpus("llama2c", [&](const std::string&, const bytes& file, bool is_bad) {
    // The last four bytes say how many before them are the tokenizer's.
    std::uint32_t size;
    std::memcpy(&size, &file[file.size() - 4], 4);
    const std::size_t model_size = file.size() - 4 - size;
    const auto read = [&](std::size_t model, std::size_t words) {
      write_all(path("m.bin"), string_of(first_of(file, model)));
      write_all(path("w.bin"), string_of(first_of(bytes(file.begin() + static_cast<std::ptrdiff_t>(model_size), file.end() - 4), words)));
      return whole_model(llm::open_llama2c(path("m.bin"), path("w.bin")));
    };
    const status s = read(model_size, size);
    CHECK_MESSAGE(s.ok() == !is_bad, (s.ok() ? std::string() : s.error().message));
    if (!s) check_message(s.error());
    for (std::size_t n = 0; n < model_size && !is_bad; ++n) REQUIRE(!read(n, size));
    for (std::size_t n = 0; n < size && !is_bad; ++n) REQUIRE(!read(model_size, n));
  });
}
