#include "layer.hpp"

#include "elementwise.hpp"

namespace llm {
namespace {

/// An adapter as a list of one.
class only {
 public:
  explicit only(const lowbit::low_rank& adapter) : adapter_(&adapter) {}
  operator std::span<const lowbit::low_rank* const>() const { return {&adapter_, adapter_->rank() != 0 ? std::size_t{1} : std::size_t{0}}; }

 private:
  const lowbit::low_rank* adapter_;
};

/// x Wᵀ into y, which takes the shape of the result.
lowbit::product product_of(const matrix& x, const lowbit::panel_matrix& w, matrix& y) {
  y.resize(x.rows(), w.rows());
  return {lowbit::view(x), &w, lowbit::view(y)};
}

}  // namespace

void layer_steps::multiply(std::initializer_list<lowbit::adapted_product> batch) {
  lowbit::multiply(std::span(batch), {}, workspace_, threads_, precision_);
}

void layer_steps::multiply(const matrix& inputs, const lowbit::panel_matrix& w, matrix& out) { multiply({{product_of(inputs, w, out)}}); }

void layer_steps::add(const matrix& inputs, const lowbit::panel_matrix& w, const lowbit::low_rank& adapter, matrix& x) {
  const only plus(adapter);
  const lowbit::adapted_product p{{lowbit::view(inputs), &w, lowbit::view(x)}, plus};
  lowbit::multiply(std::span(&p, 1), {}, workspace_, threads_, precision_, lowbit::add_matrix{lowbit::view(x)});
}

void layer_steps::place(std::size_t position, std::size_t tokens) {
  if (position == position_ && tokens == angles_.rows()) return;
  position_ = position;
  angles_.resize(tokens, config_.head_dim);
  for (std::size_t t = 0; t < tokens; ++t) rope_angles(config_, position + t, angles_.row(t));
}

const matrix& layer_steps::normalise(const matrix& x, const std::vector<float>& weight) {
  normed_.resize(x.rows(), x.cols());
  for (std::size_t t = 0; t < x.rows(); ++t) rms_norm(x.row(t), weight.data(), x.cols(), config_.norm_epsilon, normed_.row(t));
  return normed_;
}

const matrix& layer_steps::attend(const matrix& normed, const layer_weights& w, kv_cache& cache, std::size_t layer) {
  const model_config& c = config_;
  const std::size_t tokens = normed.rows();
  LOWBIT_EXPECTS(angles_.rows() == tokens);
  const only query(w.adapters.query), key(w.adapters.key), value(w.adapters.value);
  multiply({{product_of(normed, w.query, query_), query}, {product_of(normed, w.key, key_), key}, {product_of(normed, w.value, value_), value}});
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t h = 0; h < c.heads; ++h) rope(query_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
    for (std::size_t h = 0; h < c.kv_heads; ++h) rope(key_.row(t) + h * c.head_dim, c.head_dim, c.rope, angles_.row(t));
  }
  cache.store(layer, key_, value_);
  mixed_.resize(tokens, c.query_size());
  llm::attend({c, query_, cache, layer, mixed_}, threads_);
  return mixed_;
}

const matrix& layer_steps::gate(const matrix& normed, const layer_weights& w) {
  lowbit::product gated = product_of(normed, w.up, mixed_);
  gated.gate = &w.gate;
  const only up(w.adapters.up), gate(w.adapters.gate);
  multiply({{gated, up, gate}});
  return mixed_;
}

}  // namespace llm
