// A Llama that can be trained: the engine's forward pass (examples/llm/engine) with a tape, and its derivatives, written by hand.
//
// Sources: Touvron et al. 2023 (the architecture), Zhang & Sennrich 2019 (RMSNorm), Su et al. 2021 (RoPE), Ainslie et al. 2023 (grouped
// queries), Shazeer 2020 (SwiGLU). One sequence at a time; sequences of a batch are independent and run on threads of their own.
#pragma once

#include "factor.hpp"

#include "engine/config.hpp"
#include "files/names.hpp"

#include <limits>
#include <optional>
#include <span>
#include <string>

namespace qat {

/// The matrices of a network, or their gradients, in the order of parameter_names. Vectors are matrices of one row.
template <class Scalar>
using parameters = std::vector<matrix<Scalar>>;

/// Places of a layer's matrices, in the order of llm::layer_names.
enum part : std::size_t { attention_norm, query, key, value, output, mlp_norm, gate, up, down, parts };
inline constexpr std::size_t embedding = 0, last_norm = 1;
constexpr std::size_t place(std::size_t layer, part p) { return 2 + layer * parts + p; }
/// Of the matrix that gives the logits.
constexpr std::size_t head_place(const llm::model_config& c, bool tied) { return tied ? embedding : place(c.layers, attention_norm); }

/// GGUF's names of the parameters.
inline std::vector<std::string> parameter_names(const llm::model_config& c, bool tied) {
  std::vector<std::string> names{"token_embd.weight", "output_norm.weight"};
  for (std::size_t layer = 0; layer < c.layers; ++layer)
    for (const llm::name_pair& p : llm::layer_names) names.push_back(llm::layer_name(layer, p.gguf));
  if (!tied) names.emplace_back("output.weight");
  return names;
}

/// Zeros of the same shapes.
template <class Scalar>
parameters<Scalar> zeros_like(const parameters<Scalar>& p) {
  parameters<Scalar> z;
  for (const auto& m : p) z.push_back(matrix<Scalar>::Zero(m.rows(), m.cols()));
  return z;
}

/// The loss of one sequence, and what it was computed from.
struct sequence_loss {
  double sum = 0;           ///< in nats, over predicted tokens
  std::size_t tokens = 0;
};

template <class Scalar>
class network {
 public:
  using mat = matrix<Scalar>;

  /// The configuration and the parameters must outlive it; a network is made anew when they have changed.
  network(const llm::model_config& config, const parameters<Scalar>& p)
      : c_(config), p_(p), tied_(p.size() == place(config.layers, attention_norm)), weights_(p.size()) {
    for (std::size_t i = 0; i < p.size(); ++i)
      if (p[i].rows() > 1) weights_[i].emplace(both{factor<Scalar>::of(p[i]), factor<Scalar>::transposed(p[i])});
  }

  /// What the forward pass leaves behind for the backward one.
  struct tape {
    struct layer {
      mat x, normed, q, k, v, mixed;      // of attention: inputs, after the norm, turned by RoPE, heads' mixtures of values
      std::vector<mat> attention;         // [query token, key token] of each head
      mat middle, mlp_normed, gated, raised, hidden;
    };
    std::vector<layer> layers;
    mat x, normed, logits, angles;        // angles: a cosine and a sine for each pair
  };

  /// Logits [tokens, vocabulary] of a sequence. Expects ids below the vocabulary's size.
  const mat& forward(std::span<const int> ids, tape& t) const {
    const auto n = static_cast<index>(ids.size());
    t.layers.resize(c_.layers);
    t.angles = angles(n);
    t.x.resize(n, extent(c_.hidden));
    for (index i = 0; i < n; ++i) t.x.row(i) = p_[embedding].row(ids[static_cast<std::size_t>(i)]);
    for (std::size_t l = 0; l < c_.layers; ++l) {
      auto& a = t.layers[l];
      a.x = t.x;
      a.normed = norm(a.x, place(l, attention_norm));
      const auto in = factor<Scalar>::transposed(a.normed);
      multiply(in, n, place(l, query), a.q);
      multiply(in, n, place(l, key), a.k);
      multiply(in, n, place(l, value), a.v);
      turn(a.q, t.angles, 1);
      turn(a.k, t.angles, 1);
      attend(a);
      add_product(factor<Scalar>::transposed(a.mixed), weights_[place(l, output)]->turned, t.x);
      a.middle = t.x;
      a.mlp_normed = norm(a.middle, place(l, mlp_norm));
      const auto in_mlp = factor<Scalar>::transposed(a.mlp_normed);
      multiply(in_mlp, n, place(l, gate), a.gated);
      multiply(in_mlp, n, place(l, up), a.raised);
      a.hidden = a.gated.array() * sigmoid(a.gated) * a.raised.array();
      add_product(factor<Scalar>::transposed(a.hidden), weights_[place(l, down)]->turned, t.x);
    }
    t.normed = norm(t.x, last_norm);
    multiply(factor<Scalar>::transposed(t.normed), n, head_place(c_, tied_), t.logits);
    return t.logits;
  }

