// The model that ships with the repository, against logits and token ids that another program computed in float64
// (examples/models/reference.py).
#include "files/build.hpp"
#include "text/tokeniser.hpp"
#include "tiny_model.hpp"

#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace llm;

namespace {
const std::string folder = LOWBIT_SOURCE_DIR "/examples/models/shakespeare";
}

TEST_CASE("the float engine computes the expected logits, at once and token by token") {
  const auto expected = nlohmann::json::parse(read_bytes(folder + "/expected.json"));
  const auto ids = expected["tokens"].get<std::vector<int>>();
  const auto logits = expected["logits"].get<std::vector<float>>();
  const auto file = open_checkpoint(folder);
  REQUIRE_MESSAGE(file.ok(), (file.ok() ? "" : file.error().message));
  thread_pool threads{2};
  for (const weight_source& source : {weight_source{stored}, as_float32(threads)}) {
    const auto model = build_llama(*file, source, threads);
    REQUIRE(model.ok());
    session whole{*model, ids.size(), threads, lowbit::precision::exact}, steps{*model, ids.size(), threads, lowbit::precision::exact};
    const matrix& at_once = whole.feed(ids);
    const matrix* last = nullptr;
    for (const int id : ids) last = &steps.feed(std::span{&id, 1});
    REQUIRE(at_once.cols() == logits.size());
    double worst = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i)
      worst = std::max({worst, static_cast<double>(std::abs(at_once.row(0)[i] - logits[i])), static_cast<double>(std::abs(last->row(0)[i] - logits[i]))});
    CHECK(worst < 1e-4);  // float32 rounding through two layers, on logits of about 10
  }
}

TEST_CASE("its tokeniser gives the expected ids, and the texts come back") {
  const auto expected = nlohmann::json::parse(read_bytes(folder + "/expected.json"));
  const auto file = open_checkpoint(folder);
  REQUIRE(file.ok());
  vocabulary v = file->words;
  CHECK(v.add_bos);
  v.add_bos = false;
  const auto words = tokeniser::from(v);
  REQUIRE(words.ok());
  REQUIRE(expected["tokenization"].size() > 3);
  for (const auto& sample : expected["tokenization"]) {
    const auto ids = words->encode(sample["text"].get<std::string>());
    CHECK(ids == sample["ids"].get<std::vector<int>>());
    CHECK(words->decode(ids) == sample["text"].get<std::string>());
  }
}
