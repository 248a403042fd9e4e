#include "walk.hpp"

#include <algorithm>

namespace llm {
namespace {

model_config one_layer_of(model_config c) {
  c.layers = 1;
  return c;
}

std::size_t longest(const windows& w) {
  std::size_t n = 0;
  for (const auto& ids : w) n = std::max(n, ids.size());
  return n;
}

}  // namespace

walk::walk(const model_config& c, const windows& sequences, thread_pool& threads)
    : sequences_(sequences), threads_(threads), config_(one_layer_of(c)), cache_(config_, longest(sequences)),
      steps_(config_, threads, lowbit::precision::exact) {}

void walk::start(const lowbit::panel_matrix& embedding) {
  states_.clear();
  for (const auto& ids : sequences_) {
    matrix& x = states_.emplace_back(ids.size(), config_.hidden);
    for (std::size_t t = 0; t < ids.size(); ++t) lowbit::read_row(embedding, static_cast<std::size_t>(ids[t]), x.row(t));
  }
}

const matrix& walk::inputs_of(input_group g, const layer_weights& w, const matrix& x) {
  switch (g) {
    case input_group::attention: return steps_.normalise(x, w.attention_norm);
    case input_group::attention_output:
      steps_.place(0, x.rows());
      cache_.clear();  // each sequence is on its own
      return steps_.attend(steps_.normalise(x, w.attention_norm), w, cache_, 0);
    case input_group::mlp: return steps_.normalise(x, w.mlp_norm);
    case input_group::mlp_output: break;
  }
  return steps_.gate(steps_.normalise(x, w.mlp_norm), w);
}

lowbit::layer_statistics walk::statistics_of(input_group g, const layer_weights& w) {
  lowbit::layer_statistics about(channels_of(g, config_));
  add_inputs(g, w, about);
  return about;
}

lowbit::layer_statistics walk::statistics_behind(const std::vector<float>& norm) {
  lowbit::layer_statistics about(config_.hidden);
  for (const matrix& x : states_) about.add(lowbit::view(steps_.normalise(x, norm)), threads_);
  return about;
}

void walk::pass_attention(const layer_weights& w) {
  for (matrix& x : states_) steps_.add(inputs_of(input_group::attention_output, w, x), w.output, w.adapters.output, x);
}

void walk::pass_mlp(const layer_weights& w) {
  for (matrix& x : states_) steps_.add(inputs_of(input_group::mlp_output, w, x), w.down, w.adapters.down, x);
}

std::vector<matrix> walk::behind_attention(const layer_weights& w) {
  std::vector<matrix> out = states_;
  pass_attention(w);
  std::swap(out, states_);
  return out;
}

std::vector<matrix> walk::behind_mlp(const layer_weights& w) {
  std::vector<matrix> out = states_;
  pass_mlp(w);
  std::swap(out, states_);
  return out;
}

std::vector<matrix> walk::outputs(const std::vector<float>& norm, const lowbit::panel_matrix& w) {
  std::vector<matrix> out(states_.size());
  for (std::size_t i = 0; i < states_.size(); ++i) steps_.multiply(steps_.normalise(states_[i], norm), w, out[i]);
  return out;
}

}  // namespace llm