  /// Adds to `grad` the derivatives of Σ of_logits · logits of the sequence that the tape is of.
  void backward(std::span<const int> ids, const tape& t, const mat& of_logits, parameters<Scalar>& grad) const {
    mat dx = back(of_logits, t.normed, head_place(c_, tied_), grad);
    dx = norm_back(t.x, dx, last_norm, grad);
    for (std::size_t l = c_.layers; l-- > 0;) {
      const auto& a = t.layers[l];
      const mat dhidden = back(dx, a.hidden, place(l, down), grad);
      const auto s = sigmoid(a.gated).eval();
      const mat draised = dhidden.array() * a.gated.array() * s;
      const mat dgated = dhidden.array() * a.raised.array() * s * (1 + a.gated.array() * (1 - s));
      mat dnormed = back(dgated, a.mlp_normed, place(l, gate), grad);
      dnormed += back(draised, a.mlp_normed, place(l, up), grad);
      dx += norm_back(a.middle, dnormed, place(l, mlp_norm), grad);

      mat dq, dk, dv;
      attend_back(a, back(dx, a.mixed, place(l, output), grad), dq, dk, dv);
      turn(dq, t.angles, -1);
      turn(dk, t.angles, -1);
      dnormed = back(dq, a.normed, place(l, query), grad);
      dnormed += back(dk, a.normed, place(l, key), grad);
      dnormed += back(dv, a.normed, place(l, value), grad);
      dx += norm_back(a.x, dnormed, place(l, attention_norm), grad);
    }
    for (index i = 0; i < dx.rows(); ++i) grad[embedding].row(ids[static_cast<std::size_t>(i)]) += dx.row(i);
  }

 private:
  using index = Eigen::Index;
  struct both {
    factor<Scalar> plain, turned;
  };
  static index extent(std::size_t n) { return static_cast<index>(n); }
  static auto sigmoid(const mat& m) { return (1 + (-m.array()).exp()).inverse(); }

  /// y = x Wᵀ, from xᵀ and the number of x's rows.
  void multiply(const factor<Scalar>& x, index rows, std::size_t w, mat& y) const {
    y.setZero(rows, p_[w].rows());
    add_product(x, weights_[w]->turned, y);
  }
  /// Of y = x Wᵀ: adds W's gradient, returns x's.
  mat back(const mat& dy, const mat& x, std::size_t w, parameters<Scalar>& grad) const {
    add_product(factor<Scalar>::of(dy), factor<Scalar>::of(x), grad[w]);
    mat dx = mat::Zero(x.rows(), x.cols());
    add_product(factor<Scalar>::transposed(dy), weights_[w]->plain, dx);
    return dx;
  }

  /// 1 / sqrt(mean x² + ε) of every row.
  auto inverse_rms(const mat& x) const { return (x.array().square().rowwise().mean() + static_cast<Scalar>(c_.norm_epsilon)).rsqrt().eval(); }
  mat norm(const mat& x, std::size_t w) const { return (x.array().colwise() * inverse_rms(x)).rowwise() * p_[w].row(0).array(); }
  mat norm_back(const mat& x, const mat& dy, std::size_t w, parameters<Scalar>& grad) const {
    const auto r = inverse_rms(x);
    grad[w].row(0).array() += (dy.array() * (x.array().colwise() * r)).colwise().sum();
    const mat scaled = dy.array().rowwise() * p_[w].row(0).array();
    const auto along = ((scaled.array() * x.array()).rowwise().mean() * r.cube()).eval();
    return scaled.array().colwise() * r - x.array().colwise() * along;
  }

  [[nodiscard]] mat angles(index tokens) const {
    mat a(tokens, extent(c_.head_dim));
    for (index t = 0; t < tokens; ++t)
      for (index i = 0; i < extent(c_.head_dim) / 2; ++i) {
        double frequency = std::pow(static_cast<double>(c_.rope_base), -2.0 * static_cast<double>(i) / static_cast<double>(c_.head_dim));
        if (!c_.rope_divisors.empty()) frequency /= static_cast<double>(c_.rope_divisors[static_cast<std::size_t>(i)]);
        a(t, 2 * i) = static_cast<Scalar>(std::cos(static_cast<double>(t) * frequency));
        a(t, 2 * i + 1) = static_cast<Scalar>(std::sin(static_cast<double>(t) * frequency));
      }
    return a;
  }
  /// Turns all heads by the angles, or (-1) back: a rotation's transpose.
  void turn(mat& m, const mat& by, Scalar sign) const {
    const index dim = extent(c_.head_dim);
    for (index t = 0; t < m.rows(); ++t)
      for (index head = 0; head < m.cols(); head += dim)
        for (index i = 0; i < dim / 2; ++i) {
          Scalar& a = m(t, head + (c_.rope == llm::rope_order::pairs ? 2 * i : i));
          Scalar& b = m(t, head + (c_.rope == llm::rope_order::pairs ? 2 * i + 1 : i + dim / 2));
          const Scalar x = a, y = b, cosine = by(t, 2 * i), sine = sign * by(t, 2 * i + 1);
          a = x * cosine - y * sine;
          b = x * sine + y * cosine;
        }
  }

