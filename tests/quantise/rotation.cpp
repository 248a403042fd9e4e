// Rotations: Hadamard's equation exactly, orthogonality in float64, and models that compute the same in a rotated stream.
#include "../executors.hpp"
#include "matrices.hpp"

#include <lowbit/quantise/rotation.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;
using namespace test;

namespace {
using Eigen::MatrixXd;

/// R itself, as floats: the identity's rows, rotated.
matrix matrix_of(const rotation& r) {
  const auto n = static_cast<Eigen::Index>(r.size());
  serial_executor serial;
  matrix m = matrix::Identity(n, n);
  r.rotate_rows(view(m), serial);
  return m;
}
using three_threads = backwards_executor<3>;
/// RMSNorm without gain.
MatrixXd norm(MatrixXd x) {
  x.array().colwise() /= (x.rowwise().squaredNorm().array() / static_cast<double>(x.cols()) + 1e-6).sqrt();
  return x;
}
}  // namespace

TEST_CASE("Paley's matrices satisfy Hadamard's equation") {
  int found = 0;
  for (std::size_t n = 4; n <= 512; n += 4) {
    if (detail::paley_prime(n) == 0) continue;
    ++found;
    const std::vector<double> h = detail::paley_matrix(n);
    const Eigen::Map<const MatrixXd> m(h.data(), static_cast<Eigen::Index>(n), static_cast<Eigen::Index>(n));
    CHECK((m.array().abs() == 1.0).all());
    CHECK(MatrixXd(m * m.transpose()) == MatrixXd(static_cast<double>(n) * MatrixXd::Identity(m.rows(), m.rows())));
  }
  CHECK(found > 60);
  for (const std::size_t n : {12, 20, 28, 36, 44, 60, 76, 108}) CHECK(detail::paley_prime(n) != 0);
  for (const std::size_t n : {6, 8 * 2 + 2, 92, 116}) CHECK(detail::paley_prime(n) == 0);  // 91 and 115 are no primes, 45 and 57 neither
}

TEST_CASE("every size is orthogonal to float rounding, with even entries") {
  for (const std::size_t n : {1, 2, 3, 4, 5, 7, 12, 20, 28, 45, 64, 96, 100, 172, 576, 640, 768, 37 * 2}) {
    CAPTURE(n);
    const rotation r(n, 42);
    const MatrixXd m = matrix_of(r).cast<double>();
    CHECK((m * m.transpose() - MatrixXd::Identity(m.rows(), m.rows())).cwiseAbs().maxCoeff() < 2e-7);
    CHECK(m.cwiseAbs().maxCoeff() <= std::sqrt(2.0 / static_cast<double>(n)) * (1 + 1e-6));
  }
  CHECK(rotation(4096, 1).base() == 1);
  CHECK(rotation(576, 1).base() == 36);    // 16 x 36
  CHECK(rotation(1536, 1).base() == 12);   // 128 x 12
  CHECK(rotation(5120, 1).base() == 20);
  CHECK(rotation(14336, 1).base() == 28);
  CHECK(rotation(11008, 1).base() == 43);  // no Paley matrix of order 172 or 344: Hartley
}

TEST_CASE("rows and columns are products with R, inverses undo them, and seeds and threads behave") {
  serial_executor serial;
  three_threads wide;
  for (const std::size_t n : {7, 36, 48, 64}) {
    const rotation r(n, 3);
    const MatrixXd m = matrix_of(r).cast<double>();
    const auto cols = static_cast<Eigen::Index>(n);
    const matrix w = normal_matrix(21, cols, 1), u = normal_matrix(cols, 21, 2);
    matrix a = w, b = u, c = w;
    r.rotate_rows(view(a), serial);
    r.rotate_columns(view(b), serial);
    r.rotate_rows(view(c), wide);
    CHECK(a == c);
    CHECK((a.cast<double>() - w.cast<double>() * m).cwiseAbs().maxCoeff() < 1e-5);
    CHECK((b.cast<double>() - m.transpose() * u.cast<double>()).cwiseAbs().maxCoeff() < 1e-5);
    r.rotate_rows(view(a), serial, true);
    r.rotate_columns(view(b), wide, true);
    CHECK((a - w).cwiseAbs().maxCoeff() < 2e-6f);
    CHECK((b - u).cwiseAbs().maxCoeff() < 2e-6f);
    CHECK(matrix_of(rotation(n, 3)) == matrix_of(r));
    if (n > 30) CHECK(matrix_of(rotation(n, 4)) != matrix_of(r));  // of fewer signs two seeds may well agree
    matrix none(0, cols);
    r.rotate_rows(view(none), serial);
  }
}

TEST_CASE("a rotated pair of layers is the original exactly, in exact arithmetic") {
  // Powers of four: R is +-1 / 2^k, and products of small integers with it are exact in float.
  std::mt19937 random(9);
  const auto integers = [&](Eigen::Index rows, Eigen::Index cols) {
    return matrix(matrix::NullaryExpr(rows, cols, [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); }));
  };
  serial_executor serial;
  for (const Eigen::Index n : {4, 16, 64, 256}) {
    matrix first = integers(n, 12), second = integers(10, n);
    const MatrixXd before = second.cast<double>() * first.cast<double>();
    const matrix original = first;
    const rotation r(static_cast<std::size_t>(n), 11);
    r.rotate_columns(view(first), serial);
    r.rotate_rows(view(second), serial);
    CHECK(first != original);
    CHECK(MatrixXd(second.cast<double>() * first.cast<double>()) == before);
  }
}

