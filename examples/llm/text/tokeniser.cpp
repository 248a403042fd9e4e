#include "tokeniser.hpp"

#include "merge.hpp"

#include <algorithm>
#include <charconv>

namespace llm {
namespace {

constexpr std::string_view lower_block = "\xe2\x96\x81";  // U+2581 stands for a space in sentencepiece's pieces

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

// The byte that "<0x0A>" names.
std::optional<unsigned> byte_named(std::string_view piece) {
  unsigned byte = 0;
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
  return error == std::errc{} && end == piece.data() + 5 ? std::optional{byte} : std::nullopt;
}

}  // namespace

lowbit::result<tokeniser> tokeniser::from(vocabulary v) {
  const auto malformed = [](std::string what) { return lowbit::failure{lowbit::errc::malformed, std::move(what)}; };
  if (lowbit::status whole = complete(v); !whole) return std::move(whole).error();
  const auto count = static_cast<int>(v.pieces.size());

  tokeniser t;
  t.ids_.reserve(v.pieces.size());
  t.ranks_.reserve(v.merges.size());
  for (int id = 0; id < count; ++id) {
    const auto i = static_cast<std::size_t>(id);
    t.ids_.try_emplace(v.pieces[i], id);
    if (v.kinds[i] == piece_kind::byte && !byte_named(v.pieces[i]))
      return malformed("token " + std::to_string(id) + " is said to be a byte but is not named <0x..>");
    const bool matched_whole = v.kinds[i] == piece_kind::control || v.kinds[i] == piece_kind::user_defined;
    if (matched_whole && !v.pieces[i].empty()) t.special_.push_back(id);
  }
  std::stable_sort(t.special_.begin(), t.special_.end(), [&](int a, int b) {
    return v.pieces[static_cast<std::size_t>(a)].size() > v.pieces[static_cast<std::size_t>(b)].size();
  });
  if (v.kind == vocabulary_kind::byte_level) {
    for (std::size_t i = 0; i < v.merges.size(); ++i) t.ranks_.try_emplace(v.merges[i], static_cast<int>(i));
    char32_t hidden = 256;  // bytes that do not print are renamed to the characters from 256, in order
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const char32_t c = visible ? byte : hidden++;
      append_code_point(t.stand_ins_[byte], c);
      t.byte_of_.emplace(c, static_cast<char>(byte));
    }
  } else {
    t.byte_ids_.fill(-1);
    for (int id = 0; id < count; ++id)
      if (const auto byte = byte_named(v.pieces[static_cast<std::size_t>(id)])) t.byte_ids_[*byte] = id;
  }
  t.vocabulary_ = std::move(v);
  return t;
}

std::vector<int> tokeniser::encode(std::string_view text, bool special) const {
  std::vector<int> ids;
  if (vocabulary_.add_bos) ids.push_back(vocabulary_.bos);
  bool after_special = true;
  const auto encode_plain = [&](std::string_view part) {
    if (part.empty()) return;
    if (vocabulary_.kind == vocabulary_kind::byte_level) return encode_bytes(part, ids);
    std::string spaced{part};
    if (vocabulary_.add_space_prefix && after_special) spaced.insert(0, 1, ' ');
    replace_all(spaced, " ", lower_block);
    encode_sentence(spaced, ids);
  };

  // Where each special token comes next; a found place stays valid until the text has been read past it.
  std::vector<std::size_t> next(special_.size(), 0);
  for (std::size_t start = 0; start < text.size();) {
    std::size_t best_at = text.npos, best = 0;
    for (std::size_t s = 0; s < special_.size(); ++s) {
      const auto id = static_cast<std::size_t>(special_[s]);
      if (vocabulary_.kinds[id] == piece_kind::control && !special) continue;
      if (next[s] != text.npos && (start == 0 || next[s] < start)) next[s] = text.find(vocabulary_.pieces[id], start);
      if (next[s] < best_at) best_at = next[s], best = id;
    }
    encode_plain(text.substr(start, best_at - start));
    if (best_at == text.npos) break;
    ids.push_back(static_cast<int>(best));
    after_special = true;
    start = best_at + vocabulary_.pieces[best].size();
  }
  return ids;
}

