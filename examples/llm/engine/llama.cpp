#include "llama.hpp"

#include "elementwise.hpp"

namespace llm {

void session::multiply(const matrix& x, const lowbit::panel_matrix& w, matrix& y) {
  y.resize(x.rows(), w.rows());
  lowbit::multiply(lowbit::view(x), w, lowbit::view(y), workspace_, threads_, precision_);
}

void session::normalise(const matrix& x, const std::vector<float>& weight, matrix& out) {
  out.resize(x.rows(), x.cols());
  for (std::size_t t = 0; t < x.rows(); ++t) rms_norm(x.row(t), weight.data(), x.cols(), model_.config.norm_epsilon, out.row(t));
}

void session::self_attention(const layer_weights& w, std::size_t layer) {
  const model_config& c = model_.config;
  const std::size_t tokens = normed_.rows();
  multiply(normed_, w.query, query_);
  multiply(normed_, w.key, key_);
  multiply(normed_, w.value, value_);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < c.heads; ++h) rope(query_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
    for (std::size_t h = 0; h < c.kv_heads; ++h) rope(key_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
  }
  cache_.store(layer, key_, value_);
  mixed_.resize(tokens, c.query_size());
  attend({c, query_, cache_, layer, mixed_}, threads_);
  multiply(mixed_, w.output, delta_);
}

void session::mlp(const layer_weights& w) {
  multiply(normed_, w.gate, gate_);
  multiply(normed_, w.up, up_);
  lowbit::for_parts(threads_, gate_.rows(), 8, [&](std::size_t begin, std::size_t end) {
    swiglu(gate_.row(begin), up_.row(begin), (end - begin) * gate_.cols());
  });
  multiply(gate_, w.down, delta_);
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
  const auto add_delta = [&] { array_of(x_.row(0), count * c.hidden) += array_of(delta_.row(0), count * c.hidden); };
  for (std::size_t layer = 0; layer < c.layers && count != 0; ++layer) {
    const layer_weights& w = model_.layers[layer];
    normalise(x_, w.attention_norm, normed_);
    self_attention(w, layer);
    add_delta();
    normalise(x_, w.mlp_norm, normed_);
    mlp(w);
    add_delta();
  }
  cache_.advance(count);

  last_.resize(wanted, c.hidden);
  for (std::size_t t = 0; t < wanted; ++t)
    rms_norm(x_.row(count - wanted + t), model_.norm.data(), c.hidden, c.norm_epsilon, last_.row(t));
  multiply(last_, model_.output_matrix(), logits_);
  return logits_;
}

}  // namespace llm
