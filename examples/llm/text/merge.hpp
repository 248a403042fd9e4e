// The second half of BPE and of sentencepiece's tokeniser: join neighbours, the best pair first, until no pair may be joined.
//
// O(n log n) in the length of the word, so that a word of a million letters is no attack.
#pragma once

#include <cstddef>
#include <optional>
#include <queue>
#include <string_view>
#include <type_traits>
#include <vector>

namespace llm {

/// Joins neighbours of `symbols` (consecutive pieces of one text) in place. `rank(left, right)` is the pair's priority, the lowest
/// first and leftmost among equals, or nothing where the pair may not be joined.
template <class Rank>
void merge_symbols(std::vector<std::string_view>& symbols, Rank&& rank) {
  if (symbols.size() < 2) return;
  constexpr std::size_t none = static_cast<std::size_t>(-1);
  using priority = typename std::invoke_result_t<Rank&, std::string_view, std::string_view>::value_type;
  struct candidate {
    priority key;
    std::size_t left, right, bytes;  // bytes: of the pair when it was found; another sum later means that it is stale
    bool operator<(const candidate& other) const { return key != other.key ? key > other.key : left > other.left; }
  };
  const std::size_t n = symbols.size();
  std::vector<std::size_t> next(n), previous(n);
  for (std::size_t i = 0; i < n; ++i) next[i] = i + 1 < n ? i + 1 : none, previous[i] = i > 0 ? i - 1 : none;

  std::priority_queue<candidate> queue;
  const auto propose = [&](std::size_t left, std::size_t right) {
    if (left == none || right == none) return;
    if (const auto key = rank(symbols[left], symbols[right]))
      queue.push({*key, left, right, symbols[left].size() + symbols[right].size()});
  };
  for (std::size_t i = 0; i + 1 < n; ++i) propose(i, i + 1);
  while (!queue.empty()) {
    const candidate best = queue.top();
    queue.pop();
    std::string_view &left = symbols[best.left], &right = symbols[best.right];
    if (left.empty() || right.empty() || left.size() + right.size() != best.bytes) continue;
    left = {left.data(), best.bytes};
    right = {};
    next[best.left] = next[best.right];
    if (next[best.left] != none) previous[next[best.left]] = best.left;
    propose(previous[best.left], best.left);
    propose(best.left, next[best.left]);
  }
  std::erase_if(symbols, [](std::string_view s) { return s.empty(); });
}

}  // namespace llm
