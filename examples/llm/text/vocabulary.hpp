// The data of a tokeniser, in GGUF's terms; every loader fills one, and the writer of GGUF files saves one.
//
// Pieces of byte-level BPE are spelt with GPT-2's printable stand-ins for bytes, pieces of sentencepiece with U+2581 for a
// space, as files hold them.
#pragma once

#include "pretokenise.hpp"

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
};

}  // namespace llm
