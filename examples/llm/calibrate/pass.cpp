#include "pass.hpp"

#include "../engine/elementwise.hpp"
#include "../files/names.hpp"

#include <lowbit/format/gguf.hpp>

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

weights stored_floats(const float* values, std::size_t rows, std::size_t cols) {
  lowbit::packed_matrix out{lowbit::spec_of<lowbit::f32>, rows, cols};
  std::memcpy(out.bytes().data(), values, rows * cols * sizeof(float));
  return weights{std::move(out)};
}

}  // namespace

calibration_pass::calibration_pass(const checkpoint& model, const requantisation& how, const recipe& method, const calibration_samples& samples,
                                   thread_pool& threads)
    : model_(model), how_(how), method_(method), samples_(samples), threads_(threads), config_(one_layer_of(model.config)),
      cache_(config_, longest(samples.sequences)), steps_(config_, threads, lowbit::precision::exact) {}

// ---- weights in and out

lowbit::result<matrix> calibration_pass::floats_of(const std::string& name) const {
  const auto read = read_floats(*model_.find(name), how_, threads_);
  if (!read) return read.error();
  const lowbit::packed_view w = read->view();
  matrix out(w.rows, w.cols);
  std::memcpy(out.row(0), w.data, w.size_bytes());
  return out;
}

lowbit::result<std::vector<float>> calibration_pass::vector_of(const std::string& name) const {
  auto m = floats_of(name);
  if (!m) return std::move(m).error();
  return std::vector<float>(m->row(0), m->row(0) + m->cols());
}

lowbit::result<float_layer> calibration_pass::floats_of_layer(std::size_t layer) const {
  float_layer out;
  for (const auto& [name, vector] : {std::pair{"attn_norm.weight", &out.attention_norm}, std::pair{"ffn_norm.weight", &out.mlp_norm}}) {
    auto v = vector_of(layer_name(layer, name));
    if (!v) return std::move(v).error();
    *vector = *std::move(v);
  }
  for (std::size_t p = 0; p < part_count; ++p) {
    auto m = floats_of(layer_name(layer, parts[p].name));
    if (!m) return std::move(m).error();
    out.weights[p] = *std::move(m);
  }
  return out;
}

lowbit::result<weights> calibration_pass::quantise(const std::string& name, const matrix& w, const lowbit::layer_statistics* about) const {
  const lowbit::format_id format = target_format(*model_.find(name), how_.format);
  if (format == lowbit::id_of<lowbit::f32>()) return stored_floats(w.row(0), w.rows(), w.cols());
  auto packed = quantise_by(method_, format, lowbit::view(w), about, threads_);
  if (!packed) return lowbit::failure{packed.error().kind, "tensor " + name + ": " + packed.error().message};
  return weights{*std::move(packed)};
}

lowbit::result<layer_weights> calibration_pass::finished_layer(const step_store& store, std::size_t layer) const {
  layer_weights out;
  for (const auto& [name, vector] : {std::pair{"attn_norm.weight", &out.attention_norm}, std::pair{"ffn_norm.weight", &out.mlp_norm}}) {
    const weights* const w = store.find(layer_name(layer, name));
    vector->assign(reinterpret_cast<const float*>(w->view().data), reinterpret_cast<const float*>(w->view().data) + w->view().cols);
  }
  for (const part_info& p : parts) out.*p.weights = lowbit::panel_matrix::from(store.find(layer_name(layer, p.name))->view(), threads_);
  return out;
}

lowbit::panel_matrix calibration_pass::panels_of(const matrix& m) const {
  return lowbit::panel_matrix::from({&lowbit::spec_of<lowbit::f32>, m.rows(), m.cols(), reinterpret_cast<const std::uint8_t*>(m.row(0))}, threads_);
}

// ---- hidden states

template <class F>
void calibration_pass::for_each_sequence(F&& f) {
  for (matrix& x : states_) {
    steps_.place(0, x.rows());
    cache_.clear();
    f(x);
  }
}

