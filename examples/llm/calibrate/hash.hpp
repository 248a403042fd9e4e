// A 64-bit hash of bytes, the same everywhere: which inputs and options some unfinished work belongs to. Not against forgery.
//
// Eight bytes a step, each mixed as SplitMix64's output function mixes (Steele et al. 2014).
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace llm {

class hasher {
 public:
  void add(std::span<const std::uint8_t> bytes) noexcept {
    std::size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + at, 8);
      mix(word);
    }
    std::uint64_t rest = 0;
    if (at != bytes.size()) std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    mix(rest);
    mix(bytes.size());
  }
  void add(std::string_view text) noexcept { add({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}); }
  void add(std::uint64_t number) noexcept { mix(number); }
  [[nodiscard]] std::uint64_t value() const noexcept { return state_; }

 private:
  void mix(std::uint64_t word) noexcept {
    std::uint64_t z = (state_ ^ word) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    state_ = z ^ (z >> 31);
  }
  std::uint64_t state_ = 0;
};

}  // namespace llm
