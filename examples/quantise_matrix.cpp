// Quantise a matrix, multiply with it, and see what that cost.
#include <lowbit/lowbit.hpp>

#include <cstdio>

int main() {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix weights = matrix::Random(512, 1024), x = matrix::Random(4, 1024);

  const auto q = lowbit::rtn<lowbit::q4_k>::quantise(weights);
  if (!q) return std::fprintf(stderr, "%s\n", q.error().message.c_str()), 1;

  lowbit::serial_executor serial;
  lowbit::workspace space;
  const auto panels = lowbit::panel_matrix::from(q->weights.view(), serial);
  matrix y(4, 512);
  lowbit::multiply(lowbit::view(x), panels, lowbit::view(y), space);

  const matrix exact = x * weights.transpose();
  std::printf("%zu bytes instead of %zu; relative error of the product %.4f, on %s\n", q->weights.bytes().size(),
              sizeof(float) * static_cast<std::size_t>(weights.size()), static_cast<double>((y - exact).norm() / exact.norm()),
              panels.unit().name);
}
