// What an adapter beside 4-bit weights costs: rows adapter/format/arch/MxK/rank/tokens.
//
// Every iteration runs the product with and without the adapter, in turns, on weights that are not in the cache; `cost` is the difference of
// the medians as a share of the plain product's.
#include "workload.hpp"

#include <lowbit/adapt/adapted_product.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>

using namespace lowbit;
using bench::normal_floats, bench::shape;

namespace {

double median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

template <block_format F>
void adapter_row(benchmark::State& state, const kernel::unit& unit, shape n, std::size_t rank, std::size_t tokens) {
  serial_executor serial;
  const std::vector<float> weights = normal_floats(n.rows * n.cols, 0.05f, 1), x = normal_floats(tokens * n.cols, 1.0f, 2);
  const auto w = rtn<F>::quantise(matrix_view<const float>(weights.data(), n.rows, n.cols));
  const low_rank_factors f{n.rows, n.cols, rank, normal_floats(rank * n.cols, 0.05f, 3), normal_floats(n.rows * rank, 0.05f, 4), 2.0f};
  std::vector<panel_matrix> matrices;
  std::vector<low_rank> adapters;
  for (std::size_t bytes = 0; bytes < bench::streamed_bytes; bytes += matrices.back().size_bytes()) {
    matrices.push_back(panel_matrix::from(w->weights.view(), serial, unit));
    adapters.push_back(low_rank::from(f, serial, unit));
  }
  std::vector<float> y(tokens * n.rows);
  adapter_workspace space;
  std::vector<double> plain, adapted;
  std::size_t i = 0;
  for (auto _ : state)
    for (const bool with : {false, true}) {
      const low_rank* const one = &adapters[i % adapters.size()];
      const adapted_product p{{{x.data(), tokens, n.cols}, &matrices[i % matrices.size()], {y.data(), tokens, n.rows}}, std::span(&one, with ? 1 : 0)};
      ++i;
      const auto began = std::chrono::steady_clock::now();
      multiply(std::span(&p, 1), {}, space, serial);
      (with ? adapted : plain).push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
      benchmark::ClobberMemory();
    }
  const double without = median(plain), with = median(adapted);
  state.counters["plain_us"] = without * 1e6;
  state.counters["adapted_us"] = with * 1e6;
  state.counters["cost"] = with / without - 1;
}

template <block_format F>
void add_rows(const kernel::unit& unit, const char* arch) {
  for (const shape n : {shape{576, 1536}, shape{2048, 2048}, shape{4096, 4096}})
    for (const std::size_t rank : {8, 16, 64})
      for (const std::size_t tokens : {1, 64}) {
        const std::string name = "adapter/" + std::string(spec_of<F>.name) + "/" + arch + "/" + std::to_string(n.rows) + "x" + std::to_string(n.cols) + "/r" +
                                 std::to_string(rank) + "/" + std::to_string(tokens);
        benchmark::RegisterBenchmark(name.c_str(), [=, &unit](benchmark::State& st) { adapter_row<F>(st, unit, n, rank, tokens); })
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
}

// Before main(), which runs the rows of all files.
const bool registered = [] {
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    add_rows<q4_0>(*u.kernels, u.name);
    add_rows<q4_k>(*u.kernels, u.name);
  }
  return true;
}();

}  // namespace
