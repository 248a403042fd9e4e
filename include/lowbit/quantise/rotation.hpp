// Rotations: an orthogonal matrix put between the layers of a model, so that no channel stands out (QuaRot: Ashkboos et al. 2024).
//
// R = D (H x B) / sqrt(n): D random signs, H Sylvester's Hadamard matrix of order 2^k, x Kronecker's product, and B a base of order n / 2^k:
// a Hadamard matrix by Paley's constructions (1933: orders q+1 for primes q = 3 mod 4, 2(q+1) for q = 1 mod 4), or where n has none
// of moderate order, the discrete Hartley matrix (Bracewell 1983), orthogonal for every order with entries of at most sqrt(2/m). So any n
// works, in O(n (k + m)) by the fast Walsh-Hadamard transform. Sums are in float64, so the rotation is orthogonal to float rounding.
// y = x Wᵀ with inputs x R takes the weights W R (rotate_rows); with outputs to be rotated, Rᵀ W (rotate_columns).
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/quantise/transform.hpp>

#include <bit>
#include <numbers>
#include <random>

namespace lowbit {

namespace detail {

constexpr bool is_prime(std::size_t q) noexcept {
  for (std::size_t d = 2; d * d <= q; ++d)
    if (q % d == 0) return false;
  return q >= 2;
}

/// The prime of Paley's construction of a Hadamard matrix of that order, or 0.
constexpr std::size_t paley_prime(std::size_t order) noexcept {
  if (order >= 4 && is_prime(order - 1) && (order - 1) % 4 == 3) return order - 1;
  if (order >= 4 && order % 4 == 0 && is_prime(order / 2 - 1) && (order / 2 - 1) % 4 == 1) return order / 2 - 1;
  return 0;
}

/// A Hadamard matrix, entries 1 and -1, by Paley's constructions. Expects paley_prime(order) != 0.
inline std::vector<double> paley_matrix(std::size_t order) {
  const std::size_t q = paley_prime(order), n = q + 1;
  LOWBIT_EXPECTS(q != 0);
  std::vector<double> character(q, -1.0);  // of a residue: 1 for squares, -1 for others, 0 for 0
  for (std::size_t i = 1; i < q; ++i) character[i * i % q] = 1;
  character[0] = 0;
  // Jacobsthal's matrix with a border: a conference matrix, antisymmetric for q = 3 mod 4 and symmetric for 1.
  const bool symmetric = q % 4 == 1;
  const auto conference = [&](std::size_t i, std::size_t j) {
    if (i == 0) return j == 0 ? 0.0 : 1.0;
    if (j == 0) return symmetric ? 1.0 : -1.0;
    return character[(i + q - j) % q];
  };
  std::vector<double> h(order * order);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) {
      const double c = conference(i, j), one = i == j ? 1.0 : 0.0;
      if (!symmetric) {
        h[i * order + j] = c + one;
      } else {  // C x [1 1; 1 -1] + I x [1 -1; -1 -1]
        double* const at = &h[2 * i * order + 2 * j];
        at[0] = c + one;
        at[1] = at[order] = c - one;
        at[order + 1] = -c - one;
      }
    }
  return h;
}

/// m^(1/2) times the orthogonal matrix of the discrete Hartley transform: cos + sin of 2 pi i j / m.
inline std::vector<double> hartley_matrix(std::size_t m) {
  std::vector<double> h(m * m);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < m; ++j) {
      const double angle = 2 * std::numbers::pi * static_cast<double>(i * j % m) / static_cast<double>(m);
      h[i * m + j] = std::cos(angle) + std::sin(angle);
    }
  return h;
}

}  // namespace detail

/// A random orthogonal n x n matrix that is applied fast. Copyable; the same for the same n and seed everywhere.
class rotation {
 public:
  /// Expects n > 0.
  rotation(std::size_t n, std::uint64_t seed) : signs_(n) {
    LOWBIT_EXPECTS(n != 0);
    const std::size_t two = std::size_t{1} << std::countr_zero(n), odd = n / two;
    constexpr std::size_t largest = 512;  // beyond it Hartley's smaller base is faster and hardly less even
    base_ = odd;
    if (odd != 1) {
      std::size_t order = 4 * odd;
      while (order <= two * odd && order <= largest && detail::paley_prime(order) == 0) order *= 2;
      const bool found = order <= two * odd && order <= largest;
      base_ = found ? order : odd;
      matrix_ = found ? detail::paley_matrix(base_) : detail::hartley_matrix(base_);
    }
    std::mt19937_64 random(seed);  // its bits are the standard's, so they are the same with every library
    const double unit = 1.0 / std::sqrt(static_cast<double>(n));
    for (double& s : signs_) s = (random() >> 63) != 0 ? -unit : unit;
  }

  [[nodiscard]] std::size_t size() const noexcept { return signs_.size(); }
  /// The order of the base; 1 for a power of two.
  [[nodiscard]] std::size_t base() const noexcept { return base_; }

  /// W becomes W R, or W Rᵀ to undo it. Expects w.cols == size().
  template <executor E>
  void rotate_rows(matrix_view<float> w, E& executor, bool inverse = false) const {
    LOWBIT_EXPECTS(w.cols == size());
    for_parts(executor, ceil_div(w.rows, lanes), 1, [&](std::size_t begin, std::size_t end) {
      space s(*this);
      for (std::size_t first = begin * lanes; first < std::min(w.rows, end * lanes); first += lanes) {
        const std::size_t n = std::min(lanes, w.rows - first);
        for (std::size_t i = 0; i < size(); ++i)
          for (std::size_t l = 0; l < lanes; ++l) s.values[i * lanes + l] = l < n ? static_cast<double>(w(first + l, i)) : 0.0;
        apply(s, inverse);
        for (std::size_t l = 0; l < n; ++l)
          for (std::size_t i = 0; i < size(); ++i) w(first + l, i) = static_cast<float>(s.values[i * lanes + l]);
      }
    });
  }

