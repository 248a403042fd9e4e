// The tokenisers' parts against their definitions: UTF-8 against RFC 3629, GPT-2's pattern word by word, merging against brute force.
#include "text/merge.hpp"
#include "text/tokeniser.hpp"

#include <doctest/doctest.h>

#include <map>
#include <random>

using namespace llm;

namespace {

std::vector<std::string> words_of(pretokeniser kind, std::string_view text) {
  std::vector<std::string> words;
  for_each_word(kind, text, [&](std::string_view w) { words.emplace_back(w); });
  return words;
}

using strings = std::vector<std::string>;

}  // namespace

TEST_CASE("every code point survives UTF-8, and every other sequence of bytes is found invalid") {
  for (char32_t c = 0; c <= 0x10ffff; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_code_point(text, c);
    const code_point read = read_code_point(text, 0);
    REQUIRE(read.value == c);
    REQUIRE(read.bytes == text.size());
  }
  for (std::string_view bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80",
                               "\xf5\x80\x80\x80", "\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xc3("}) {
    CAPTURE(bad.size());
    CHECK(find_invalid_utf8(bad) == std::optional<std::size_t>{0});
    CHECK(find_invalid_utf8("ok " + std::string{bad}) == std::optional<std::size_t>{3});
  }
  CHECK(find_invalid_utf8("naïve 你好 😀") == std::nullopt);
}

TEST_CASE("a text that comes byte by byte, or cut anywhere, is whole characters, and bytes that are none become U+FFFD") {
  const std::string good = "naïve 你好 😀!";
  for (std::size_t cut = 0; cut <= good.size(); ++cut) {
    utf8_stream in;
    std::string out = in.add(std::string_view(good).substr(0, cut));
    CHECK(find_invalid_utf8(out) == std::nullopt);
    out += in.add(std::string_view(good).substr(cut));
    CHECK(out == good);
    CHECK(in.finish().empty());
  }
  const auto by_bytes = [](std::string_view text) {
    utf8_stream in;
    std::string out;
    for (const char c : text) out += in.add({&c, 1});
    return out + in.finish();
  };
  CHECK(by_bytes(good) == good);
  CHECK(by_bytes("a\xe4\xbd") == "a\ufffd\ufffd");
  CHECK(by_bytes("\xe4z") == "\ufffdz");
  CHECK(by_bytes("\xff\x80" "ok\xc3") == "\ufffd\ufffdok\ufffd");
  CHECK(by_bytes("\xed\xa0\x80") == "\ufffd\ufffd\ufffd");
}

TEST_CASE("words are cut as GPT-2's pattern cuts them") {
  CHECK(words_of(pretokeniser::gpt2, "") == strings{});
  CHECK(words_of(pretokeniser::gpt2, "Hello world") == strings{"Hello", " world"});
  CHECK(words_of(pretokeniser::gpt2, "I'll say it's 1984!") == strings{"I", "'ll", " say", " it", "'s", " 1984", "!"});
  CHECK(words_of(pretokeniser::gpt2, "a  b\n\n\nc  ") == strings{"a", " ", " b", "\n\n", "\n", "c", "  "});
  CHECK(words_of(pretokeniser::gpt2, "\tx") == strings{"\t", "x"});
  CHECK(words_of(pretokeniser::gpt2, "été½²x ٣") == strings{"été", "½²", "x", " ٣"});
  CHECK(words_of(pretokeniser::gpt2, "a\u00a0b ...\u3000") == strings{"a", "\u00a0", "b", " ...", "\u3000"});
  CHECK(words_of(pretokeniser::gpt2, "'tis 'S") == strings{"'t", "is", " '", "S"});
  CHECK(words_of(pretokeniser::smollm, "in 1984 ") == strings{"in", " ", "1", "9", "8", "4", " "});
  CHECK(words_of(pretokeniser::smollm, "x²y") == strings{"x", "²", "y"});
}