  /// f(query head's first column, key head's first column, head) for every query head.
  template <class F>
  void for_heads(F&& f) const {
    for (std::size_t h = 0; h < c_.heads; ++h) f(extent(h * c_.head_dim), extent(h / (c_.heads / c_.kv_heads) * c_.head_dim), h);
  }
  [[nodiscard]] Scalar attention_scale() const { return 1 / std::sqrt(static_cast<Scalar>(c_.head_dim)); }

  void attend(typename tape::layer& a) const {
    const index n = a.q.rows(), dim = extent(c_.head_dim);
    a.mixed.resize(n, a.q.cols());
    a.attention.resize(c_.heads);
    for_heads([&](index q, index k, std::size_t h) {
      mat& s = a.attention[h];
      s.noalias() = attention_scale() * a.q.middleCols(q, dim) * a.k.middleCols(k, dim).transpose();
      for (index i = 0; i < n; ++i) {
        auto seen = s.row(i).head(i + 1).array();
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
        s.row(i).tail(n - i - 1).setZero();
      }
      a.mixed.middleCols(q, dim).noalias() = s * a.v.middleCols(k, dim);
    });
  }
  void attend_back(const typename tape::layer& a, const mat& dmixed, mat& dq, mat& dk, mat& dv) const {
    const index dim = extent(c_.head_dim);
    dq.resizeLike(a.q);
    dk.setZero(a.k.rows(), a.k.cols());
    dv.setZero(a.v.rows(), a.v.cols());
    mat ds;
    for_heads([&](index q, index k, std::size_t h) {
      const mat& s = a.attention[h];
      dv.middleCols(k, dim).noalias() += s.transpose() * dmixed.middleCols(q, dim);
      ds.noalias() = dmixed.middleCols(q, dim) * a.v.middleCols(k, dim).transpose();
      const auto mean = (s.array() * ds.array()).rowwise().sum().eval();
      ds = s.array() * (ds.array().colwise() - mean) * attention_scale();
      dq.middleCols(q, dim).noalias() = ds * a.k.middleCols(k, dim);
      dk.middleCols(k, dim).noalias() += ds.transpose() * a.q.middleCols(q, dim);
    });
  }

  const llm::model_config& c_;
  const parameters<Scalar>& p_;
  bool tied_;
  std::vector<std::optional<both>> weights_;  // nothing for vectors
};

/// Rows to probabilities.
template <class Scalar>
void softmax_rows(matrix<Scalar>& m) {
  m.colwise() -= m.rowwise().maxCoeff().eval();
  m = m.array().exp();
  m.array().colwise() /= m.rowwise().sum().array().eval();
}

/// The loss of predicting every token of a sequence but its first from logits [tokens - 1, vocabulary], and (into `of_logits`, scaled by
/// `weight`) its derivatives in them. With a teacher's probabilities, of the same shape, it is the divergence from those, KL(teacher || model),
/// instead of the negative log-likelihood of the token that came.
template <class Scalar>
sequence_loss loss_of_sequence(const matrix<Scalar>& logits, std::span<const int> ids, const matrix<Scalar>* teacher, Scalar weight,
                               matrix<Scalar>* of_logits) {
  sequence_loss loss;
  matrix<Scalar> p = logits;
  const auto high = p.rowwise().maxCoeff().eval();
  for (Eigen::Index t = 0; t < p.rows(); ++t) {
    const Scalar norm = high[t] + std::log((p.row(t).array() - high[t]).exp().sum());
    if (teacher == nullptr) {
      loss.sum += static_cast<double>(norm - p(t, ids[static_cast<std::size_t>(t) + 1]));
    } else {
      const auto q = teacher->row(t).array();
      const auto log_q = q.max(std::numeric_limits<Scalar>::min()).log();
      loss.sum += static_cast<double>((q * (log_q - (p.row(t).array() - norm))).sum());
    }
    ++loss.tokens;
  }
  if (of_logits == nullptr) return loss;
  softmax_rows(p);
  if (teacher != nullptr) p -= *teacher;
  else
    for (Eigen::Index t = 0; t < p.rows(); ++t) p(t, ids[static_cast<std::size_t>(t) + 1]) -= 1;
  *of_logits = weight * p;
  return loss;
}

}  // namespace qat
