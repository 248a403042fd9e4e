// `lowbit quantise IN OUT --format F [--method M]`
#include "../files/save.hpp"
#include "commands.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <sys/resource.h>

namespace llm {
namespace {

struct options {
  std::string in, out, format, method = "rtn";
  std::size_t part_bytes = 0;
};

// The most memory this process has had, in bytes.
std::size_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

lowbit::status run(const options& o, const common_options& common) {
  const auto format = format_named(o.format);
  if (!format) return format.error();
  const auto method = method_named(o.method);
  if (!method) return method.error();
  auto model = open_checkpoint(o.in, common.tokeniser);
  if (!model) return model.error();

  const auto began = std::chrono::steady_clock::now();
  const std::size_t memory_before = peak_memory();
  thread_pool threads{common.threads};
  const requantisation how = plan_for(*model, *format, *method);
  progress bar{"quantising"};
  const auto bytes = save_model(o.out, *model, *format, [&](const tensor& t) { return requantise(t, how, threads); }, std::ref(bar), o.part_bytes);
  bar.clear();
  if (!bytes) return bytes.error();

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::size_t parameters = 0, largest = 0, in_bytes = 0;
  for (const tensor& t : model->tensors) {
    parameters += t.rows * t.cols;
    largest = std::max(largest, t.rows * t.cols * sizeof(float));
    in_bytes += t.bytes;
  }
  const std::size_t arithmetic = static_cast<std::size_t>(static_cast<double>(parameters) * lowbit::spec_of_id(*format).bits_per_weight() / 8.0);
  const std::size_t peak = peak_memory();
  if (common.json) {
    const nlohmann::ordered_json j{{"format", lowbit::spec_of_id(*format).name}, {"method", o.method}, {"parameters", parameters}, {"file_bytes", *bytes},
                                   {"arithmetic_bytes", arithmetic}, {"source_bytes", in_bytes}, {"seconds", seconds}, {"peak_memory_bytes", peak},
                                   {"memory_before_bytes", memory_before}, {"largest_tensor_float_bytes", largest}};
    fmt::print("{}\n", j.dump(2));
    return lowbit::done{};
  }
  const auto mb = [](std::size_t n) { return static_cast<double>(n) / 1e6; };
  fmt::print("{}: {:.2f} MB written; {} parameters x {:.4g} bits / 8 = {:.2f} MB\n", o.out, mb(*bytes), parameters,
             lowbit::spec_of_id(*format).bits_per_weight(), mb(arithmetic));
  fmt::print("{:.2f} s; peak memory {:.0f} MB, of which {:.0f} MB before the first tensor; the largest tensor is {:.0f} MB as floats\n", seconds,
             mb(peak), mb(memory_before), mb(largest));
  return lowbit::done{};
}

}  // namespace

void add_quantise(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("quantise", "Write a model in a low-bit format");
  c->add_option("in", o->in, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("out", o->out, "A .gguf file; for nf4, fp4 and uniform formats a folder")->required();
  c->add_option("--format", o->format, "q4_0, q4_k, iq4_nl, mxfp4, nf4, s4_g128, ...")->required();
  c->add_option("--method", o->method, "rtn: each format's reference; mse: a search for the scale with the least squared error")->capture_default_str();
  c->add_option("--split", o->part_bytes, "Write GGUF as several files OUT-00001-of-….gguf with at most so many bytes of tensors (2G)")->transform(CLI::AsSizeValue(false));
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
