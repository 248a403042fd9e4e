// Plugging an engine's own tensor type and thread pool into lowbit.
#include <lowbit/lowbit.hpp>

#include <cstdio>
#include <thread>
#include <vector>

namespace engine {

/// What an engine may have: rows with padding between them.
struct tensor {
  std::vector<float> storage;
  std::size_t rows, cols, row_pitch;
  tensor(std::size_t r, std::size_t c) : storage(r * (c + 8), 0.5f), rows(r), cols(c), row_pitch(c + 8) {}
};

/// Its threads.
struct threads {
  static std::size_t concurrency() { return 2; }
  template <class F>
  static void run(std::size_t tasks, F&& f) {
    std::vector<std::jthread> all;
    for (std::size_t i = 0; i < tasks; ++i) all.emplace_back([&f, i] { f(i); });
  }
};

}  // namespace engine

template <>
struct lowbit::view_traits<engine::tensor> {
  static auto view(engine::tensor& t) { return matrix_view<float>(t.storage.data(), t.rows, t.cols, t.row_pitch); }
  static auto view(const engine::tensor& t) { return matrix_view<const float>(t.storage.data(), t.rows, t.cols, t.row_pitch); }
};

int main() {
  const engine::tensor weights(64, 96), x(5, 96);
  engine::tensor y(5, 64);
  engine::threads pool;
  const auto q = lowbit::rtn<lowbit::q8_0>::quantise(weights, lowbit::uncalibrated(), pool);
  if (!q) return 1;
  const auto panels = lowbit::panel_matrix::from(q->weights.view(), pool);
  lowbit::workspace space;
  lowbit::multiply(lowbit::view(x), panels, lowbit::view(y), space, pool);
  std::printf("%g, exactly %g\n", static_cast<double>(lowbit::view(y)(4, 63)), 0.5 * 0.5 * 96);
}
