// `lowbit imatrix MODEL OUT --calibration TEXT`: an importance matrix, for `quantise --imatrix` here and for llama.cpp's tools.
#include "../calibrate/importance.hpp"
#include "../files/save.hpp"
#include "calibration.hpp"
#include "commands.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

namespace llm {
namespace {

struct options {
  std::string in, out;
  calibration_options calibration;
  bool old_kind = false;
};

lowbit::status run(const options& o, const common_options& common) {
  auto model = open_checkpoint(o.in, common.tokeniser);
  if (!model) return std::move(model).error();
  if (lowbit::status valid = check_model(*model); !valid) return valid;
  const auto samples = disclosed_samples(o.calibration, "imatrix", *model);
  if (!samples) return samples.error();
  if (lowbit::status possible = check_output(o.out, *model); !possible) return possible;
  thread_pool threads{common.threads};
  const requantisation how = plan_for(*model, lowbit::id_of<lowbit::f32>(), lowbit::method::rtn);
  progress bar{"running"};
  const auto m = gather_importance(*model, how, *samples, threads, std::ref(bar));
  bar.clear();
  if (!m) return m.error();
  if (lowbit::status s = lowbit::write_imatrix(o.out, *m, o.old_kind ? lowbit::imatrix_kind::dat : lowbit::imatrix_kind::gguf); !s) return s;
  if (common.json) {
    const nlohmann::ordered_json j{{"matrices", m->entries.size()}, {"calibrated_on", samples->description()}};
    print_json(j);
  } else {
    fmt::print("{}: {} matrices; calibrated on {}\n", o.out, m->entries.size(), samples->description());
  }
  return lowbit::done{};
}

}  // namespace

void add_imatrix(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("imatrix", "Write the importance matrix of a model's inputs, as llama.cpp's tools do");
  c->add_option("model", o->in, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("out", o->out, "The file to write: GGUF, or llama.cpp's old kind with --dat")->required();
  c->add_flag("--dat", o->old_kind, "Write the old kind of file");
  add_calibration(*c, o->calibration, "");
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
