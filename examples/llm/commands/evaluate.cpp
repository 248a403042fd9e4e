// `lowbit evaluate MODEL [--adapter A] [--reference MODEL] --text FILE`
#include "loading.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

namespace llm {
namespace {

struct options {
  std::string model, reference, text, quantise, kv_format;
  std::vector<std::string> adapters;
  std::size_t context = 0, tokens = 0;
  lowbit::precision activations = lowbit::precision::automatic;
};

lowbit::status run(const options& o, const common_options& common) {
  thread_pool threads{common.threads};
  const auto source = quantised_source(o.quantise, threads);
  if (!source) return source.error();
  auto model = o.quantise.empty() ? load_model(o.model, common, threads) : load_model(o.model, common, threads, *source);
  if (!model) return std::move(model).error();
  const auto kv_format = kv_format_named(o.kv_format);
  if (!kv_format) return kv_format.error();
  if (lowbit::status s = attach_adapters(*model, o.model, o.adapters, threads); !s) return s;
  const std::size_t context = sequence_length(o.context, 512, model->file.config);
  auto windows = windows_of_text(o.text, model->words, context, o.tokens);
  if (!windows) return std::move(windows).error();

  session s{*model->model, context, threads, o.activations, *kv_format};
  std::unique_ptr<session> reference_session;
  logit_source reference_logits;
  loaded_model reference;
  if (!o.reference.empty()) {
    auto loaded = load_model(o.reference, common, threads, as_float32(threads));
    if (!loaded) return std::move(loaded).error();
    reference = *std::move(loaded);
    if (reference.model->config.vocabulary != model->model->config.vocabulary || reference.words.data().pieces != model->words.data().pieces)
      return lowbit::failure{lowbit::errc::shape, o.reference + ": has another vocabulary than " + o.model};
    reference_session = std::make_unique<session>(*reference.model, context, threads, lowbit::precision::exact);
    reference_logits = logits_of(*reference_session, *windows);
  }
  progress bar{"evaluating"};
  const evaluation e = evaluate(logits_of(s, *windows), reference_logits, *windows, std::ref(bar));
  bar.clear();

  if (common.json) {
    nlohmann::ordered_json j{{"tokens", e.tokens}, {"nll", e.nll}, {"perplexity", e.perplexity}};
    const auto add = [&](const char* key, double value) { j[key] = e.has_reference ? nlohmann::ordered_json(value) : nullptr; };
    add("kl_mean", e.kl_mean);
    add("kl_p99", e.kl_p99);
    add("kl_max", e.kl_max);
    add("top1_agreement", e.top1_agreement);
    print_json(j);
    return lowbit::done{};
  }
  fmt::print("tokens          {}\nnll             {:.5f} nats a token\nperplexity      {:.4f}\n", e.tokens, e.nll, e.perplexity);
  if (e.has_reference)
    fmt::print("KL divergence   {:.3g} nats a token, 99th percentile {:.3g}, largest {:.3g}\ntop-1 agreement {:.2f} %\n", e.kl_mean, e.kl_p99,
               e.kl_max, 100.0 * e.top1_agreement);
  return lowbit::done{};
}

}  // namespace

void add_evaluate(CLI::App& app, common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("evaluate", "Perplexity of a model on a text, and its distance from a reference model");
  c->add_option("model", o->model, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("--adapter", o->adapters, adapter_help)->allow_extra_args(false);
  c->add_flag("--cache", common.cache, "Keep the model's panels in a file beside it, so that it starts at once the next time");
  c->add_option("--reference", o->reference, "The model to compare with, run in float32");
  c->add_option("--text", o->text, "A UTF-8 text")->required();
  c->add_option("--context", o->context, "Tokens in a window (default 512), but never more than the model was trained for")->transform(whole_number(2));
  c->add_option("--tokens", o->tokens, "Predict only so many tokens (default: the whole text)")->transform(whole_number(1));
  c->add_option("--quantise", o->quantise, "Quantise the matrices to this format as they are loaded");
  c->add_option("--kv-format", o->kv_format, "Keep keys and values in this format instead of floats, such as q8_0");
  add_activations(*c, o->activations);
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
