#include "allocation.hpp"

#include "../files/names.hpp"
#include "float_weights.hpp"
#include "walk.hpp"

#include <lowbit/quantise/allocate_mix.hpp>

#include <algorithm>

namespace llm {
namespace {

lowbit::result<std::vector<lowbit::format_override>> read_overrides(const std::vector<std::string>& texts, const checkpoint& model) {
  std::vector<lowbit::format_override> all;
  for (const std::string& text : texts) {
    const std::size_t at = text.find('=');
    if (at == text.npos || at == 0)
      return lowbit::failure{lowbit::errc::bad_value, "--override " + text + ": not of the form PATTERN=FORMAT"};
    const auto format = format_named(text.substr(at + 1));
    if (!format) return format.error();
    const std::string pattern = text.substr(0, at);
    bool used = false;
    for (const tensor& t : model.tensors) used |= !t.is_vector && lowbit::glob_match(pattern, t.name);
    if (!used) return lowbit::failure{lowbit::errc::not_found, "--override " + text + ": no matrix of the model is called that"};
    all.push_back({pattern, *format});
  }
  return all;
}

/// Σ |a - b|² / Σ |b|² over all rows; with `centred`, each row less its mean first: what a softmax makes no difference of.
double relative_change(const std::vector<matrix>& changed, const std::vector<matrix>& base, bool centred = false) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < base.size(); ++i)
    for (std::size_t r = 0; r < base[i].rows(); ++r) {
      const std::size_t n = base[i].cols();
      Eigen::ArrayXd b = array_of(base[i].row(r), n).cast<double>(), e = array_of(changed[i].row(r), n).cast<double>() - b;
      if (centred) {
        e -= e.mean();
        b -= b.mean();
      }
      error += e.square().sum();
      size += b.square().sum();
    }
  return size > 0 ? error / size : 0;
}

/// Measures what each format costs each matrix, one after the other on the way through the float model.
class sensitivity {
 public:
  sensitivity(const checkpoint& model, lowbit::format_id format, const windows& sequences, thread_pool& threads)
      : model_(model), how_{format, lowbit::method::rtn, {}, model.config.head_dim}, threads_(threads),
        floats_(model, how_, threads), states_(model.config, sequences, threads) {}

  lowbit::result<std::vector<lowbit::allocated_tensor>> measure(const std::function<void(std::size_t, std::size_t)>& progress) {
    const bool tied = model_.find("output.weight") == nullptr;
    const auto embedding = floats_.read("token_embd.weight");
    if (!embedding) return embedding.error();
    const lowbit::panel_matrix embedding_panels = panels_of(*embedding, threads_);
    states_.start(embedding_panels);
    const std::vector<matrix> start = states_.states();
    if (auto s = try_formats("token_embd.weight", *embedding, [&](lowbit::panel_matrix& w) {
          states_.start(w);
          return relative_change(states_.states(), start);
        }); !s)
      return std::move(s).error();
    states_.start(embedding_panels);
    for (std::size_t i = 0; i < model_.config.layers; ++i) {
      if (progress) progress(i, model_.config.layers);
      const auto floats = floats_.read_layer(i);
      if (!floats) return floats.error();
      layer_weights w = panels_of(*floats, threads_);
      for (const bool mlp : {false, true}) {
        const auto pass = [&] { return mlp ? states_.behind_mlp(w) : states_.behind_attention(w); };
        const std::vector<matrix> base = pass();
        for (const input_group g : input_groups) {
          if ((g == input_group::mlp || g == input_group::mlp_output) != mlp) continue;
          for (const part p : consumers_of(g)) {
            lowbit::panel_matrix& running = w.*info_of(p).weights;
            lowbit::panel_matrix exact = std::move(running);
            if (auto s = try_formats(layer_name(i, info_of(p).name), (*floats)[p], [&](lowbit::panel_matrix& changed) {
                  running = std::move(changed);
                  return relative_change(pass(), base);
                }); !s)
              return std::move(s).error();
            running = std::move(exact);
          }
        }
        mlp ? states_.pass_mlp(w) : states_.pass_attention(w);
      }
    }
    const auto norm = floats_.read_vector("output_norm.weight");
    if (!norm) return norm.error();
    const std::string head = tied ? "token_embd.weight" : "output.weight";
    const auto floats = floats_.read(head);
    if (!floats) return floats.error();
    const std::vector<matrix> logits = states_.outputs(*norm, panels_of(*floats, threads_));
    if (auto s = try_formats(head, *floats, [&](const lowbit::panel_matrix& w) { return relative_change(states_.outputs(*norm, w), logits, true); }); !s)
      return std::move(s).error();
    return std::move(measured_);
  }