  /// W becomes Rᵀ W, or R W to undo it. Expects w.rows == size().
  template <executor E>
  void rotate_columns(matrix_view<float> w, E& executor, bool inverse = false) const {
    LOWBIT_EXPECTS(w.rows == size());
    for_parts(executor, ceil_div(w.cols, lanes), 1, [&](std::size_t begin, std::size_t end) {
      space s(*this);
      for (std::size_t first = begin * lanes; first < std::min(w.cols, end * lanes); first += lanes) {
        const std::size_t n = std::min(lanes, w.cols - first);
        for (std::size_t i = 0; i < size(); ++i)
          for (std::size_t l = 0; l < lanes; ++l) s.values[i * lanes + l] = l < n ? static_cast<double>(w(i, first + l)) : 0.0;
        apply(s, inverse);
        for (std::size_t i = 0; i < size(); ++i)
          for (std::size_t l = 0; l < n; ++l) w(i, first + l) = static_cast<float>(s.values[i * lanes + l]);
      }
    });
  }

 private:
  static constexpr std::size_t lanes = 8;  // vectors that are transformed side by side

  struct space {
    explicit space(const rotation& r) : values(r.size() * lanes), piece(r.matrix_.empty() ? 0 : r.base_ * lanes) {}
    std::vector<double> values, piece;
  };

  /// Every lane's vector v, element i at values[i * lanes]: v R, or v Rᵀ.
  void apply(space& s, bool inverse) const {
    double* const v = s.values.data();
    const auto sign = [&] {
      for (std::size_t i = 0; i < size(); ++i)
        for (std::size_t l = 0; l < lanes; ++l) v[i * lanes + l] *= signs_[i];
    };
    if (!inverse) sign();
    for (std::size_t half = base_; half < size(); half *= 2)
      for (std::size_t start = 0; start < size(); start += 2 * half)
        for (double *a = v + start * lanes, *b = a + half * lanes, *const end = b; a != end; ++a, ++b) {
          const double sum = *a + *b;
          *b = *a - *b;
          *a = sum;
        }
    if (!matrix_.empty())
      for (std::size_t start = 0; start < size(); start += base_) multiply_base(v + start * lanes, s.piece.data(), inverse);
    if (inverse) sign();
  }

  /// piece B, or piece Bᵀ, of every lane.
  void multiply_base(double* v, double* piece, bool transposed) const {
    std::copy(v, v + base_ * lanes, piece);
    for (std::size_t j = 0; j < base_; ++j) {
      double sum[lanes] = {};
      for (std::size_t i = 0; i < base_; ++i) {
        const double factor = matrix_[transposed ? j * base_ + i : i * base_ + j];
        for (std::size_t l = 0; l < lanes; ++l) sum[l] += piece[i * lanes + l] * factor;
      }
      std::copy(sum, sum + lanes, v + j * lanes);
    }
  }

  std::size_t base_ = 1;
  std::vector<double> matrix_;  // base x base; empty: the base is 1
  std::vector<double> signs_;   // of D, with 1 / sqrt(n)
};

/// Rotates a model's residual stream: what `writers` add to it is rotated, and what `readers` take is turned back. Readers: the token
/// embedding ([vocabulary, n]; its rows are vectors of the stream), every layer's q, k, v, gate and up, and the output head. Writers: o and
/// down, with their biases. Norms in between must have no gain and no bias of their own (move_norm first), and LayerNorm's mean must be
/// taken out of what writes (SliceGPT, Ashkboos et al. 2024, section 3.1) since a rotation does not keep it. A head tied to the embedding has
/// to be a copy, since the last norm's gain moves into the head alone.
template <executor E>
void rotate_residual(const rotation& r, std::span<const matrix_view<float>> readers, std::span<const linear_view> writers, E& executor) {
  for (const matrix_view<float>& w : readers) r.rotate_rows(w, executor);
  for (const linear_view& l : writers) {
    r.rotate_columns(l.weights, executor);
    if (!l.bias.empty()) r.rotate_rows({l.bias.data(), 1, l.bias.size()}, executor);
  }
}

/// Rotates the values within attention heads: each head's rows of v (and its bias, or none), and the columns of o that read them. Heads of
/// grouped-query attention share their values' rotation. Expects whole heads of r.size() rows and columns.
template <executor E>
void rotate_heads(const rotation& r, const linear_view& v, matrix_view<float> o, E& executor) {
  const std::size_t n = r.size();
  LOWBIT_EXPECTS(v.weights.rows % n == 0 && o.cols % n == 0 && (v.bias.empty() || v.bias.size() == v.weights.rows));
  for (std::size_t first = 0; first < v.weights.rows; first += n) {
    r.rotate_columns(v.weights.middle_rows(first, n), executor);
    if (!v.bias.empty()) r.rotate_rows({v.bias.data() + first, 1, n}, executor);
  }
  for (std::size_t first = 0; first < o.cols; first += n) r.rotate_rows({o.data + first, o.rows, n, o.stride}, executor);
}

}  // namespace lowbit
