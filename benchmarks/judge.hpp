// How a benchmark's row is judged: the share of a roof that its work takes.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>

namespace lowbit::bench {

/// Sets `of_roof` by the work of an iteration (bytes, or operations), unless the roof is not known (0), and says which roof: "roof 11.2 GB/s".
inline void judge(benchmark::State& state, double work, double roof, const char* of) {
  if (roof > 0) state.counters["of_roof"] = benchmark::Counter(work / roof, benchmark::Counter::kIsIterationInvariantRate);
  char label[64];
  std::snprintf(label, sizeof label, "roof %.1f G%s/s", roof / 1e9, of);
  state.SetLabel(label);
}

}  // namespace lowbit::bench
