// The data of a tokeniser, in GGUF's terms; every loader fills one, and the writer of GGUF files saves one.
//
// Pieces of byte-level BPE are spelt with GPT-2's printable stand-ins for bytes, pieces of sentencepiece with U+2581 for a
// space, as files hold them.
#pragma once

#include "pretokenise.hpp"

#include <lowbit/core/error.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace llm {

/// Which algorithm a vocabulary is for.
enum class vocabulary_kind : unsigned char { byte_level, sentencepiece };

/// What a piece is; the numbers are GGUF's.
enum class piece_kind : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct vocabulary {
  vocabulary_kind kind = vocabulary_kind::byte_level;
  pretokeniser words = pretokeniser::gpt2;  ///< byte_level only
  std::vector<std::string> pieces;          ///< by token id
  std::vector<piece_kind> kinds;            ///< by token id
  std::vector<float> scores;                ///< by token id; sentencepiece only
  std::vector<std::string> merges;          ///< "left right", the first joined first; byte_level only
  int bos = -1, eos = -1, unknown = -1;     ///< token ids; -1: none
  bool add_bos = false;                     ///< a text begins with bos
  bool add_space_prefix = false;            ///< a text is read as if a space stood before it; sentencepiece only
  std::string chat_template;                ///< Jinja, how messages become a text; only carried from file to file
};

/// Makes a vocabulary whole that a file gave: pieces are normal where it does not say. Fails where its lists are of different lengths or its
/// special tokens are not among them. One without pieces (a model without a tokenizer) is whole.
inline lowbit::status complete(vocabulary& v) {
  const auto malformed = [](const char* what) { return lowbit::failure{lowbit::errc::malformed, what}; };
  if (v.kinds.empty()) v.kinds.assign(v.pieces.size(), piece_kind::normal);
  if (v.kinds.size() != v.pieces.size()) return malformed("the tokenizer has another number of token types than of tokens");
  if (v.kind == vocabulary_kind::sentencepiece && v.scores.size() != v.pieces.size())
    return malformed("the tokenizer has another number of scores than of tokens");
  for (const int id : {v.bos, v.eos, v.unknown})
    if (id < -1 || id >= static_cast<int>(v.pieces.size())) return malformed("a special token of the tokenizer is not in its vocabulary");
  if (v.add_bos && v.bos < 0) return malformed("the tokenizer is to add a bos token but names none");
  return lowbit::done{};
}

}  // namespace llm
