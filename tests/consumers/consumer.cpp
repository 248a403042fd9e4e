// Quantises a small matrix and multiplies with it: the least that shows that headers, dependencies and (if asked for) units are there.
#include <lowbit/glue/eigen.hpp>
#include <lowbit/matrix/product.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <cmath>

int main() {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix weights = matrix::Random(24, 96), x = matrix::Random(3, 96), expected = x * weights.transpose();
  const auto q = lowbit::rtn<lowbit::q8_0>::quantise(weights);
  if (!q) return 1;
  lowbit::serial_executor serial;
  lowbit::workspace space;
  matrix y(3, 24);
#ifdef LOWBIT_ISA_UNITS
  const lowbit::kernel::unit& kernels = lowbit::kernel::best_unit();
#else
  const auto kernels = lowbit::kernel::unit_for<lowbit::simd::native, lowbit::q8_0>();
#endif
  const auto panels = lowbit::panel_matrix::from(q->weights.view(), serial, kernels);
  lowbit::multiply(lowbit::view(x), panels, lowbit::view(y), space);
  return (y - expected).cwiseAbs().maxCoeff() < 0.1f ? 0 : 1;
}
