#include "float_weights.hpp"

#include "../files/names.hpp"

#include <lowbit/format/gguf.hpp>

#include <cstring>

namespace llm {

lowbit::result<matrix> float_weights::read(const std::string& name) const {
  const tensor& t = *model_.find(name);
  const auto source = read_floats(t, how_, threads_);
  if (!source) return source.error();
  const lowbit::packed_view w = source->view();
  matrix out(w.rows, w.cols);
  std::memcpy(out.row(0), w.data, w.size_bytes());
  return out;
}

lowbit::result<std::vector<float>> float_weights::read_vector(const std::string& name) const {
  const auto m = read(name);
  if (!m) return m.error();
  return std::vector<float>(m->row(0), m->row(0) + m->cols());
}

lowbit::result<float_layer> float_weights::read_layer(std::size_t layer) const {
  float_layer out;
  for (const auto& [name, vector] : {std::pair{"attn_norm.weight", &out.attention_norm}, std::pair{"ffn_norm.weight", &out.mlp_norm}}) {
    auto v = read_vector(layer_name(layer, name));
    if (!v) return std::move(v).error();
    *vector = *std::move(v);
  }
  for (const part p : all_parts) {
    auto m = read(layer_name(layer, info_of(p).name));
    if (!m) return std::move(m).error();
    out[p] = *std::move(m);
  }
  return out;
}

lowbit::panel_matrix panels_of(const matrix& m, thread_pool& threads) {
  return lowbit::panel_matrix::from({&lowbit::spec_of<lowbit::f32>, m.rows(), m.cols(), reinterpret_cast<const std::uint8_t*>(m.row(0))}, threads);
}

layer_weights panels_of(const float_layer& layer, thread_pool& threads) {
  layer_weights out;
  out.attention_norm = layer.attention_norm;
  out.mlp_norm = layer.mlp_norm;
  for (const part p : all_parts) out.*info_of(p).weights = panels_of(layer[p], threads);
  return out;
}

}  // namespace llm
