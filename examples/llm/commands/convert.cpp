// `lowbit convert IN OUT --to TARGET [--format F] [--exact-only]`
#include "../files/convert.hpp"
#include "commands.hpp"
#include "loading.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>

namespace llm {
namespace {

struct options {
  std::string in, out, target, format;
  bool exact_only = false;
  std::size_t part_bytes = 0;
};

std::string text_of(const verdict& v) {
  std::string text{name_of(v.kind)};
  if (v.kind == fidelity::requantised) text += fmt::format(", relative error {:.3g}{}", v.error, v.codes_kept ? " (codes kept, scales or zero-points rounded)" : "");
  if (v.rows_moved && v.kind != fidelity::permuted) text += "; rows or inputs moved";
  return text;
}

lowbit::status run(const options& o, const common_options& common) {
  conversion how{o.target, {}};
  if (!o.format.empty()) {
    const auto format = format_named(o.format);
    if (!format) return format.error();
    how.format = *format;
  }
  if (lowbit::status possible = check(how); !possible) return possible;
  auto model = open_checkpoint(o.in, common.tokeniser);
  if (!model) return model.error();
  if (lowbit::status possible = check_destination(o.out, *model, o.target == "gguf", o.part_bytes); !possible) return possible;
  warn(*model);
  thread_pool threads{common.threads};
  const auto plan = conversion_plan::make(*model, how, threads);
  if (!plan) return lowbit::failure{plan.error().kind, o.in + ": " + plan.error().message};
  if (const verdict* v = plan->inexact(); v != nullptr && o.exact_only)
    return lowbit::failure{lowbit::errc::unsupported, o.in + ": tensor " + v->tensor + " has no exact form in " + o.target + " (" + v->from + " to " + v->to + ": " +
                                                          text_of(*v) + "); nothing was written"};
  progress bar{"converting"};
  const auto bytes = plan->save(o.out, *model, threads, std::ref(bar), o.part_bytes);
  bar.clear();
  if (!bytes) return bytes.error();

  if (common.json) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const verdict& v : plan->verdicts())
      tensors.push_back({{"tensor", v.tensor}, {"from", v.from}, {"to", v.to}, {"verdict", name_of(v.kind)}, {"codes_kept", v.codes_kept}, {"moved", v.rows_moved}, {"relative_error", v.error}});
    const nlohmann::ordered_json j{{"target", o.target}, {"file_bytes", *bytes}, {"exact", plan->inexact() == nullptr}, {"warnings", model->warnings}, {"tensors", tensors}};
    print_json(j);
    return lowbit::done{};
  }
  std::size_t count[4] = {};
  for (const verdict& v : plan->verdicts()) {
    fmt::print("{:<32} {:>10} -> {:<10} {}\n", v.tensor, v.from, v.to, text_of(v));
    ++count[static_cast<std::size_t>(v.kind)];
  }
  if (how.format && std::none_of(plan->verdicts().begin(), plan->verdicts().end(), [&](const verdict& v) { return v.to == o.format && v.from != v.to; }))
    fmt::print("\nno matrix was brought to {}: what has an exact form keeps its codes (`lowbit quantise` quantises anew)\n", o.format);
  fmt::print("\n{}: {:.2f} MB written; ", o.out, static_cast<double>(*bytes) / 1e6);
  const char* separator = "";
  for (std::size_t i = 0; i < 4; ++i)
    if (count[i] != 0) {
      fmt::print("{}{} {}", separator, count[i], name_of(static_cast<fidelity>(i)));
      separator = ", ";
    }
  fmt::print("\n");
  return lowbit::done{};
}

}  // namespace

void add_convert(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("convert", "Write a model as another kind of file, keeping its codes wherever that is possible");
  c->add_option("in", o->in, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("out", o->out, "A .gguf file, or a folder")->required();
  c->add_option("--to", o->target, "gguf, hf (plain floats), gptq, gptq_v2, gptq_p, awq, bitsandbytes, compressed-tensors, ...")->required();
  c->add_option("--format", o->format, "For matrices that have no exact form in the target: q4_0, u4_g128, nf4, ...; for hf f32, f16 or bf16 (default: like the source's)");
  add_split(*c, o->part_bytes);
  c->add_flag("--exact-only", o->exact_only, "Refuse, naming the tensor, if anything would have to be quantised anew");
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
