// A cursor over bytes from outside: every read is checked against what is left, nothing is allocated for what is not there.
#pragma once

#include <lowbit/core/error.hpp>

#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace lowbit {

/// Reads little-endian values one after the other. The first read past the end makes every later one fail too: read a group of fields,
/// then ask `ok()` once.
class byte_reader {
 public:
  explicit byte_reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  [[nodiscard]] std::size_t position() const noexcept { return at_; }
  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size() - at_; }
  [[nodiscard]] bool ok() const noexcept { return ok_; }

  /// The next n bytes; empty past the end.
  std::span<const std::uint8_t> take(std::size_t n) noexcept {
    if (!ok_ || n > left()) {
      ok_ = false;
      return {};
    }
    const auto part = bytes_.subspan(at_, n);
    at_ += n;
    return part;
  }
  /// The next number; 0 past the end.
  template <class T>
    requires std::is_arithmetic_v<T>
  T read() noexcept {
    T value{};
    if (const auto part = take(sizeof(T)); ok_) std::memcpy(&value, part.data(), sizeof(T));
    return value;
  }
  /// A 64-bit length and that many bytes; empty past the end.
  std::string_view read_string() noexcept {
    const auto length = read<std::uint64_t>();
    if (length > left()) ok_ = false;
    const auto part = take(static_cast<std::size_t>(length));
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace lowbit