TEST_CASE("a model of two blocks computes the same in a rotated residual stream, heads rotated too") {
  // Embedding; attention reduced to values, mixed over tokens, and output projection with grouped heads; a gated MLP; a head of its own.
  constexpr Eigen::Index n = 36, heads = 4, kv_heads = 2, head = 6, hidden = 20, vocabulary = 11, tokens = 9;
  struct block {
    matrix v, o, gate, up, down;
    std::vector<float> v_bias, down_bias, norm1, norm2;
  };
  std::vector<block> blocks;
  const auto vector = [](Eigen::Index size, unsigned seed) {
    const matrix m = normal_matrix(1, size, seed);
    return std::vector<float>(m.data(), m.data() + size);
  };
  for (unsigned i = 0; i < 2; ++i)
    blocks.push_back({normal_matrix(kv_heads * head, n, 10 * i + 1), normal_matrix(n, heads * head, 10 * i + 2), normal_matrix(hidden, n, 10 * i + 3),
                      normal_matrix(hidden, n, 10 * i + 4), normal_matrix(n, hidden, 10 * i + 5), vector(kv_heads * head, 10 * i + 6),
                      vector(n, 10 * i + 7), vector(n, 10 * i + 8), vector(n, 10 * i + 9)});
  matrix embedding = normal_matrix(vocabulary, n, 50), output = normal_matrix(vocabulary, n, 51);
  std::vector<float> last = vector(n, 52);
  const MatrixXd mixing = normal_matrix(tokens, tokens, 53).cast<double>().triangularView<Eigen::Lower>();
  const auto gain = [](const std::vector<float>& g) { return Eigen::Map<const Eigen::VectorXf>(g.data(), n).cast<double>(); };
  const auto model = [&] {
    MatrixXd x = MatrixXd::NullaryExpr(tokens, n, [&](Eigen::Index t, Eigen::Index c) { return static_cast<double>(embedding(t * 5 % vocabulary, c)); });
    for (const block& b : blocks) {
      MatrixXd values = norm(x) * gain(b.norm1).asDiagonal() * b.v.cast<double>().transpose();
      values.rowwise() += Eigen::Map<const Eigen::VectorXf>(b.v_bias.data(), kv_heads * head).cast<double>().transpose();
      MatrixXd mixed(tokens, heads * head);
      for (Eigen::Index h = 0; h < heads; ++h)
        mixed.middleCols(h * head, head) = static_cast<double>(h + 1) * mixing * values.middleCols(h / (heads / kv_heads) * head, head);
      x += mixed * b.o.cast<double>().transpose();
      const MatrixXd y = norm(x) * gain(b.norm2).asDiagonal();
      const MatrixXd gate = y * b.gate.cast<double>().transpose();
      x += MatrixXd((gate.array() / (1 + (-gate.array()).exp())) * (y * b.up.cast<double>().transpose()).array()) * b.down.cast<double>().transpose();
      x.rowwise() += Eigen::Map<const Eigen::VectorXf>(b.down_bias.data(), n).cast<double>().transpose();
    }
    return MatrixXd(norm(x) * gain(last).asDiagonal() * output.cast<double>().transpose());
  };
  const MatrixXd before = model();

  std::vector<matrix_view<float>> readers{view(embedding), view(output)};
  std::vector<linear_view> writers;
  serial_executor serial;
  const rotation stream(n, 5), inner(head, 6);
  const linear_view out[] = {{view(output), {}}};
  move_norm(last, {}, out);
  for (block& b : blocks) {
    const linear_view values[] = {{view(b.v), {}}}, mlp[] = {{view(b.gate), {}}, {view(b.up), {}}};
    move_norm(b.norm1, {}, values);
    move_norm(b.norm2, {}, mlp);
    for (matrix* m : {&b.v, &b.gate, &b.up}) readers.push_back(view(*m));
    writers.push_back({view(b.o), {}});
    writers.push_back({view(b.down), b.down_bias});
  }
  rotate_residual(stream, readers, writers, serial);
  for (block& b : blocks) rotate_heads(inner, {view(b.v), b.v_bias}, view(b.o), serial);
  CHECK((model() - before).norm() < 2e-6 * before.norm());
}

TEST_CASE("outliers are spread over all channels") {
  matrix w = normal_matrix(64, 576, 1);
  for (const Eigen::Index c : {3, 77, 500}) w.col(c) *= 40;
  const auto peak = [](const matrix& m) { return static_cast<double>(m.cwiseAbs().maxCoeff()) / std::sqrt(static_cast<double>(m.squaredNorm()) / static_cast<double>(m.size())); };
  const double before = peak(w);
  serial_executor serial;
  rotation(576, 7).rotate_rows(view(w), serial);
  CHECK(before > 20);
  CHECK(peak(w) < 6);  // a normal matrix of that size has 4.2
}
