// UTF-8 (RFC 3629: no overlong forms, no surrogates): one code point at a time, the check that a text is valid, and a text that comes in pieces.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace llm {

/// A code point and how many bytes it takes; an invalid byte is a code point of one byte that is `invalid`.
struct code_point {
  char32_t value;
  std::size_t bytes;
  static constexpr char32_t invalid = 0xffffffff;
};

/// The code point that starts at `at`. Expects at < text.size().
inline code_point read_code_point(std::string_view text, std::size_t at) noexcept {
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte_at(at);
  if (lead < 0x80) return {lead, 1};
  const std::size_t count = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || count > text.size() - at) return {code_point::invalid, 1};
  char32_t value = lead & (0x7fu >> count);
  for (std::size_t i = 1; i < count; ++i) {
    if ((byte_at(at + i) & 0xc0u) != 0x80u) return {code_point::invalid, 1};
    value = value << 6 | (byte_at(at + i) & 0x3fu);
  }
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < least[count] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return {code_point::invalid, 1};
  return {value, count};
}

/// Appends a code point as UTF-8.
inline void append_code_point(std::string& text, char32_t c) {
  const auto tail = [&](unsigned shift) { text.push_back(static_cast<char>(0x80 | ((c >> shift) & 0x3f))); };
  if (c < 0x80) {
    text.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    text.push_back(static_cast<char>(0xc0 | c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    text.push_back(static_cast<char>(0xe0 | c >> 12));
    tail(6), tail(0);
  } else {
    text.push_back(static_cast<char>(0xf0 | c >> 18));
    tail(12), tail(6), tail(0);
  }
}

/// Where the first byte that is not UTF-8 is, or nothing.
inline std::optional<std::size_t> find_invalid_utf8(std::string_view text) noexcept {
  for (std::size_t at = 0; at < text.size();) {
    const code_point c = read_code_point(text, at);
    if (c.value == code_point::invalid) return at;
    at += c.bytes;
  }
  return std::nullopt;
}

/// A text that comes in pieces which may end inside a character, as tokens of bytes do. What it gives is UTF-8: whole characters, and U+FFFD for
/// a byte that belongs to none.
class utf8_stream {
 public:
  /// The characters that are whole with this piece.
  std::string add(std::string_view piece) {
    pending_ += piece;
    return take(false);
  }
  /// What is left at the end.
  std::string finish() { return take(true); }

 private:
  [[nodiscard]] bool may_become_whole(std::size_t at) const noexcept {
    const auto lead = static_cast<unsigned char>(pending_[at]);
    const std::size_t count = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || pending_.size() - at >= count) return false;
    for (std::size_t i = at + 1; i < pending_.size(); ++i)
      if ((static_cast<unsigned char>(pending_[i]) & 0xc0u) != 0x80u) return false;
    return true;
  }

  std::string take(bool all) {
    std::string out;
    std::size_t at = 0;
    while (at < pending_.size()) {
      const code_point c = read_code_point(pending_, at);
      if (c.value == code_point::invalid && !all && may_become_whole(at)) break;
      append_code_point(out, c.value == code_point::invalid ? U'\ufffd' : c.value);
      at += c.bytes;
    }
    pending_.erase(0, at);
    return out;
  }

  std::string pending_;
};

}  // namespace llm