void tokeniser::encode_bytes(std::string_view text, std::vector<int>& ids) const {
  std::string printable, pair;
  std::vector<std::string_view> symbols;
  for_each_word(vocabulary_.words, text, [&](std::string_view word) {
    printable.clear();
    for (char c : word) printable += stand_ins_[static_cast<unsigned char>(c)];
    symbols.clear();
    for (std::size_t at = 0; at < printable.size();) {
      const std::size_t bytes = read_code_point(printable, at).bytes;
      symbols.push_back(std::string_view{printable}.substr(at, bytes));
      at += bytes;
    }
    merge_symbols(symbols, [&](std::string_view left, std::string_view right) -> std::optional<int> {
      pair.assign(left).append(1, ' ').append(right);
      const auto found = ranks_.find(pair);
      return found == ranks_.end() ? std::nullopt : std::optional{found->second};
    });
    for (std::string_view symbol : symbols) append_bytes(symbol, ids);
  });
}

void tokeniser::encode_sentence(std::string_view text, std::vector<int>& ids) const {
  std::vector<std::string_view> symbols;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t bytes = read_code_point(text, at).bytes;
    symbols.push_back(text.substr(at, bytes));
    at += bytes;
  }
  std::string joined;
  merge_symbols(symbols, [&](std::string_view left, std::string_view right) -> std::optional<float> {
    joined.assign(left).append(right);
    const auto found = ids_.find(joined);
    return found == ids_.end() ? std::nullopt : std::optional{-vocabulary_.scores[static_cast<std::size_t>(found->second)]};
  });
  for (std::string_view symbol : symbols) append_bytes(symbol, ids);
}

// A symbol's token; where there is none, those of its parts: characters (byte_level) or bytes (sentencepiece).
void tokeniser::append_bytes(std::string_view symbol, std::vector<int>& ids) const {
  if (const auto found = ids_.find(symbol); found != ids_.end()) return ids.push_back(found->second);
  const bool byte_level = vocabulary_.kind == vocabulary_kind::byte_level;
  for (std::size_t at = 0; at < symbol.size();) {
    const std::size_t bytes = byte_level ? read_code_point(symbol, at).bytes : 1;
    int id = vocabulary_.unknown;
    if (!byte_level && byte_ids_[static_cast<unsigned char>(symbol[at])] >= 0) {
      id = byte_ids_[static_cast<unsigned char>(symbol[at])];
    } else if (const auto part = ids_.find(symbol.substr(at, bytes)); byte_level && part != ids_.end()) {
      id = part->second;
    }
    if (id >= 0) ids.push_back(id);
    at += bytes;
  }
}

std::string tokeniser::decode(int id) const {
  const auto i = static_cast<std::size_t>(id);
  LOWBIT_EXPECTS(id >= 0 && i < size());
  const std::string& piece = vocabulary_.pieces[i];
  switch (vocabulary_.kinds[i]) {
    case piece_kind::control:
    case piece_kind::unused: return {};
    case piece_kind::user_defined: return piece;
    case piece_kind::byte: return std::string(1, static_cast<char>(*byte_named(piece)));
    case piece_kind::normal:
    case piece_kind::unknown: break;
  }
  std::string bytes;
  if (vocabulary_.kind == vocabulary_kind::sentencepiece) {
    bytes = piece;
    replace_all(bytes, lower_block, " ");
    return bytes;
  }
  for (std::size_t at = 0; at < piece.size();) {
    const code_point c = read_code_point(piece, at);
    const auto found = byte_of_.find(c.value);
    if (found != byte_of_.end()) bytes.push_back(found->second);
    else bytes.append(piece, at, c.bytes);  // not spelt in stand-ins
    at += c.bytes;
  }
  return bytes;
}

std::string tokeniser::decode(const std::vector<int>& ids) const {
  std::string bytes;
  for (int id : ids) bytes += decode(id);
  if (vocabulary_.add_space_prefix && bytes.starts_with(' ')) bytes.erase(0, 1);
  return bytes;
}

}  // namespace llm
