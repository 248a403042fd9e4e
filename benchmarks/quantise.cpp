// Quantising whole rows: rows quantise/format/arch/MxK/0/1, and quantise_importance/… where importance changes the work. `of_roof` is the
// share of the read bandwidth that reading the floats takes.
#include "roofs.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <benchmark/benchmark.h>

#include <cstdio>
#include <random>
#include <string>

using namespace lowbit;

namespace {

constexpr std::size_t rows = 1024, cols = 4096;

void quantise_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, bool importance) {
  std::vector<float> weights(rows * cols), channels(cols);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  for (float& v : weights) v = normal(random);
  for (float& v : channels) {
    const float x = normal(random);
    v = x * x + 1e-6f;
  }
  packed_matrix out(s, rows, cols);
  for (auto _ : state) {
    unit.quantise_rows({&s, weights.data(), cols, cols, 0, rows, importance ? channels.data() : nullptr, out.bytes().data()});
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  const auto n = static_cast<double>(rows * cols);
  state.counters["weights/s"] = Counter(n, Counter::kIsIterationInvariantRate);
  state.counters["of_roof"] = Counter(n * sizeof(float) / bench::read_roof(), Counter::kIsIterationInvariantRate);
  char label[64];
  std::snprintf(label, sizeof label, "roof %.1f GB/s", bench::read_roof() / 1e9);
  state.SetLabel(label);
}

// Before main(), which runs the rows of all files.
const bool registered = [] {
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    const kernel::unit& unit = *u.kernels;
    for (const format_spec* s : all_formats::specs)
      for (const bool importance : {false, true}) {
        if (!kernel::can_quantise_rows(*s, importance)) continue;
        const std::string name = std::string(importance ? "quantise_importance/" : "quantise/") + std::string(s->name) + "/" + u.name + "/" +
                                 std::to_string(rows) + "x" + std::to_string(cols) + "/0/1";
        benchmark::RegisterBenchmark(name.c_str(), [=, &unit](benchmark::State& st) { quantise_row(st, unit, *s, importance); })
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
  }
  return true;
}();

}  // namespace
