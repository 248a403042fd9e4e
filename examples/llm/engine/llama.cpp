#include "llama.hpp"

#include "elementwise.hpp"

namespace llm {

namespace {

/// x Wᵀ into y, which takes the shape of the result.
lowbit::product product_of(const matrix& x, const lowbit::panel_matrix& w, matrix& y) {
  y.resize(x.rows(), w.rows());
  return {lowbit::view(x), &w, lowbit::view(y)};
}

}  // namespace

void session::multiply(std::initializer_list<lowbit::product> batch) {
  lowbit::multiply(std::span(batch), workspace_, threads_, precision_);
}

void session::add_product(const matrix& x, const lowbit::panel_matrix& w) {
  lowbit::multiply(lowbit::view(x), w, lowbit::view(x_), workspace_, threads_, precision_, lowbit::add_matrix{lowbit::view(x_)});
}

void session::normalise(const matrix& x, const std::vector<float>& weight, matrix& out) {
  out.resize(x.rows(), x.cols());
  for (std::size_t t = 0; t < x.rows(); ++t) rms_norm(x.row(t), weight.data(), x.cols(), model_.config.norm_epsilon, out.row(t));
}

void session::self_attention(const layer_weights& w, std::size_t layer) {
  const model_config& c = model_.config;
  const std::size_t tokens = normed_.rows();
  multiply({product_of(normed_, w.query, query_), product_of(normed_, w.key, key_), product_of(normed_, w.value, value_)});
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < c.heads; ++h) rope(query_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
    for (std::size_t h = 0; h < c.kv_heads; ++h) rope(key_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
  }
  cache_.store(layer, key_, value_);
  mixed_.resize(tokens, c.query_size());
  attend({c, query_, cache_, layer, mixed_}, threads_);
  add_product(mixed_, w.output);
}

void session::mlp(const layer_weights& w) {
  lowbit::product gated = product_of(normed_, w.up, mixed_);
  gated.gate = &w.gate;  // SwiGLU (Shazeer 2020): silu(gate) * up
  multiply({gated});
  add_product(mixed_, w.down);
}

const matrix& session::feed(std::span<const int> tokens, std::size_t wanted) {
  const model_config& c = model_.config;
  LOWBIT_EXPECTS(wanted <= tokens.size() && tokens.size() <= cache_.capacity() - cache_.size());
  const std::size_t count = tokens.size();
  x_.resize(count, c.hidden);
  angles_.resize(count, c.head_dim);
  for (std::size_t t = 0; t < count; ++t) {
    LOWBIT_EXPECTS(tokens[t] >= 0 && static_cast<std::size_t>(tokens[t]) < c.vocabulary);
    lowbit::read_row(model_.embedding, static_cast<std::size_t>(tokens[t]), x_.row(t));
    rope_angles(c, cache_.size() + t, angles_.row(t));
  }
  for (std::size_t layer = 0; layer < c.layers && count != 0; ++layer) {
    const layer_weights& w = model_.layers[layer];
    normalise(x_, w.attention_norm, normed_);
    self_attention(w, layer);
    normalise(x_, w.mlp_norm, normed_);
    mlp(w);
  }
  cache_.advance(count);

  last_.resize(wanted, c.hidden);
  for (std::size_t t = 0; t < wanted; ++t)
    rms_norm(x_.row(count - wanted + t), model_.norm.data(), c.hidden, c.norm_epsilon, last_.row(t));
  multiply({product_of(last_, model_.output_matrix(), logits_)});
  return logits_;
}

}  // namespace llm
