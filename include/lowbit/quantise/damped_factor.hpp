// The Cholesky factor of a Hessian that may be anything: dead channels, rank-deficient, tiny, huge, not a number, not even semi-definite.
//
// The matrix is scaled to a mean diagonal of 1 and damped (GPTQ, section 3.3, step 3); where a pivot still fails, the damping is
// doubled until it is as large as the diagonal, and then raised to what makes any symmetric matrix positive definite. There is always an
// answer, unless no channel has a sample. The factorisation is blocked and left-looking, in float32 with the diagonal blocks in double, and
// deals out blocks: the same bits for every executor.
#pragma once

#include <lowbit/calibration/hessian.hpp>

#include <cmath>

namespace lowbit {

/// T with TᵀT = P H Pᵀ / scale + damping I, where P puts channel order[n - 1 - s] at place s: backwards, so that row s of T tells how the
/// errors of earlier channels move a later one.
struct damped_factor {
  block_triangle t{0};
  double scale = 0;           ///< the mean diagonal of the live channels; 0: none is live and there is no factor
  double damping = 0;         ///< added to the diagonal, in units of the mean
  std::size_t attempts = 0;   ///< factorisations that it took
  std::size_t dead = 0;       ///< channels that are never excited, or whose statistics are not finite: taken out of the matrix
};

namespace detail {

/// Upper Cholesky factor of a diagonal block in place (zero below the diagonal), and its inverse. False where a pivot is not above `least`.
inline bool factor_diagonal(float* block, float* inverse, double least) {
  constexpr std::size_t n = block_triangle::width;
  std::vector<double> u(n * n), v(n * n);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = i; j < n; ++j) u[i * n + j] = block[i * n + j];
  for (std::size_t i = 0; i < n; ++i) {
    const double pivot = u[i * n + i];
    if (!(pivot > least) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    for (std::size_t j = i; j < n; ++j) u[i * n + j] /= root;
    for (std::size_t k = i + 1; k < n; ++k)
      for (std::size_t j = k; j < n; ++j) u[k * n + j] -= u[i * n + k] * u[i * n + j];
  }
  for (std::size_t i = n; i-- > 0;) {  // rows of the inverse from the last up: u v = 1
    for (std::size_t j = i; j < n; ++j) v[i * n + j] = i == j ? 1.0 : 0.0;
    for (std::size_t k = i + 1; k < n; ++k)
      for (std::size_t j = k; j < n; ++j) v[i * n + j] -= u[i * n + k] * v[k * n + j];
    for (std::size_t j = i; j < n; ++j) v[i * n + j] /= u[i * n + i];
  }
  for (std::size_t i = 0; i < n * n; ++i) {
    block[i] = static_cast<float>(u[i]);
    inverse[i] = static_cast<float>(v[i]);
  }
  return true;
}

/// t becomes its upper Cholesky factor, t = TᵀT; its padding must have zeros but for a large enough diagonal. False where a pivot is not above `least`.
template <executor E>
bool factor_in_place(block_triangle& t, double least, E& executor) {
  constexpr std::size_t width = block_triangle::width, area = width * width;
  std::vector<float> inverse(area);
  for (std::size_t j = 0; j < t.blocks(); ++j) {
    const auto update = [&](std::size_t i) {
      for (std::size_t k = 0; k < j; ++k)
        LOWBIT_BEST_KERNEL(accumulate)({t.block(k, j), width, t.block(k, i), width, width, t.block(j, i), width, width, width, true});
    };
    update(j);
    if (!factor_diagonal(t.block(j, j), inverse.data(), least)) return false;
    for_parts(executor, t.blocks() - j - 1, 1, [&](std::size_t begin, std::size_t end) {
      std::vector<float> right(area);
      for (std::size_t i = j + 1 + begin; i < j + 1 + end; ++i) {
        update(i);
        std::copy_n(t.block(j, i), area, right.data());
        std::fill_n(t.block(j, i), area, 0.0f);
        LOWBIT_BEST_KERNEL(accumulate)({inverse.data(), width, right.data(), width, width, t.block(j, i), width, width, width});
      }
    });
  }
  return true;
}

/// z becomes the solution of TᵀT z = z, for 96 right-hand sides at once: z [blocks * 96][96].
inline void solve_in_place(const block_triangle& t, float* z) {
  constexpr std::size_t width = block_triangle::width, area = width * width;
  std::vector<float> turned(area);
  const auto subtract = [&](float* to, float factor, const float* from) {
    for (std::size_t r = 0; r < width; ++r) to[r] -= factor * from[r];
  };
  const auto divide = [&](float* to, float by) {
    for (std::size_t r = 0; r < width; ++r) to[r] /= by;
  };
  for (std::size_t j = 0; j < t.blocks(); ++j) {
    float* const zj = z + j * area;
    const float* const diagonal = t.block(j, j);
    for (std::size_t k = 0; k < j; ++k) LOWBIT_BEST_KERNEL(accumulate)({t.block(k, j), width, z + k * area, width, width, zj, width, width, width, true});
    for (std::size_t p = 0; p < width; ++p) {
      for (std::size_t k = 0; k < p; ++k) subtract(zj + p * width, diagonal[k * width + p], zj + k * width);
      divide(zj + p * width, diagonal[p * width + p]);
    }
  }
  for (std::size_t k = t.blocks(); k-- > 0;) {
    float* const zk = z + k * area;
    const float* const diagonal = t.block(k, k);
    for (std::size_t i = k + 1; i < t.blocks(); ++i) {
      for (std::size_t p = 0; p < width; ++p)
        for (std::size_t q = 0; q < width; ++q) turned[q * width + p] = t.block(k, i)[p * width + q];
      LOWBIT_BEST_KERNEL(accumulate)({turned.data(), width, z + i * area, width, width, zk, width, width, width, true});
    }
    for (std::size_t p = width; p-- > 0;) {
      for (std::size_t q = p + 1; q < width; ++q) subtract(zk + p * width, diagonal[p * width + q], zk + q * width);
      divide(zk + p * width, diagonal[p * width + p]);
    }
  }
}

}  // namespace detail

/// Factors H for channels that are rounded in this order (a permutation of 0 … n-1), with the damping asked for (in units of the mean
/// diagonal) or as much more as it takes.
template <executor E>
damped_factor factor_damped(const hessian& h, std::span<const std::size_t> order, double damping, E& executor) {
  const std::size_t n = h.channels();
  damped_factor f;
  std::vector<char> live(n);
  for (std::size_t i = 0; i < n; ++i) live[i] = h(i, i) > 0 && std::isfinite(h(i, i));
  for (std::size_t j = 0; j < n; ++j)  // a channel that is finite itself may meet another whose sum is not
    for (std::size_t i = 0; i < j && live[j]; ++i) live[j] = live[i] == 0 || std::isfinite(h(i, j));
  std::size_t count = 0;
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i)
    if (live[i]) {
      sum += h(i, i);
      ++count;
    }
  f.dead = n - count;
  if (count == 0) return f;
  f.scale = sum / static_cast<double>(count);