void calibration_pass::start(const lowbit::panel_matrix& embedding) {
  states_.clear();
  for (const auto& ids : samples_.sequences) {
    matrix& x = states_.emplace_back(ids.size(), config_.hidden);
    for (std::size_t t = 0; t < ids.size(); ++t) lowbit::read_row(embedding, static_cast<std::size_t>(ids[t]), x.row(t));
  }
}

const matrix& calibration_pass::inputs_of(input_group g, const layer_weights& w, const matrix& x) {
  switch (g) {
    case input_group::attention: return steps_.normalise(x, w.attention_norm);
    case input_group::attention_output: return steps_.attend(steps_.normalise(x, w.attention_norm), w, cache_, 0);
    case input_group::mlp: return steps_.normalise(x, w.mlp_norm);
    case input_group::mlp_output: break;
  }
  return steps_.gate(steps_.normalise(x, w.mlp_norm), w);
}

lowbit::layer_statistics calibration_pass::statistics_of(input_group g, const layer_weights& w) {
  lowbit::layer_statistics about(channels_of(g, config_));
  for_each_sequence([&](const matrix& x) { about.add(lowbit::view(inputs_of(g, w, x)), threads_); });
  return about;
}

void calibration_pass::pass_attention(const layer_weights& w) {
  for_each_sequence([&](matrix& x) { steps_.add(inputs_of(input_group::attention_output, w, x), w.output, x); });
}

void calibration_pass::pass_mlp(const layer_weights& w) {
  for_each_sequence([&](matrix& x) { steps_.add(inputs_of(input_group::mlp_output, w, x), w.down, x); });
}

// ---- the steps

lowbit::result<lowbit::layer_statistics> calibration_pass::final_statistics() {
  const auto norm = vector_of("output_norm.weight");
  if (!norm) return norm.error();
  lowbit::layer_statistics about(config_.hidden);
  for_each_sequence([&](const matrix& x) { about.add(lowbit::view(steps_.normalise(x, *norm)), threads_); });
  return about;
}

lowbit::status calibration_pass::pass_unquantised(const matrix& embedding) {
  start(panels_of(embedding));
  for (std::size_t i = 0; i < model_.config.layers; ++i) {
    const auto floats = floats_of_layer(i);
    if (!floats) return floats.error();
    layer_weights w{floats->attention_norm, floats->mlp_norm, {}, {}, {}, {}, {}, {}, {}};
    for (const part p : all_parts) w.*info_of(p).weights = panels_of((*floats)[p]);
    pass_attention(w);
    pass_mlp(w);
  }
  return lowbit::done{};
}

lowbit::status calibration_pass::quantise_embedding(step_store& store) {
  const std::string name = "token_embd.weight";
  const auto floats = floats_of(name);
  if (!floats) return floats.error();
  std::optional<lowbit::layer_statistics> about;
  const bool tied = model_.find("output.weight") == nullptr;
  if (tied && !lowbit::spec_of_id(target_format(*model_.find(name), how_.format)).is_float()) {
    if (lowbit::status s = pass_unquantised(*floats); !s) return s;
    auto found = final_statistics();
    if (!found) return std::move(found).error();
    about = *std::move(found);
  }
  auto w = quantise(name, *floats, about ? &*about : nullptr);
  if (!w) return std::move(w).error();
  named_weights step;
  step.emplace(name, *std::move(w));
  return store.keep(std::move(step));
}

void calibration_pass::scale(input_group g, float_layer& floats, std::size_t layer, lowbit::layer_statistics& about) {
  std::vector<lowbit::matrix_view<const float>> consumers;
  for (const part p : consumers_of(g)) consumers.push_back(lowbit::view(std::as_const(floats)[p]));
  const std::vector<std::uint32_t> from = producer_channels(g, config_);
  const tensor& first = *model_.find(layer_name(layer, info_of(consumers_of(g)[0]).name));
  const lowbit::input_scales scales = scales_of(method_, target_format(first, how_.format), consumers, about, from, threads_);
  fold(floats, g, scales, from);
  about.divide(scales);
}

