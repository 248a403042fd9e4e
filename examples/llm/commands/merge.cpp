// `lowbit merge BASE ADAPTER OUT --format F [--method M] [--calibration TEXT] [--keep-adapter]`
//
// The adapter goes into the de-quantised weights, and those through the same machinery as `quantise`. Every merged matrix is measured: how
// much of the adapter's effect is left once it is quantised. With --keep-adapter, what was lost goes into an adapter beside the output.
#include "../calibrate/allocation.hpp"
#include "../calibrate/pass.hpp"
#include "../files/adapter.hpp"
#include "../files/save.hpp"
#include "calibration.hpp"
#include "loading.hpp"
#include "progress.hpp"

#include <lowbit/adapt/closest_low_rank.hpp>
#include <lowbit/matrix/dequantise.hpp>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>

namespace llm {
namespace {

struct options {
  std::string base, adapter, out, method = "rtn";
  format_choice formats;
  calibration_options calibration;
  double least = 0.9;
  bool keep_adapter = false;
};

/// What became of one matrix.
struct merged_matrix {
  std::string name, format;
  bool exact = false;  // codes kept: the adapter went into the blocks' offsets
  lowbit::survival left;
};

/// Looks at merged matrices as they are quantised.
class measurement {
 public:
  measurement(const lowbit::adapter& adapter, bool keep, const checkpoint& base, thread_pool& threads)
      : adapter_(adapter), keep_(keep), base_(base), threads_(threads) {}

  /// `w` the merged matrix as floats, `q` what it was quantised to.
  void look_at(const std::string& name, const matrix& w, const weights& q, const lowbit::layer_statistics* about) {
    const auto found = adapter_.weights.find(name);
    if (found == adapter_.weights.end()) return;
    const lowbit::packed_view packed = q.view();
    matrix values(packed.rows, packed.cols);
    lowbit::dequantise(packed, lowbit::view(values), threads_);
    const lowbit::hessian* const inputs = about != nullptr ? &about->get<lowbit::hessian>() : nullptr;
    const tensor& stored = *base_.find(name);
    const bool exact = packed.spec == stored.spec && merges_into_offsets(stored, found->second);
    const auto left = lowbit::measure_survival(lowbit::view(w), lowbit::view(std::as_const(values)), found->second, inputs, threads_);
    matrices.push_back({name, std::string(packed.spec->name), exact, left});
    if (!keep_) return;
    for (std::size_t r = 0; r < w.rows(); ++r)
      for (std::size_t c = 0; c < w.cols(); ++c) values.row(r)[c] = w.row(r)[c] - values.row(r)[c];
    lost.weights[name] = lowbit::closest_low_rank(lowbit::view(std::as_const(values)), inputs, threads_, {.rank = found->second.rank});
    lost.bases[name] = base_of(packed);
  }

  std::vector<merged_matrix> matrices;
  lowbit::adapter lost;  ///< the best of each adapter's rank

