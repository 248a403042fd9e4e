// `lowbit generate MODEL [--adapter A] --prompt TEXT`
#include "../engine/sampler.hpp"
#include "loading.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>

namespace llm {
namespace {

struct options {
  std::string model, prompt, quantise, kv_format;
  std::vector<std::string> adapters;
  std::size_t tokens = 128;
  sampling draw;
  lowbit::precision activations = lowbit::precision::automatic;
  bool special = false;
};

double seconds_since(std::chrono::steady_clock::time_point t) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
}

lowbit::status run(const options& o, const common_options& common) {
  if (const auto at = find_invalid_utf8(o.prompt))
    return lowbit::failure{lowbit::errc::bad_value, "the prompt is not UTF-8 (byte " + std::to_string(*at) + ")"};
  thread_pool threads{common.threads};
  const auto source = quantised_source(o.quantise, threads);
  if (!source) return source.error();
  auto loaded = o.quantise.empty() ? load_model(o.model, common, threads) : load_model(o.model, common, threads, *source);
  if (!loaded) return std::move(loaded).error();
  const auto kv_format = kv_format_named(o.kv_format);
  if (!kv_format) return kv_format.error();
  if (lowbit::status s = attach_adapters(*loaded, o.model, o.adapters, threads); !s) return s;
  const tokeniser& words = loaded->words;
  const vocabulary& v = words.data();

  std::vector<int> ids = words.encode(o.prompt, o.special);
  if (ids.empty() && v.bos >= 0) ids.push_back(v.bos);
  if (ids.empty()) return lowbit::failure{lowbit::errc::bad_value, "the prompt is empty and the model has no bos token"};
  const std::size_t prompt_tokens = ids.size(), context = loaded->file.config.context;
  if (prompt_tokens >= context)
    return lowbit::failure{lowbit::errc::bad_value, "the prompt has " + std::to_string(prompt_tokens) + " tokens, the model's context " + std::to_string(context)};

  session s{*loaded->model, std::min(context, prompt_tokens + o.tokens), threads, o.activations,
            *kv_format};
  sampler choose{o.draw};
  std::string text;
  utf8_stream characters;  // tokens may end inside one
  const auto write = [&](const std::string& more) {
    text += more;
    if (common.json) return;
    fmt::print("{}", more);
    std::fflush(stdout);
  };
  const std::string prompt = words.decode(ids);  // the space that encode put first is not part of it
  write(characters.add(prompt));
  auto began = std::chrono::steady_clock::now();
  const matrix* logits = &s.feed(ids);
  const double prompt_seconds = seconds_since(began);
  bool first = prompt.empty();

  began = std::chrono::steady_clock::now();
  std::size_t generated = 0;
  std::string_view stopped_by = "tokens";
  while (generated < o.tokens) {
    const auto id = static_cast<int>(choose.next(logits->row(0), std::min(logits->cols(), words.size())));
    ++generated;
    if (id == v.eos) {
      stopped_by = "end";
      break;
    }
    ids.push_back(id);
    std::string piece = words.decode(id);
    if (first && v.add_space_prefix && piece.starts_with(' ')) piece.erase(0, 1);
    first = first && piece.empty();
    write(characters.add(piece));
    if (s.size() == s.capacity()) {
      if (generated < o.tokens) stopped_by = "context";
      break;
    }
    logits = &s.feed(std::span{ids}.last(1));
  }
  write(characters.finish());
  const double decode_seconds = seconds_since(began);
  const double prompt_speed = static_cast<double>(prompt_tokens) / prompt_seconds, speed = static_cast<double>(generated) / decode_seconds;
  if (common.json) {
    const nlohmann::ordered_json j{{"text", text}, {"tokens", ids}, {"prompt_tokens", prompt_tokens}, {"generated_tokens", generated},
                                   {"stopped_by", stopped_by}, {"prompt_tokens_per_second", prompt_speed}, {"decode_tokens_per_second", speed}};
    print_json(j);
  } else {
    fmt::print("\n");
    fmt::print(stderr, "\n{} prompt tokens at {:.0f} a second, {} generated at {:.1f} a second\n", prompt_tokens, prompt_speed, generated, speed);
    if (stopped_by == "context") fmt::print(stderr, "lowbit: stopped where the model's context of {} tokens ends\n", context);
  }
  return lowbit::done{};
}

}  // namespace

void add_generate(CLI::App& app, common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("generate", "Continue a text");
  c->add_option("model", o->model, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("--adapter", o->adapters, adapter_help)->allow_extra_args(false);
  c->add_flag("--cache", common.cache, "Keep the model's panels in a file beside it, so that it starts at once the next time");
  c->add_option("--prompt", o->prompt, "The text to continue");
  c->add_option("-n,--tokens", o->tokens, "Tokens to generate at most")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  c->add_option("--temperature", o->draw.temperature, "0 takes the likeliest token, 1 draws as the model says")->capture_default_str()->check(number_between(0, 100));
  c->add_option("--top-p", o->draw.top_p, "Draw among the likeliest tokens that together have this probability")->capture_default_str()->check(number_between(0, 1));
  c->add_option("--seed", o->draw.seed, "Of the draws")->capture_default_str()->transform(whole_number());
  c->add_flag("--special", o->special, "Names of control tokens in the prompt are those tokens");
  c->add_option("--quantise", o->quantise, "Quantise the matrices to this format as they are loaded");
  c->add_option("--kv-format", o->kv_format, "Keep keys and values in this format instead of floats, such as q8_0");
  add_activations(*c, o->activations);
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