TEST_CASE("merging by heap is merging by brute force") {
  std::mt19937 random{7};
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (std::size_t n = random() % 40; text.size() < n;) text += static_cast<char>('a' + random() % 3);
    std::map<std::string, int> rank;
    for (int i = 0; i < 12; ++i) {
      std::string pair;
      for (std::size_t n = 2 + random() % 4; pair.size() < n;) pair += static_cast<char>('a' + random() % 3);
      rank.try_emplace(pair, static_cast<int>(random() % 8));
    }
    const auto rank_of = [&](std::string_view l, std::string_view r) -> std::optional<int> {
      const auto found = rank.find(std::string{l} + std::string{r});
      return found == rank.end() ? std::nullopt : std::optional{found->second};
    };
    std::vector<std::string_view> merged;
    std::vector<std::string> expected;
    for (std::size_t i = 0; i < text.size(); ++i) {
      merged.push_back(std::string_view{text}.substr(i, 1));
      expected.push_back(text.substr(i, 1));
    }
    merge_symbols(merged, rank_of);
    for (;;) {
      std::optional<int> best;
      std::size_t at = 0;
      for (std::size_t i = 0; i + 1 < expected.size(); ++i)
        if (const auto r = rank_of(expected[i], expected[i + 1]); r && (!best || *r < *best)) best = r, at = i;
      if (!best) break;
      expected[at] += expected[at + 1];
      expected.erase(expected.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    CHECK(strings(merged.begin(), merged.end()) == expected);
  }
}

TEST_CASE("sentencepiece: the best score first, bytes where no piece fits, and the text comes back") {
  vocabulary v;
  v.kind = vocabulary_kind::sentencepiece;
  v.pieces = {"<unk>", "<s>", "</s>"};
  v.kinds = {piece_kind::unknown, piece_kind::control, piece_kind::control};
  for (const char* hex = "0123456789ABCDEF", *high = hex; *high != 0; ++high)
    for (const char* low = hex; *low != 0; ++low) {
      v.pieces.push_back(std::string{"<0x"} + *high + *low + '>');
      v.kinds.push_back(piece_kind::byte);
    }
  const int first = static_cast<int>(v.pieces.size());
  for (const char* piece : {"▁", "a", "b", "ab", "▁a", "▁ab", "ba"}) {
    v.pieces.emplace_back(piece);
    v.kinds.push_back(piece_kind::normal);
  }
  v.scores.assign(v.pieces.size(), 0.0f);
  const auto score = [&](int piece, float s) { v.scores[static_cast<std::size_t>(first + piece)] = s; };
  score(3, -3.0f), score(4, -2.0f), score(5, -5.0f), score(6, -1.0f);
  v.bos = 1, v.eos = 2, v.unknown = 0, v.add_bos = true, v.add_space_prefix = true;
  auto t = tokeniser::from(v);
  REQUIRE(t.ok());
  CHECK(t->encode("ab") == std::vector<int>{1, first + 5});  // "▁a", and then with "b"
  CHECK(t->encode("bab") == std::vector<int>{1, first, first + 6, first + 2});  // "ba" comes before "ab"
  CHECK(t->encode("é") == std::vector<int>{1, first, 3 + 0xc3, 3 + 0xa9});
  CHECK(t->encode("</s>").size() > 2);
  CHECK(t->encode("</s>", true) == std::vector<int>{1, 2});
  for (const char* text : {"", "ab ba", "  a", "naïve 你好", "b\n"}) CHECK(t->decode(t->encode(text)) == text);
}

TEST_CASE("vocabularies that contradict themselves are refused") {
  vocabulary v;
  v.pieces = {"a", "b"};
  v.bos = 2;
  CHECK(!tokeniser::from(v).ok());
  v.bos = -1;
  v.add_bos = true;
  CHECK(!tokeniser::from(v).ok());
  v.add_bos = false;
  v.kinds = {piece_kind::normal};
  CHECK(!tokeniser::from(v).ok());
  v.kinds = {piece_kind::normal, piece_kind::byte};
  CHECK(!tokeniser::from(v).ok());
}
