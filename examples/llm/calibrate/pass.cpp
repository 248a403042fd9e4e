#include "pass.hpp"

#include "../files/names.hpp"
#include "outliers.hpp"

#include <lowbit/format/gguf.hpp>

#include <algorithm>

namespace llm {
namespace {

named_weights one(std::string name, weights w) {
  named_weights step;
  step.emplace(std::move(name), std::move(w));
  return step;
}

}  // namespace

/// A layer that is being quantised: as floats, changed by folds; what runs so far; what is finished.
struct calibration_pass::layer_in_work {
  std::size_t number;
  float_layer floats;
  layer_weights running;
  named_weights finished;

  [[nodiscard]] std::string name_of(part p) const { return layer_name(number, info_of(p).name); }
};

lowbit::result<weights> calibration_pass::quantise(const std::string& name, const matrix& w, const lowbit::layer_statistics* about) const {
  const lowbit::format_id format = format_of(name);
  const auto made = [&]() -> lowbit::result<weights> {
    if (format == lowbit::id_of<lowbit::f32>()) return stored_floats(w.row(0), w.rows(), w.cols());
    if (method_.channels == channel_scaling::none && !method_.outliers) {
      auto kept = kept_as_stored(*model_.find(name), how_, threads_);
      if (!kept) return std::move(kept).error();
      if (*kept) return **std::move(kept);
    }
    auto packed = quantise_by(method_, format, lowbit::view(w), about, threads_);
    if (!packed) return lowbit::failure{packed.error().kind, "tensor " + name + ": " + packed.error().message};
    return weights{*std::move(packed)};
  };
  auto out = made();
  if (out && observer_) observer_(name, w, *out, about);
  return out;
}

lowbit::result<lowbit::layer_statistics> calibration_pass::final_statistics() {
  const auto norm = floats_.read_vector("output_norm.weight");
  if (!norm) return norm.error();
  return states_.statistics_behind(*norm);
}

lowbit::status calibration_pass::pass_unquantised(const matrix& embedding) {
  states_.start(panels_of(embedding, threads_));
  for (std::size_t i = 0; i < model_.config.layers; ++i) {
    const auto floats = floats_.read_layer(i);
    if (!floats) return floats.error();
    const layer_weights w = panels_of(*floats, threads_);
    states_.pass_attention(w);
    states_.pass_mlp(w);
  }
  return lowbit::done{};
}

lowbit::status calibration_pass::quantise_embedding(step_store& store) {
  const std::string name = "token_embd.weight";
  const auto floats = floats_.read(name);
  if (!floats) return floats.error();
  std::optional<lowbit::layer_statistics> about;
  if (is_tied() && !lowbit::spec_of_id(format_of(name)).is_float()) {
    if (lowbit::status s = pass_unquantised(*floats); !s) return s;
    auto found = final_statistics();
    if (!found) return std::move(found).error();
    about = *std::move(found);
  }
  auto w = quantise(name, *floats, about ? &*about : nullptr);
  if (!w) return std::move(w).error();
  return store.keep(one(name, *std::move(w)));
}

lowbit::status calibration_pass::quantise_head(step_store& store) {
  const std::string name = "output.weight";
  const auto floats = floats_.read(name);
  if (!floats) return floats.error();
  const auto about = final_statistics();
  if (!about) return about.error();
  auto w = quantise(name, *floats, &*about);
  if (!w) return std::move(w).error();
  return store.keep(one(name, *std::move(w)));
}

void calibration_pass::choose_scales(input_group g, layer_in_work& layer, lowbit::layer_statistics& about) {
  std::vector<lowbit::matrix_view<const float>> consumers;
  for (const part p : consumers_of(g)) consumers.push_back(lowbit::view(std::as_const(layer.floats)[p]));
  const std::vector<std::uint32_t> from = producer_channels(g, model_.config);
  const lowbit::input_scales scales = scales_of(method_, format_of(layer.name_of(consumers_of(g)[0])), consumers, about, from, threads_);
  fold(layer.floats, g, scales, from);
  about.divide(scales);
  layer.running.attention_norm = layer.floats.attention_norm;
  layer.running.mlp_norm = layer.floats.mlp_norm;
}

lowbit::status calibration_pass::quantise_group(input_group g, layer_in_work& layer, const lowbit::layer_statistics& about) {
  const std::vector<std::uint32_t> apart = method_.outliers ? outliers_among(about) : std::vector<std::uint32_t>();
  for (const part p : consumers_of(g)) {
    const std::string name = layer.name_of(p);
    if (!apart.empty() && !lowbit::spec_of_id(format_of(name)).is_float())
      keep_outliers(layer.finished, name, take_columns(layer.floats[p], apart), apart);
    auto q = quantise(name, layer.floats[p], &about);
    if (!q) return std::move(q).error();
    layer.running.*info_of(p).weights = lowbit::panel_matrix::from(q->view(), threads_);
    layer.finished.emplace(name, *std::move(q));
    run_outliers(layer.running, p, layer.number, [&](const std::string& of) {
      const auto found = layer.finished.find(of);
      return found == layer.finished.end() ? nullptr : &found->second;
    });
  }
  return lowbit::done{};
}

lowbit::status calibration_pass::quantise_half(input_group first, input_group second, layer_in_work& layer) {
  lowbit::layer_statistics about = states_.statistics_of(first, layer.running);
  if (method_.channels != channel_scaling::none) {
    // All scales are chosen before anything is rounded, since the second group's are folded into a matrix of the first.
    choose_scales(first, layer, about);
    for (const part p : consumers_of(first)) layer.running.*info_of(p).weights = panels_of(layer.floats[p], threads_);
    lowbit::layer_statistics behind = states_.statistics_of(second, layer.running);
    choose_scales(second, layer, behind);
  }
  if (lowbit::status s = quantise_group(first, layer, about); !s) return s;
  return quantise_group(second, layer, states_.statistics_of(second, layer.running));
}

lowbit::status calibration_pass::quantise_layer(std::size_t number, step_store& store) {
  auto floats = floats_.read_layer(number);
  if (!floats) return std::move(floats).error();
  layer_in_work layer{number, *std::move(floats), {}, {}};
  layer.running.attention_norm = layer.floats.attention_norm;
  layer.running.mlp_norm = layer.floats.mlp_norm;
  if (lowbit::status s = quantise_half(input_group::attention, input_group::attention_output, layer); !s) return s;
  states_.pass_attention(layer.running);
  if (lowbit::status s = quantise_half(input_group::mlp, input_group::mlp_output, layer); !s) return s;
  states_.pass_mlp(layer.running);
  for (const auto& [name, norm] : {std::pair{"attn_norm.weight", &layer.floats.attention_norm}, std::pair{"ffn_norm.weight", &layer.floats.mlp_norm}})
    layer.finished.emplace(layer_name(number, name), stored_floats(norm->data(), 1, norm->size()));
  return store.keep(std::move(layer.finished));
}

void calibration_pass::pass_finished(std::size_t layer, const step_store& store) {
  layer_weights w;
  for (const auto& [name, norm] : {std::pair{"attn_norm.weight", &w.attention_norm}, std::pair{"ffn_norm.weight", &w.mlp_norm}}) {
    const lowbit::packed_view stored = store.find(layer_name(layer, name))->view();
    norm->resize(stored.cols);
    lowbit::decode(stored, {norm->data(), 1, stored.cols});
  }
  const auto find = [&](const std::string& name) { return store.find(name); };
  for (const part p : all_parts) {
    w.*info_of(p).weights = lowbit::panel_matrix::from(find(layer_name(layer, info_of(p).name))->view(), threads_);
    run_outliers(w, p, layer, find);
  }
  states_.pass_attention(w);
  states_.pass_mlp(w);
}

lowbit::status calibration_pass::run(step_store& store, const std::function<void(std::size_t, std::size_t)>& progress) {
  const std::size_t layers = model_.config.layers, steps = 1 + layers + !is_tied(), before = store.finished();
  const auto report = [&](std::size_t step) {
    if (progress) progress(step - std::min(step, before), steps - before);
  };
  if (before >= steps) return lowbit::done{};
  report(0);
  if (before == 0)
    if (lowbit::status s = quantise_embedding(store); !s) return s;
  states_.start(lowbit::panel_matrix::from(store.find("token_embd.weight")->view(), threads_));
  for (std::size_t i = 0; i < layers; ++i) {
    report(1 + i);
    if (1 + i < before) pass_finished(i, store);
    else if (lowbit::status s = quantise_layer(i, store); !s) return s;
  }
  report(1 + layers);
  if (is_tied()) return lowbit::done{};
  return quantise_head(store);
}

}  // namespace llm