  const auto attempt = [&](double extra) {
    ++f.attempts;
    f.damping = extra;
    f.t = block_triangle(n);
    const auto channel = [&](std::size_t s) { return order[n - 1 - s]; };
    for_parts(executor, n, 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t s = begin; s < end; ++s)
        for (std::size_t r = 0; r <= s; ++r)
          if (const std::size_t a = channel(r), b = channel(s); live[a] && live[b]) f.t(r, s) = static_cast<float>(h(a, b) / f.scale + (r == s ? extra : 0.0));
          else if (r == s) f.t(r, s) = static_cast<float>(extra > 0 ? extra : 1.0);
    });
    for (std::size_t s = n; s < f.t.blocks() * block_triangle::width; ++s) f.t(s, s) = static_cast<float>(std::max(1.0, extra));
    // A Schur complement of H + d I is not below d; one that comes out far below is rounding's work, not the matrix's.
    return detail::factor_in_place(f.t, extra > 0 ? extra / 8 : 1e-6, executor);
  };
  if (attempt(damping > 0 && std::isfinite(damping) ? damping : 0.0)) return f;
  for (double d = std::max(0.01, 2 * f.damping); d < 2; d *= 2)
    if (attempt(d)) return f;
  // By Gershgorin: no eigenvalue is below minus the largest sum of a row's magnitudes.
  double reach = 0;
  for (std::size_t i = 0; i < n; ++i) {
    double row = 0;
    for (std::size_t j = 0; j < n; ++j)
      if (live[i] && live[j]) row += std::fabs(static_cast<double>(h(i, j)) / f.scale);
    reach = std::max(reach, row);
  }
  if (reach < 1e30 && attempt(2 * reach)) return f;
  f.scale = 0;
  return f;
}

}  // namespace lowbit
