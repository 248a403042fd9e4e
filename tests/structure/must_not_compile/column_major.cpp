// expect: Eigen matrices must be row-major
#include <lowbit/glue/eigen.hpp>

auto wrong(Eigen::MatrixXf& columns) { return lowbit::view(columns); }
