#include "llama.hpp"

#include <cstring>

namespace llm {

const matrix& session::feed(std::span<const int> tokens, std::size_t wanted) {
  const model_config& c = model_.config;
  LOWBIT_EXPECTS(wanted <= tokens.size() && tokens.size() <= cache_.capacity() - cache_.size());
  const std::size_t count = tokens.size();
  x_.resize(count, c.hidden);
  for (std::size_t t = 0; t < count; ++t) {
    LOWBIT_EXPECTS(tokens[t] >= 0 && static_cast<std::size_t>(tokens[t]) < c.vocabulary);
    lowbit::read_row(model_.embedding, static_cast<std::size_t>(tokens[t]), x_.row(t));
  }
  steps_.place(cache_.size(), count);
  for (std::size_t layer = 0; layer < c.layers && count != 0; ++layer) {
    const layer_weights& w = model_.layers[layer];
    steps_.add(steps_.attend(steps_.normalise(x_, w.attention_norm), w, cache_, layer), w.output, w.adapters.output, x_);
    steps_.add(steps_.gate(steps_.normalise(x_, w.mlp_norm), w), w.down, w.adapters.down, x_);
  }
  cache_.advance(count);

  last_.resize(wanted, c.hidden);
  if (wanted != 0) std::memcpy(last_.row(0), x_.row(count - wanted), wanted * c.hidden * sizeof(float));
  steps_.multiply(steps_.normalise(last_, model_.norm), model_.output_matrix(), logits_);
  return logits_;
}

}  // namespace llm