 private:
  const lowbit::adapter& adapter_;
  bool keep_;
  const checkpoint& base_;
  thread_pool& threads_;
};

/// The path of the adapter beside the output, without its ending.
std::string beside(const std::string& out) {
  std::filesystem::path path = std::filesystem::path{out}.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return (path.parent_path() / path.stem()).string() + ".adapter";
}

lowbit::status run(const options& o, const common_options& common) {
  const auto method = recipe_named(o.method);
  if (!method) return method.error();
  if (method->rotated || method->channels != channel_scaling::none)
    return lowbit::failure{lowbit::errc::unsupported, "method " + o.method + " changes the channels that an adapter belongs to: merge with " +
                                                          "--format f32, and quantise the result by it"};
  auto model = open_checkpoint(o.base, common.tokeniser);
  if (!model) return model.error();
  warn(*model);
  if (lowbit::status valid = check_model(*model); !valid) return valid;
  for (std::filesystem::path& file : files_of(o.adapter)) model->files.push_back(std::move(file));
  const bool calibrated = method->needs_data || !o.calibration.text.empty();
  const auto format = choose_formats(*model, o.formats, method->needs_data);
  if (!format) return format.error();
  if (lowbit::status possible = check_target(o.out, *model, *format); !possible) return possible;
  auto adapter = open_adapters({o.adapter}, *model);
  if (!adapter) return adapter.error();

  thread_pool threads{common.threads};
  std::optional<calibration_samples> samples;
  if (calibrated) {
    auto chosen = disclosed_samples(o.calibration, "method " + o.method, *model);
    if (!chosen) return std::move(chosen).error();
    samples = *std::move(chosen);
  }
  model->notes.set("lowbit.method", o.method);
  model->notes.set("lowbit.merged", std::filesystem::path{o.adapter}.lexically_normal().filename().string());
  const checkpoint base = *model;
  *model = merged(*std::move(model), std::make_shared<const lowbit::adapter>(*adapter), threads);
  const requantisation how = plan_for(*model, *format, method->method);
  if (how.reorder) *adapter = reordered(*std::move(adapter), model->config, *how.reorder);

  measurement measured{*adapter, o.keep_adapter, base, threads};
  step_store store;
  if (samples) {
    progress bar{"calibrating"};
    calibration_pass pass{*model, how, *method, *samples, threads};
    pass.observe([&](const std::string& name, const matrix& w, const weights& q, const lowbit::layer_statistics* about) {
      measured.look_at(name, w, q, about);
    });
    if (lowbit::status s = pass.run(store, std::ref(bar)); !s) return s;
  }
  progress bar{"merging"};
  const auto bytes = save_model(o.out, *model, *format, [&](const tensor& t) -> lowbit::result<weights> {
    if (const weights* const w = store.find(t.name)) return weights{w->view().middle_rows(t.first_row, t.rows)};
    auto q = requantise(t, how, threads);
    if (q && adapter->weights.contains(t.name)) {
      const auto floats = float_weights{*model, how, threads}.read(t.name);
      if (!floats) return floats.error();
      measured.look_at(t.name, *floats, *q, nullptr);
    }
    return q;
  }, std::ref(bar));
  bar.clear();
  if (!bytes) return bytes.error();
  std::string kept;
  if (o.keep_adapter) {
    auto saved = save_adapter(beside(o.out), measured.lost, *model);
    if (!saved) return std::move(saved).error();
    kept = *std::move(saved);
  }

  std::vector<const merged_matrix*> weak;
  for (const merged_matrix& m : measured.matrices)
    if (m.left.is_weak(o.least)) weak.push_back(&m);
  if (common.json) {
    nlohmann::ordered_json matrices = nlohmann::ordered_json::array();
    for (const merged_matrix& m : measured.matrices)
      matrices.push_back({{"tensor", m.name}, {"format", m.format}, {"exact", m.exact}, {"survival", m.left.share}, {"noise", m.left.noise},
                          {"by_inputs", m.left.by_inputs}, {"weak", m.left.is_weak(o.least)}});
    nlohmann::ordered_json j{{"format", lowbit::spec_of_id(*format).name}, {"method", o.method}, {"file_bytes", *bytes}, {"adapter", nullptr},
                             {"calibrated_on", nullptr}, {"matrices", matrices}};
    if (!kept.empty()) j["adapter"] = kept;
    if (samples) j["calibrated_on"] = samples->description();
    print_json(j);
    return lowbit::done{};
  }
  for (const merged_matrix& m : measured.matrices)
    fmt::print("{:<28} {:<10} {:>6.1f} % of the adapter is left, noise {:.2f}{}\n", m.name, m.format, 100 * m.left.share, m.left.noise,
               m.exact ? " (codes kept)" : "");
  fmt::print("\n{}: {:.2f} MB written\n", o.out, static_cast<double>(*bytes) / 1e6);
  if (!kept.empty()) fmt::print("{}: what was lost, to be run with --adapter\n", kept);
  if (samples) fmt::print("calibrated on {}\n", samples->description());
  if (!weak.empty()) {
    const auto less = [](const merged_matrix* a, const merged_matrix* b) { return a->left.share < b->left.share; };
    const merged_matrix& least = **std::min_element(weak.begin(), weak.end(), less);
    const std::string advice = std::string(method->needs_data ? "" : "; --method gptq --calibration TEXT loses less") +
                               (o.keep_adapter ? "" : "; --keep-adapter keeps the rest");
    fmt::print(stderr, "lowbit: warning: {} of {} matrices keep less than {:.0f} % of the adapter's effect, {} only {:.1f} %{}\n", weak.size(),
               measured.matrices.size(), 100 * o.least, least.name, 100 * least.left.share, advice);
  }
  return lowbit::done{};
}

}  // namespace

void add_merge(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("merge", "Merge an adapter into a model, and say how much of it is left at few bits");
  c->add_option("base", o->base, "The model that the adapter was trained for: a .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("adapter", o->adapter, "A folder of PEFT's, or a GGUF adapter of llama.cpp's")->required();
  c->add_option("out", o->out, "A .gguf file; for nf4, fp4 and uniform formats a folder")->required();
  c->add_option("--format,--mix", o->formats.format, "q4_0, q4_k, nf4, s4_g128, f16, ..., or one of llama.cpp's mixes, in capitals: Q4_K_M, ...")->required();
  c->add_option("--override", o->formats.overrides, "PATTERN=FORMAT for the matrices of that name, as with `quantise`");
  c->add_option("--method", o->method, "rtn, mse, hqq, imatrix, gptq, gptq+imatrix")->capture_default_str();
  add_calibration(*c, o->calibration, "; with the others, what survives is measured on it");
  c->add_flag("--keep-adapter", o->keep_adapter, "Write what was lost as an adapter of the same rank beside the output (OUT.adapter.gguf)");
  c->add_option("--least", o->least, "Warn where less than this share of the adapter's effect is left")
      ->capture_default_str()->check(CLI::Range(0.0, 1.0));
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
