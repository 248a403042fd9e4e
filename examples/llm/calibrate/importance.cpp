#include "importance.hpp"

#include "../files/names.hpp"
#include "walk.hpp"

namespace llm {

lowbit::result<lowbit::imatrix> gather_importance(const checkpoint& model, const requantisation& how, const calibration_samples& samples,
                                                  thread_pool& threads, const std::function<void(std::size_t, std::size_t)>& progress) {
  const float_weights floats{model, how, threads};
  const auto embedding = floats.read("token_embd.weight");
  if (!embedding) return embedding.error();
  walk states{model.config, samples.sequences, threads};
  states.start(panels_of(*embedding, threads));
  std::size_t longest = 0;
  for (const auto& ids : samples.sequences) longest = std::max(longest, ids.size());
  const auto tokens = static_cast<float>(samples.tokens());

  lowbit::imatrix m;
  m.datasets = {samples.source};
  m.chunk_count = static_cast<std::uint32_t>(samples.sequences.size());
  m.chunk_size = static_cast<std::uint32_t>(longest);
  for (std::size_t i = 0; i < model.config.layers; ++i) {
    progress(i, model.config.layers);
    const auto layer = floats.read_layer(i);
    if (!layer) return layer.error();
    const layer_weights w = panels_of(*layer, threads);
    const auto gather = [&](input_group g) {
      lowbit::calibrated<lowbit::channel_importance> about{channels_of(g, model.config)};
      states.add_inputs(g, w, about);
      const Eigen::VectorXf sums = about.get<lowbit::channel_importance>().mean() * tokens;
      for (const part p : consumers_of(g))
        m.entries.push_back({layer_name(i, info_of(p).name), {sums.begin(), sums.end()}, {tokens}});
    };
    gather(input_group::attention);
    gather(input_group::attention_output);
    states.pass_attention(w);
    gather(input_group::mlp);
    gather(input_group::mlp_output);
    states.pass_mlp(w);
  }
  return m;
}

}  // namespace llm
