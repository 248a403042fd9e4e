// Quantising whole rows: rows quantise/format/arch/MxK/0/1, and quantise_importance/… where importance changes the work, run the row
// kernels of each unit; quantise_matrix/… is round to nearest as a user calls it, on the best unit, with the memory that it takes and the
// search for weights that are not finite. `of_roof` is the share of the read bandwidth that reading the floats takes.
#include "judge.hpp"
#include "roofs.hpp"
#include "workload.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/kernel/dispatch.hpp>

#include <benchmark/benchmark.h>

#include <string>

using namespace lowbit;

namespace {

constexpr std::size_t rows = 1024, cols = 4096;

void count(benchmark::State& state) {
  const auto n = static_cast<double>(rows * cols);
  state.counters["weights/s"] = benchmark::Counter(n, benchmark::Counter::kIsIterationInvariantRate);
  bench::judge(state, n * sizeof(float), bench::read_roof(), "B");
}

bool as_ggml(const format_spec& s, bool importance) { return s.gguf >= 0 && !s.is_float() && kernel::can_quantise_as_ggml(s, importance); }
bool by_rows(const format_spec& s, bool importance) { return as_ggml(s, importance) || (!importance && (s.gguf < 0 || s.is_float()) && kernel::can_quantise_by_range(s)); }

void quantise_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, bool importance) {
  const std::vector<float> weights = bench::normal_floats(rows * cols, 0.05f, 1);
  std::vector<float> channels(weights.begin(), weights.begin() + cols);
  for (float& v : channels) v = v * v + 1e-6f;
  packed_matrix out(s, rows, cols);
  for (auto _ : state) {
    unit.quantise_rows({&s, weights.data(), cols, cols, 0, rows, importance ? channels.data() : nullptr, out.bytes().data(), as_ggml(s, importance)});
    benchmark::ClobberMemory();
  }
  count(state);
}

void quantise_matrix(benchmark::State& state, format_id format) {
  const std::vector<float> weights = bench::normal_floats(rows * cols, 0.05f, 1);
  serial_executor serial;
  for (auto _ : state) benchmark::DoNotOptimize(quantise(format, method::rtn, {weights.data(), rows, cols}, serial));
  count(state);
}

std::string row_name(const char* operation, const format_spec& s, const char* unit) {
  return std::string(operation) + "/" + std::string(s.name) + "/" + unit + "/" + std::to_string(rows) + "x" + std::to_string(cols) + "/0/1";
}

// Before main(), which runs the rows of all files.
const bool registered = [] {
  const auto add = [](const std::string& name, auto&& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMillisecond);
  };
  const char* best = "";
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    best = u.name;
    const kernel::unit& unit = *u.kernels;
    for (const format_spec* s : all_formats::specs)
      for (const bool importance : {false, true}) {
        if (!by_rows(*s, importance)) continue;
        add(row_name(importance ? "quantise_importance" : "quantise", *s, u.name), [=, &unit](benchmark::State& st) { quantise_row(st, unit, *s, importance); });
      }
  }
  for (const format_spec* s : all_formats::specs)
    if (s->is_writable())
      add(row_name("quantise_matrix", *s, best), [id = *find_format(s->name)](benchmark::State& st) { quantise_matrix(st, id); });
  return true;
}();

}  // namespace
