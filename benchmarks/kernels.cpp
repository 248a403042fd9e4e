// Every kernel for every format on every instruction set of this machine: rows operation/format/arch/MxK/tokens/threads.
//
// Each row counts weights/s, bytes/s and, as `of_roof`, its share of a limit measured in the same process: the bandwidth of memory for
// rows of one token and for conversions, the peak of integer dots or of float multiply-adds for rows of many. One-token rows rotate
// through more memory than caches hold. Filter rows with --benchmark_filter: by default there are several hundred.
#include "judge.hpp"
#include "pinned_executor.hpp"
#include "roofs.hpp"
#include "workload.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/product.hpp>

#include <benchmark/benchmark.h>

#include <string>

using namespace lowbit;
using bench::shape;

namespace {

constexpr shape shapes[] = {{4096, 4096}, {4096, 14336}};

void count(benchmark::State& state, double weights, double bytes, double work, double roof, const char* roof_name) {
  using benchmark::Counter;
  const auto per_second = [&](double n) { return Counter(n, Counter::kIsIterationInvariantRate); };
  state.counters["weights/s"] = per_second(weights);
  state.counters["bytes/s"] = per_second(bytes);
  bench::judge(state, work, roof, roof_name);
}

void multiply_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, shape n, std::size_t tokens, std::size_t threads,
                  precision how) {
  // Two processors whose memory is busy with others' work say nothing of two processors. (Asked before this row's own threads wait on them.)
  if (tokens == 1 && threads > 1 && bench::read_bandwidth(threads) < 0.85 * bench::read_roof(threads))
    return state.SkipWithError("others are using the memory's bandwidth");
  const double read_roof = bench::read_roof(threads);
  bench::pinned_executor executor(threads);
  const std::vector<panel_matrix> copies = bench::panels_of(bench::random_weights(s, n), tokens, unit);
  const std::vector<float> x = bench::normal_floats(tokens * n.cols, 1.0f, 2);
  aligned_buffer y(tokens * n.rows * sizeof(float));
  workspace space;
  std::size_t i = 0;
  for (auto _ : state) {
    multiply({x.data(), tokens, n.cols}, copies[i++ % copies.size()], {reinterpret_cast<float*>(y.data()), tokens, n.rows}, space, executor, how);
    benchmark::ClobberMemory();
  }
  const auto weights = static_cast<double>(n.rows * n.cols), bytes = static_cast<double>(copies[0].size_bytes());
  const double operations = 2 * weights * static_cast<double>(tokens), all = static_cast<double>(threads);
  using enum kernel::activation_kind;
  const kernel::activation_kind kind = activations_for(copies[0], how);
  if (tokens == 1) count(state, weights, bytes, bytes, read_roof, "B");
  else count(state, weights, bytes, operations, all * (kind == floats ? bench::float_roof(unit.name) : kind == bf16 ? bench::bf16_roof(unit.name) : bench::int8_roof(unit.name)), "op");
}

void dequantise_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, shape n) {
  serial_executor serial;
  const packed_matrix w = bench::random_weights(s, n);
  aligned_buffer out(n.rows * n.cols * sizeof(float));
  for (auto _ : state) {
    dequantise(w.view(), {reinterpret_cast<float*>(out.data()), n.rows, n.cols}, serial, unit);
    benchmark::ClobberMemory();
  }
  const auto weights = static_cast<double>(n.rows * n.cols);
  count(state, weights, static_cast<double>(w.bytes().size()), 4 * weights, bench::write_roof(), "B");
}

template <bool Pack>
void codes_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, shape n) {
  packed_matrix w = bench::random_weights(s, n);
  const std::size_t blocks = ceil_div(n.cols, s.block), codes_of_row = blocks * s.block;
  std::vector<std::uint8_t> codes(n.rows * codes_of_row);
  for (auto _ : state)
    for (std::size_t r = 0; r < n.rows; ++r) {
      std::uint8_t* const row = &codes[r * codes_of_row];
      Pack ? unit.pack_codes(s, row, blocks, 0, s.block, w.row(r)) : unit.unpack_codes(s, w.row(r), blocks, 0, s.block, row);
    }
  const auto weights = static_cast<double>(n.rows * n.cols);
  count(state, weights, static_cast<double>(w.bytes().size()), weights, Pack ? bench::read_roof() : bench::write_roof(), "B");
}

void build_row(benchmark::State& state, const kernel::unit& unit, const format_spec& s, shape n) {
  const packed_matrix w = bench::random_weights(s, n);
  // Into memory that is there: what the system takes for new pages is its own affair.
  const kernel::panel_layout layout = kernel::layout_of(s);
  const std::size_t panels = kernel::panel_count(n.rows);
  aligned_buffer out(panels * layout.panel_bytes(n.cols)), scratch(kernel::build_scratch_bytes(s, layout));
  for (auto _ : state) {
    unit.build_panels({&s, &layout, w.bytes().data(), w.view().row_bytes(), n.rows, n.cols, 0, panels, out.data(), scratch.data()});
    benchmark::ClobberMemory();
  }
  const auto bytes = static_cast<double>(w.bytes().size());
  count(state, static_cast<double>(n.rows * n.cols), bytes, bytes, bench::read_roof(), "B");
}

void add_rows() {
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    const kernel::unit& unit = *u.kernels;
    for (const format_spec* s : all_formats::specs)
      for (const shape n : shapes) {
        const auto add = [&](const std::string& operation, std::size_t tokens, auto run, std::size_t threads = 1) {
          const std::string name = operation + "/" + std::string(s->name) + "/" + u.name + "/" + std::to_string(n.rows) + "x" +
                                   std::to_string(n.cols) + "/" + std::to_string(tokens) + "/" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMillisecond);
        };
        for (const std::size_t threads : {1, 2})
          for (const std::size_t tokens : {1, 4, 16, 64, 512}) {
            if (threads > bench::processors().size()) continue;
            const auto row = [=, &unit](precision how) {
              return [=, &unit](benchmark::State& st) { multiply_row(st, unit, *s, n, tokens, threads, how); };
            };
            const kernel::code_shape code = kernel::layout_of(*s).shape;
            if (code.has_int8()) add("matmul", tokens, row(precision::int8), threads);
            if (code.has_int16()) add("matmul_int16", tokens, row(precision::int16), threads);
            if (unit.find(code)->has(kernel::activation_kind::bf16)) add("matmul_bf16", tokens, row(precision::bf16), threads);
            add("matmul_exact", tokens, row(precision::exact), threads);
          }
        add("dequantise", 0, [=, &unit](benchmark::State& st) { dequantise_row(st, unit, *s, n); });
        add("build", 0, [=, &unit](benchmark::State& st) { build_row(st, unit, *s, n); });
        if (s->is_float()) continue;
        add("unpack", 0, [=, &unit](benchmark::State& st) { codes_row<false>(st, unit, *s, n); });
        add("pack", 0, [=, &unit](benchmark::State& st) { codes_row<true>(st, unit, *s, n); });
      }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_rows();
  // For who draws the run (roofline.py).
  benchmark::AddCustomContext("read_roof", std::to_string(bench::read_roof()));
  for (const auto& u : kernel::linked_units())
    if (u.available) benchmark::AddCustomContext(std::string("int8_roof_") + u.name, std::to_string(bench::int8_roof(u.kernels->name)));
  benchmark::RunSpecifiedBenchmarks();
}
