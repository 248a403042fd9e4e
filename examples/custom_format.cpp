// A format of one's own: 3-bit codes in groups of 40, and one with a table of its own. Everything else follows from the constants.
#include <lowbit/lowbit.hpp>

#include <cstdio>

struct q3_g40 {
  static constexpr lowbit::format_spec spec = lowbit::uniform({.bits = 3, .group = 40, .name = "q3_g40"});
};

/// Eight levels, denser in the middle, in blocks of 16 with a bfloat16 scale: 4 bits a weight. A forgotten or doubly claimed bit would be a
/// compile error.
struct bell3 {
  static constexpr lowbit::format_spec spec{
      .name = "bell3", .block = 16, .bytes = 8,
      .codes = {{lowbit::plane{3, 0, lowbit::byte(2), {{16}, {3}}}}},
      .scale = {lowbit::number::bf16, 0},
      .values = lowbit::make_codebook(8, {-127, -72, -42, -14, 14, 42, 72, 127})};
};

template <lowbit::block_format F>
void show() {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix weights = matrix::Random(64, 1000), x = matrix::Random(3, 1000);  // 1000 is no multiple of 16 or 40: no matter
  const auto q = lowbit::rtn<F, lowbit::mse_search<20>>::quantise(weights);
  if (!q) return;
  // A code shape that the registry does not have gets kernels of its own here, for this file's architecture.
  constexpr auto kernels = lowbit::kernel::unit_for<lowbit::simd::native, F>();
  lowbit::serial_executor serial;
  lowbit::workspace space;
  matrix y(3, 64);
  lowbit::multiply(lowbit::view(x), lowbit::panel_matrix::from(q->weights.view(), serial, kernels), lowbit::view(y), space);
  const matrix exact = x * weights.transpose();
  std::printf("%-8s %.3f bits a weight, relative error of the product %.4f\n", F::spec.name.data(), F::spec.bits_per_weight(),
              static_cast<double>((y - exact).norm() / exact.norm()));
}

int main() {
  show<q3_g40>();
  show<bell3>();
}
