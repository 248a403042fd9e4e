// What a model computes, for the tests that read it from one file and from another.
#pragma once

#include "engine/llama.hpp"
#include "files/build.hpp"
#include "files/load.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

/// The logits of a few tokens, computed exactly.
inline std::vector<float> logits_of(const llm::checkpoint& file, const llm::weight_source& source, llm::thread_pool& threads) {
  const auto model = build_llama(file, source, threads);
  REQUIRE_MESSAGE(model.ok(), (model.ok() ? "" : model.error().message));
  llm::session s{*model, 8, threads, lowbit::precision::exact};
  const std::vector<int> ids{1, 17, 260, 5, 99, 3};
  const llm::matrix& logits = s.feed(ids, ids.size());
  return {logits.row(0), logits.row(0) + logits.rows() * logits.cols()};
}

/// The largest difference, as a share of the largest value.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, static_cast<double>(std::abs(a[i] - b[i])));
    largest = std::max(largest, static_cast<double>(std::abs(a[i])));
  }
  return difference / largest;
}

inline llm::checkpoint opened(const std::string& path) {
  auto c = llm::open_checkpoint(path);
  REQUIRE_MESSAGE(c.ok(), (c.ok() ? "" : c.error().message));
  return *std::move(c);
}