lowbit::status calibration_pass::quantise_group(input_group g, const float_layer& floats, std::size_t layer, const lowbit::layer_statistics& about,
                                                layer_weights& w, named_weights& step) {
  for (const part p : consumers_of(g)) {
    const std::string name = layer_name(layer, info_of(p).name);
    auto q = quantise(name, floats[p], &about);
    if (!q) return std::move(q).error();
    w.*info_of(p).weights = lowbit::panel_matrix::from(q->view(), threads_);
    step.emplace(name, *std::move(q));
  }
  return lowbit::done{};
}

lowbit::status calibration_pass::quantise_half(input_group first, input_group second, float_layer& floats, std::size_t layer, layer_weights& w,
                                               named_weights& step) {
  std::vector<float>& norm = first == input_group::attention ? w.attention_norm : w.mlp_norm;
  const std::vector<float>& folded = first == input_group::attention ? floats.attention_norm : floats.mlp_norm;
  norm = folded;
  lowbit::layer_statistics about = statistics_of(first, w);
  if (method_.channels != channel_scaling::none) {
    // All scales are chosen before anything is rounded, since the second group's are folded into a matrix of the first.
    scale(first, floats, layer, about);
    norm = folded;
    for (const part p : consumers_of(first)) w.*info_of(p).weights = panels_of(floats[p]);
    lowbit::layer_statistics behind = statistics_of(second, w);
    scale(second, floats, layer, behind);
  }
  if (lowbit::status s = quantise_group(first, floats, layer, about, w, step); !s) return s;
  return quantise_group(second, floats, layer, statistics_of(second, w), w, step);
}

lowbit::status calibration_pass::quantise_layer(std::size_t layer, step_store& store) {
  auto floats = floats_of_layer(layer);
  if (!floats) return std::move(floats).error();
  layer_weights w;
  named_weights step;
  if (auto s = quantise_half(input_group::attention, input_group::attention_output, *floats, layer, w, step); !s) return s;
  pass_attention(w);
  if (auto s = quantise_half(input_group::mlp, input_group::mlp_output, *floats, layer, w, step); !s) return s;
  pass_mlp(w);
  for (const auto& [name, vector] : {std::pair{"attn_norm.weight", &w.attention_norm}, std::pair{"ffn_norm.weight", &w.mlp_norm}})
    step.emplace(layer_name(layer, name), stored_floats(vector->data(), 1, vector->size()));
  return store.keep(std::move(step));
}

lowbit::status calibration_pass::quantise_head(step_store& store) {
  const std::string name = "output.weight";
  const auto floats = floats_of(name);
  if (!floats) return floats.error();
  const auto about = final_statistics();
  if (!about) return about.error();
  auto w = quantise(name, *floats, &*about);
  if (!w) return std::move(w).error();
  named_weights step;
  step.emplace(name, *std::move(w));
  return store.keep(std::move(step));
}

lowbit::status calibration_pass::run(step_store& store, const std::function<void(std::size_t, std::size_t)>& progress) {
  const std::size_t layers = model_.config.layers, steps = 1 + layers + (model_.find("output.weight") != nullptr), before = store.finished();
  const auto report = [&](std::size_t step) {
    if (progress) progress(step - std::min(step, before), steps - before);
  };
  report(0);
  if (before == 0)
    if (lowbit::status s = quantise_embedding(store); !s) return s;
  if (before == steps) return lowbit::done{};
  start(lowbit::panel_matrix::from(store.find("token_embd.weight")->view(), threads_));
  for (std::size_t i = 0; i < layers; ++i) {
    report(1 + i);
    if (1 + i < before) {
      const auto w = finished_layer(store, i);
      if (!w) return w.error();
      pass_attention(*w);
      pass_mlp(*w);
    } else if (lowbit::status s = quantise_layer(i, store); !s) {
      return s;
    }
  }
  report(1 + layers);
  if (1 + layers < steps && before < steps) return quantise_head(store);
  return lowbit::done{};
}

}  // namespace llm