 private:
  /// Adds cost(panels) of every candidate to those of the tensor.
  template <class Cost>
  lowbit::status try_formats(const std::string& name, const matrix& w, Cost&& cost) {
    const auto found = std::find_if(measured_.begin(), measured_.end(), [&](const auto& t) { return t.name == name; });
    const bool known = found != measured_.end();
    lowbit::allocated_tensor& t = known ? *found : measured_.emplace_back(lowbit::allocated_tensor{name, {}});
    const lowbit::format_id candidates[] = {lowbit::id_of<lowbit::q2_k>(), lowbit::id_of<lowbit::q3_k>(), lowbit::id_of<lowbit::q4_k>(),
                                            lowbit::id_of<lowbit::q5_k>(), lowbit::id_of<lowbit::q6_k>(), lowbit::id_of<lowbit::q8_0>(),
                                            lowbit::id_of<lowbit::iq4_nl>(), lowbit::id_of<lowbit::q5_0>()};
    for (std::size_t i = 0; i < std::size(candidates); ++i) {
      const lowbit::format_id format = lowbit::fallback_format(candidates[i], w.cols());
      const auto packed = lowbit::quantise(format, lowbit::method::rtn, lowbit::view(w), threads_);
      if (!packed) return lowbit::failure{packed.error().kind, "tensor " + name + ": " + packed.error().message};
      lowbit::panel_matrix panels = lowbit::panel_matrix::from(packed->view(), threads_);
      const double c = cost(panels);
      if (known) t.options[i].cost += c;
      else t.options.push_back({format, c, *lowbit::stored_bytes(format, w.rows(), w.cols())});
    }
    return lowbit::done{};
  }

  const checkpoint& model_;
  requantisation how_;
  thread_pool& threads_;
  float_weights floats_;
  walk states_;
  std::vector<lowbit::allocated_tensor> measured_;
};

}  // namespace

lowbit::status allocate_formats(checkpoint& model, lowbit::format_id format, const format_choice& choice, const calibration_samples& samples,
                                thread_pool& threads, const std::function<void(std::size_t, std::size_t)>& progress, std::size_t tokens) {
  if (!in_gguf(format)) return lowbit::failure{lowbit::errc::unsupported, "--budget needs a format of GGUF's, whose files may mix formats"};
  windows some;
  for (std::size_t i = 0, n = 0; i < samples.sequences.size() && n < tokens; n += samples.sequences[i++].size()) some.push_back(samples.sequences[i]);
  auto measured = sensitivity{model, format, some, threads}.measure(progress);
  if (!measured) return std::move(measured).error();
  std::uint64_t parameters = 0;
  for (lowbit::allocated_tensor& t : *measured) {
    const tensor& known = *model.find(t.name);
    parameters += known.rows * known.cols;
    if (known.wanted) {  // by an override
      const lowbit::format_id forced = target_format(known, format);
      t.options = {{forced, 0.0, *lowbit::stored_bytes(forced, known.rows, known.cols)}};
    }
  }
  const auto best = lowbit::allocate(*measured, static_cast<std::uint64_t>(choice.budget * static_cast<double>(parameters) / 8.0));
  if (!best) return best.error();
  for (tensor& t : model.tensors)
    for (std::size_t i = 0; i < measured->size(); ++i)
      if ((*measured)[i].name == t.name) t.wanted = (*measured)[i].options[best->choice[i]].format;
  return lowbit::done{};
}

lowbit::result<lowbit::format_id> choose_formats(checkpoint& model, const format_choice& choice, bool has_importance) {
  const auto overrides = read_overrides(choice.overrides, model);
  if (!overrides) return overrides.error();
  // Some mixes are named as their main format is. llama.cpp writes mixes in capitals, GGUF's tools formats without.
  const bool capitals = std::any_of(choice.format.begin(), choice.format.end(), [](char ch) { return ch >= 'A' && ch <= 'Z'; });
  const auto mix = !capitals && lowbit::find_format(choice.format) ? std::nullopt : lowbit::find_mix(choice.format);
  lowbit::format_id whole{};
  if (mix) {
    whole = lowbit::entry_of(*mix).format;
    model.notes.set("general.file_type", static_cast<std::uint32_t>(lowbit::entry_of(*mix).file_type));
  } else {
    const auto format = format_named(choice.format);
    if (!format) return format.error();
    whole = *format;
  }
  const model_config& c = model.config;
  const lowbit::mix_model shape{.layers = c.layers, .heads = c.heads, .kv_heads = c.kv_heads, .experts = 0,
                                .tied = model.find("output.weight") == nullptr, .has_importance = has_importance};
  for (tensor& t : model.tensors) {
    if (t.is_vector) continue;
    t.wanted = mix ? lowbit::mix_format(*mix, t.name, 2, t.cols, shape) : std::nullopt;
    if (const auto forced = lowbit::overridden(*overrides, t.name)) t.wanted = forced;
    if (t.wanted && in_gguf(*t.wanted) != in_gguf(whole))
      return lowbit::failure{lowbit::errc::unsupported, "tensor " + t.name + ": no file holds both " + std::string(lowbit::spec_of_id(*t.wanted).name) + " and " +
                                                            std::string(lowbit::spec_of_id(whole).name)};
  }
  return whole;
}

}  // namespace llm
