// Text to token ids and back: byte-level BPE (GPT-2) and sentencepiece's BPE with scores and byte fallback (Llama 2).
//
// Sources: Radford et al. 2019; Kudo & Richardson 2018. Both end in the same loop, merge_symbols; they differ in what the first
// symbols are and in which pair is joined first.
#pragma once

#include "vocabulary.hpp"

#include <lowbit/core/error.hpp>

#include <array>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace llm {

class tokeniser {
 public:
  tokeniser() = default;
  tokeniser(tokeniser&&) = default;  // its maps refer to its vocabulary's strings, which stay where they are
  tokeniser& operator=(tokeniser&&) = default;

  /// Fails where the vocabulary contradicts itself.
  static lowbit::result<tokeniser> from(vocabulary v);

  /// The ids of a UTF-8 text, after bos where the vocabulary asks for it. With `special`, names of control tokens in the
  /// text ("<|im_start|>") become those tokens; without it they are text like any other.
  [[nodiscard]] std::vector<int> encode(std::string_view text, bool special = false) const;

  /// The bytes of one token. Control tokens give nothing. A text's bytes are those of its tokens; a character may be split
  /// between two. Expects 0 <= id < size().
  [[nodiscard]] std::string decode(int id) const;

  /// The bytes of tokens, without the space that encode put before the text.
  [[nodiscard]] std::string decode(const std::vector<int>& ids) const;

  [[nodiscard]] std::size_t size() const noexcept { return vocabulary_.pieces.size(); }
  [[nodiscard]] const vocabulary& data() const noexcept { return vocabulary_; }

 private:
  void encode_bytes(std::string_view text, std::vector<int>& ids) const;
  void encode_sentence(std::string_view text, std::vector<int>& ids) const;
  void append_bytes(std::string_view symbol, std::vector<int>& ids) const;

  vocabulary vocabulary_;
  std::unordered_map<std::string_view, int> ids_;
  std::unordered_map<std::string_view, int> ranks_;   // "left right" to place in merges
  std::vector<int> special_;                          // control and user-defined ids, the longest piece first
  std::array<std::string, 256> stand_ins_;            // byte to printable character (byte_level)
  std::unordered_map<char32_t, char> byte_of_;        // and back
  std::array<int, 256> byte_ids_{};                   // the tokens <0x00> … <0xFF>, or -1 (sentencepiece)
};

}  // namespace llm
