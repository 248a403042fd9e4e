#include <lowbit/glue/eigen.hpp>
#include <lowbit/glue/eigen_executor.hpp>
#include <lowbit/glue/eigen_tensor.hpp>

#include <doctest/doctest.h>

#include <atomic>

using namespace lowbit;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST_CASE("matrices, maps and blocks are seen in place") {
  matrix m = matrix::Random(5, 7);
  CHECK(view(m).data == m.data());
  CHECK(view(m)(4, 6) == m(4, 6));
  const matrix& constant = m;
  static_assert(std::is_same_v<decltype(view(constant)), matrix_view<const float>>);
  Eigen::Map<matrix, 0, Eigen::OuterStride<>> map(m.data(), 5, 3, Eigen::OuterStride<>(7));
  CHECK(view(map).stride == 7);
  CHECK(view(map)(2, 1) == m(2, 1));
  const Eigen::Ref<const matrix, 0, Eigen::OuterStride<>> block = m.block(1, 2, 3, 4);
  CHECK(view(block)(2, 3) == m(3, 5));
  CHECK(view(block).data == &m(1, 2));
}

TEST_CASE("tensors of rank 2 are matrices, of rank 3 batches") {
  Eigen::Tensor<float, 3, Eigen::RowMajor> batch(2, 3, 4);
  batch.setRandom();
  Eigen::TensorMap<Eigen::Tensor<float, 2, Eigen::RowMajor>> second(batch.data() + 12, 3, 4);
  CHECK(view(second)(2, 1) == batch(1, 2, 1));
  std::size_t seen = 0;
  for_each_matrix(batch, [&](matrix_view<float> m, std::size_t i) {
    CHECK(m(2, 3) == batch(static_cast<Eigen::Index>(i), 2, 3));
    ++seen;
  });
  CHECK(seen == 2);
}

TEST_CASE("a thread pool runs every task once") {
  Eigen::ThreadPool pool(3);
  eigen_executor executor(pool);
  std::vector<std::atomic<int>> runs(100);
  executor.run(100, [&](std::size_t i) { ++runs[i]; });
  for (const auto& r : runs) CHECK(r == 1);
}
