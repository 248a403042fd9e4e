// The fuzz targets' stored files, which tests of readers go through as well: those named bad_… are to be refused, the others read.
#pragma once

#include "files.hpp"

#include <doctest/doctest.h>

#include <algorithm>

namespace lowbit::test {

/// Calls f(name, content, whether it is a bad one) for every file of a reader's corpus that was written by make_corpus.py: those that
/// fuzzing found are named by their hash and may be either.
template <class F>
void for_each_in_corpus(const std::string& reader, F&& f) {
  std::size_t good = 0, bad = 0;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(LOWBIT_SOURCE_DIR "/tests/fuzz/corpus/" + reader)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const auto& path : files) {
    const std::string name = path.filename().string();
    if (name.size() == 40) continue;  // libFuzzer's names are SHA-1
    const bool is_bad = name.starts_with("bad_");
    ++(is_bad ? bad : good);
    CAPTURE(name);
    f(name, read_all(path), is_bad);
  }
  REQUIRE(good >= 1);
  REQUIRE(bad >= 5);
}

/// A failure's message is one line of a sensible length that names something.
inline void check_message(const failure& f) {
  CHECK(!f.message.empty());
  CHECK(f.message.size() < 400);
  CHECK(f.message.find('\n') == f.message.npos);
}

/// The first n bytes, in memory of exactly that size.
inline bytes first_of(const bytes& all, std::size_t n) { return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(n)}; }

}  // namespace lowbit::test
