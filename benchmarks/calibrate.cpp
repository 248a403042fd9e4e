// What calibrated quantisers take, on one thread: the Hessian's update against the peak of multiply-adds, error feedback against the time that its
// own operations would take at the speed of Eigen's product. A program of its own, for Eigen at its best needs the machine's own flags.
#include "judge.hpp"
#include "roofs.hpp"
#include "workload.hpp"

#include <benchmark/benchmark.h>

#include <Eigen/Dense>

#include <algorithm>
#include <chrono>
#include <cmath>

namespace {

using namespace lowbit;

double seconds(auto&& work) {
  const auto began = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

/// Operations a second of Eigen's product of 2048 x 2048 floats: the best of three, now.
double eigen_speed() {
  constexpr Eigen::Index n = 2048;
  static const Eigen::MatrixXf a = Eigen::MatrixXf::Random(n, n), b = Eigen::MatrixXf::Random(n, n);
  static Eigen::MatrixXf c(n, n);
  double least = INFINITY;
  for (int i = 0; i < 3; ++i)
    least = std::min(least, seconds([] {
      c.noalias() = a * b;
      benchmark::DoNotOptimize(c.data());
    }));
  return 2.0 * n * n * n / least;
}

/// Inputs as layers see them: each channel resembles its neighbour, and is of its own size.
std::vector<float> correlated(std::size_t tokens, std::size_t channels) {
  std::vector<float> x = bench::normal_floats(tokens * channels, 1.0f, 2);
  const std::vector<float> size = bench::normal_floats(channels, 0.7f, 3);
  for (std::size_t t = 0; t < tokens; ++t) {
    float carried = 0;
    for (std::size_t c = 0; c < channels; ++c) {
      float& v = x[t * channels + c];
      carried = 0.9f * carried + v;
      v = std::exp(size[c]) * carried;
    }
  }
  return x;
}

void update_hessian(benchmark::State& state, std::size_t channels) {
  constexpr std::size_t tokens = 512;
  const std::vector<float> x = correlated(tokens, channels);
  serial_executor serial;
  calibrated<hessian> h(channels);
  for (auto _ : state) h.add({x.data(), tokens, channels}, serial);
  // The half of a symmetric matrix, a multiplication and an addition each.
  bench::judge(state, static_cast<double>(tokens) * static_cast<double>(channels) * static_cast<double>(channels + 1), bench::float_roof(kernel::best_unit().name), "op");
}

void feed_back(benchmark::State& state, format_id format, bench::shape n, bool guard) {
  const std::vector<float> w = bench::normal_floats(n.rows * n.cols, 0.02f, 1);
  serial_executor serial;
  layer_statistics about(n.cols);
  for (std::size_t t = 0; t < 2 * n.cols; t += 512) about.add({correlated(512, n.cols).data(), 512, n.cols}, serial);
  const feedback_options options{.guard = guard};
  double speed = eigen_speed();
  for (auto _ : state) {
    benchmark::DoNotOptimize(quantise(format, method::gptq, {w.data(), n.rows, n.cols}, about, serial, options));
    state.PauseTiming();
    speed = std::max(speed, eigen_speed());  // whichever of the machine's moods the rows met
    state.ResumeTiming();
  }
  const auto cols = static_cast<double>(n.cols);
  bench::judge(state, static_cast<double>(n.rows) * cols * cols + cols * cols * cols / 3, speed, "op");
}

// Before main().
const bool registered = [] {
  const std::string unit = kernel::best_unit().name;
  const auto add = [](const std::string& name, auto&& run) { return benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMillisecond); };
  for (const std::size_t n : {576, 1536, 4096})
    add("hessian/f32/" + unit + '/' + std::to_string(n) + 'x' + std::to_string(n) + "/512/1", [n](benchmark::State& s) { update_hessian(s, n); });
  for (const bool guard : {true, false})
    for (const char* format : {"s4_g128", "u4_g128", "q4_0", "q4_k"})
      for (const bench::shape n : {bench::shape{1536, 576}, bench::shape{576, 1536}, bench::shape{4096, 4096}})
        add(std::string(guard ? "gptq/" : "gptq_unguarded/") + format + '/' + unit + '/' + std::to_string(n.rows) + 'x' + std::to_string(n.cols) + "/0/1",
            [=, id = *find_format(format)](benchmark::State& s) { feed_back(s, id, n, guard); });
  return true;
}();

}  // namespace
