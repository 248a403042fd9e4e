// The first half of byte-level BPE: a text is cut into words, which merges never cross.
//
// GPT-2's pattern (Radford et al. 2019) is 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ ; SmolLM's
// splits every number character off first and applies GPT-2's to what lies between. Written by hand, since std::regex knows
// no Unicode. The input is UTF-8; an invalid byte counts as a character that is neither letter, number nor space.
#pragma once

#include "unicode_classes.hpp"
#include "utf8.hpp"

#include <algorithm>
#include <iterator>
#include <vector>

namespace llm {

/// How words are cut.
enum class pretokeniser : unsigned char { gpt2, smollm };

enum class character_class : unsigned char { letter, number, space, other, end };

template <std::size_t N>
bool in_ranges(const code_range (&ranges)[N], char32_t c) noexcept {
  const auto after = std::upper_bound(std::begin(ranges), std::end(ranges), c, [](char32_t v, code_range r) { return v < r.first; });
  return after != std::begin(ranges) && c <= std::prev(after)->last;
}

inline character_class classify(char32_t c) noexcept {
  if (in_ranges(unicode_letters, c)) return character_class::letter;
  if (in_ranges(unicode_numbers, c)) return character_class::number;
  return in_ranges(unicode_spaces, c) ? character_class::space : character_class::other;
}

/// The length in bytes of the word that GPT-2's pattern matches at the start of a text. Expects a text that is not empty.
inline std::size_t gpt2_word(std::string_view text) noexcept {
  for (std::string_view contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.starts_with(contraction)) return contraction.size();

  struct character {
    character_class kind;
    std::size_t bytes;
  };
  const auto look = [&](std::size_t at) -> character {
    if (at >= text.size()) return {character_class::end, 0};
    const code_point c = read_code_point(text, at);
    return {classify(c.value), c.bytes};
  };
  const std::size_t start = text[0] == ' ' ? 1 : 0;  // " ?" before a run of one class
  if (const character first = look(start); first.kind != character_class::space && first.kind != character_class::end) {
    std::size_t end = start;
    for (character c = first; c.kind == first.kind; c = look(end)) end += c.bytes;
    return end;
  }
  std::size_t end = 0, last = 0;  // white space; all of it at the end of the text, else all but the last character
  for (character c = look(0); c.kind == character_class::space; c = look(end)) {
    last = c.bytes;
    end += c.bytes;
  }
  return end == text.size() || end == last ? end : end - last;
}

/// Calls f(word) for the words of a text, in order; together they are the text.
template <class F>
void for_each_word(pretokeniser kind, std::string_view text, F&& f) {
  const auto gpt2 = [&](std::string_view part) {
    while (!part.empty()) {
      const std::size_t bytes = gpt2_word(part);
      f(part.substr(0, bytes));
      part.remove_prefix(bytes);
    }
  };
  if (kind == pretokeniser::gpt2) return gpt2(text);
  std::size_t start = 0;
  for (std::size_t at = 0; at < text.size();) {
    const code_point c = read_code_point(text, at);
    if (classify(c.value) == character_class::number) {
      gpt2(text.substr(start, at - start));
      f(text.substr(at, c.bytes));
      start = at + c.bytes;
    }
    at += c.bytes;
  }
  gpt2(text.substr(start));
}

}  // namespace llm
