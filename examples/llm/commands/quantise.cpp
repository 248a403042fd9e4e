// `lowbit quantise IN OUT --format F [--method M [--calibration TEXT]]`
//
// Methods without data go through the file tensor by tensor. The others calibrate layer by layer, and keep finished layers in a work folder
// beside the output, from which --resume goes on after an interruption.
#include "../calibrate/allocation.hpp"
#include "../calibrate/hash.hpp"
#include "../calibrate/outliers.hpp"
#include "../calibrate/pass.hpp"
#include "../calibrate/rotate.hpp"
#include "../files/save.hpp"
#include "calibration.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <sys/resource.h>

namespace llm {
namespace {

struct options {
  std::string in, out, method, imatrix;
  format_choice formats;
  calibration_options calibration;
  std::size_t part_bytes = 0;
  bool resume = false;
};

// The most memory this process has had, in bytes.
std::size_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

/// Where the finished steps for an output are kept.
std::filesystem::path work_folder_of(const std::string& out) {
  std::filesystem::path path = std::filesystem::path{out}.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // "name/"
  return path.parent_path() / ("." + path.filename().string() + ".unfinished");
}

/// Of everything that decides what the quantised weights are.
lowbit::result<std::uint64_t> hash_of(const checkpoint& model, lowbit::format_id format, const options& o, const calibration_samples& samples) {
  hasher h;
  h.add(o.method);
  h.add(o.calibration.plan.seed);
  h.add(samples.hash);
  for (const tensor& t : model.tensors) {
    const auto w = t.read();
    if (!w) return w.error();
    h.add(t.name);
    h.add(static_cast<std::uint64_t>(target_format(t, format)));
    h.add({w->view().data, w->view().size_bytes()});
  }
  return h.value();
}

/// Calibrates and writes; the bytes written. The finished steps go when the output is whole.
lowbit::result<std::size_t> quantise_calibrated(const checkpoint& model, const options& o, const recipe& method, const requantisation& how,
                                                const calibration_samples& samples, step_store& store, thread_pool& threads) {
  progress bar{"calibrating"};
  const auto report = [&](std::size_t done, std::size_t total) {
    if (store.finished() != 0) last_words = "\nlowbit: stopped; finished layers are kept, and the same command with --resume goes on\n";
    bar(done, total);
  };
  if (lowbit::status s = calibration_pass{model, how, method, samples, threads}.run(store, report); !s) return std::move(s).error();
  // First what the model is not whole without.
  const lowbit::adapter apart = adapter_of_outliers(model, [&](const std::string& name) { return store.find(name); });
  if (!apart.weights.empty()) {
    const auto path = save_adapter(outliers_beside(o.out), apart, model);
    if (!path) return path.error();
    fmt::print(stderr, "lowbit: float columns of {} matrices' outliers are in {}: an adapter, without which the model lacks them\n", apart.weights.size(), *path);
  }
  auto bytes = save_model(o.out, model, how.format, [&](const tensor& t) -> lowbit::result<weights> {
    if (const weights* const w = store.find(t.name)) return weights{w->view().middle_rows(t.first_row, t.rows)};
    return requantise(t, how, threads);
  }, {}, o.part_bytes);
  last_words = nullptr;
  if (bytes) store.remove();
  return bytes;
}

/// The importance matrix that was named, llama.cpp's file of either kind.
lowbit::result<lowbit::imatrix> read_importance(const options& o, const checkpoint& model) {
  if (o.method != "imatrix") return lowbit::failure{lowbit::errc::bad_value, "--imatrix goes with the method imatrix, not with " + o.method};
  if (!o.calibration.text.empty()) return lowbit::failure{lowbit::errc::bad_value, "--imatrix and --calibration: one of them says what is important"};
  const auto file = lowbit::mapped_file::open(o.imatrix);
  if (!file) return file.error();
  auto m = lowbit::read_imatrix(file->bytes());
  if (!m) return lowbit::failure{m.error().kind, o.imatrix + ": " + m.error().message};
  const auto names_one = [&](const tensor& t) { return !t.is_vector && m->find(t.name) != nullptr; };
  if (std::none_of(model.tensors.begin(), model.tensors.end(), names_one))
    return lowbit::failure{lowbit::errc::bad_value, o.imatrix + " names none of this model's matrices"};
  return m;
}

/// The format of most weights of a model whose matrices have formats of their own: what the file is called by.
lowbit::format_id format_of_most(const checkpoint& model, lowbit::format_id otherwise) {
  std::map<lowbit::format_id, std::size_t> weights;
  lowbit::format_id most = otherwise;
  for (const tensor& t : model.tensors)
    if (!t.is_vector && t.wanted && (weights[*t.wanted] += t.rows * t.cols) > weights[most]) most = *t.wanted;
  return most;
}

/// Bits per weight as asked for: the format's own, or the mean over the matrices where a mix, a budget or overrides give some another.
double bits_per_weight(const checkpoint& model, lowbit::format_id format) {
  double bits = 0, weights = 0;
  for (const tensor& t : model.tensors) {
    if (t.is_vector) continue;
    const auto n = static_cast<double>(t.rows * t.cols);
    bits += n * lowbit::spec_of_id(t.wanted.value_or(format)).bits_per_weight();
    weights += n;
  }
  return bits / weights;
}

lowbit::status run(options o, const common_options& common) {
  if (o.method.empty()) o.method = o.imatrix.empty() ? "rtn" : "imatrix";
  auto method = recipe_named(o.method);
  if (!method) return method.error();
  if (o.formats.format.empty() && o.formats.budget == 0) return lowbit::failure{lowbit::errc::bad_value, "--format or --budget is needed"};
  if (o.formats.format.empty()) o.formats.format = "q4_k";  // until the budget has chosen
  if (!method->needs_data && o.formats.budget == 0 && !o.calibration.text.empty())
    return lowbit::failure{lowbit::errc::bad_value, "--calibration: method " + o.method + " learns nothing from a text"};
  auto model = open_checkpoint(o.in, common.tokeniser);
  if (!model) return model.error();
  std::optional<lowbit::imatrix> importance;
  if (!o.imatrix.empty()) {
    auto read = read_importance(o, *model);
    if (!read) return std::move(read).error();
    importance = *std::move(read);
    model->files.emplace_back(o.imatrix);  // is not to be replaced either
    *method = {.name = "imatrix"};  // whatever the file does not name is rounded to nearest
    model->notes.set("quantize.imatrix.file", std::filesystem::path{o.imatrix}.filename().string());
    model->notes.set("quantize.imatrix.entries_count", static_cast<std::uint32_t>(importance->entries.size()));
    model->notes.set("quantize.imatrix.chunks_count", importance->chunk_count);
  }
  auto format = choose_formats(*model, o.formats, method->needs_data || importance);
  if (!format) return format.error();

  const auto began = std::chrono::steady_clock::now();
  const std::size_t memory_before = peak_memory();
  thread_pool threads{common.threads};
  if (lowbit::status valid = check_model(*model); !valid) return lowbit::failure{valid.error().kind, o.in + ": " + valid.error().message};
  if (lowbit::status possible = check_target(o.out, *model, *format, o.part_bytes); !possible) return possible;
  std::optional<calibration_samples> samples;
  if (method->needs_data || o.formats.budget > 0) {
    auto chosen = disclosed_samples(o.calibration, o.formats.budget > 0 ? "--budget" : "method " + o.method, *model);
    if (!chosen) return std::move(chosen).error();
    samples = *std::move(chosen);
  }
  if (o.formats.budget > 0) {
    progress bar{"measuring"};
    if (lowbit::status s = allocate_formats(*model, *format, o.formats, *samples, threads, std::ref(bar)); !s) return s;
    *format = format_of_most(*model, *format);
  }
  std::optional<step_store> store;
  if (method->needs_data) {
    const auto hash = hash_of(*model, *format, o, *samples);
    if (!hash) return hash.error();
    auto opened = step_store::in_folder(work_folder_of(o.out), *hash, o.resume);
    if (!opened) return std::move(opened).error();
    store = *std::move(opened);
  }
  model->notes.set("lowbit.method", o.method);
  if (method->rotated) *model = rotated(*std::move(model), o.calibration.plan.seed, threads);
  const requantisation how = plan_for(*model, *format, method->method);
  progress bar{"quantising"};
  const auto bytes = store ? quantise_calibrated(*model, o, *method, how, *samples, *store, threads)
                           : save_model(o.out, *model, *format, [&](const tensor& t) { return requantise(t, how, threads, importance ? &*importance : nullptr); }, std::ref(bar),
                                        o.part_bytes);
  bar.clear();
  if (!bytes) return bytes.error();

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::size_t parameters = 0, largest = 0, in_bytes = 0;
  for (const tensor& t : model->tensors) {
    parameters += t.rows * t.cols;
    largest = std::max(largest, t.rows * t.cols * sizeof(float));
    in_bytes += t.bytes;
  }
  const double bits = bits_per_weight(*model, *format);
  const auto arithmetic = static_cast<std::size_t>(static_cast<double>(parameters) * bits / 8.0);
  const std::size_t peak = peak_memory();
  if (common.json) {
    const nlohmann::ordered_json j{{"format", lowbit::spec_of_id(*format).name}, {"method", o.method}, {"parameters", parameters}, {"file_bytes", *bytes},
                                   {"arithmetic_bytes", arithmetic}, {"source_bytes", in_bytes}, {"seconds", seconds}, {"peak_memory_bytes", peak},
                                   {"memory_before_bytes", memory_before}, {"largest_tensor_float_bytes", largest},
                                   {"calibrated_on", samples ? nlohmann::ordered_json(samples->description()) : nlohmann::ordered_json(nullptr)}};
    print_json(j);
    return lowbit::done{};
  }
  const auto mb = [](std::size_t n) { return static_cast<double>(n) / 1e6; };
  fmt::print("{}{}: {:.2f} MB written; {} parameters x {:.4g} bits / 8 = {:.2f} MB\n", o.out, o.part_bytes != 0 ? ", in parts" : "", mb(*bytes), parameters,
             bits, mb(arithmetic));
  if (samples) fmt::print("calibrated on {}\n", samples->description());
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
  c->add_option("--format,--mix", o->formats.format, "q4_0, q4_k, iq4_nl, mxfp4, nf4, s4_g128, ..., or one of llama.cpp's mixes, in capitals: Q4_K_M, Q4_0, ... Not needed with --budget");
  c->add_option("--budget", o->formats.budget, "Bits per weight on average: choose every matrix's format by the error that it makes in its layer's output (needs --calibration)")
      ->check(CLI::Range(1.0, 16.0));
  c->add_option("--override", o->formats.overrides, "PATTERN=FORMAT for the matrices of that name in GGUF (blk.0.attn_v.weight; * and ? match), the first that matches counts");
  c->add_option("--method", o->method, recipe_names() + " (default: rtn; with --imatrix: imatrix)");
  c->add_option("--imatrix", o->imatrix, "An importance matrix of llama.cpp's, either kind of file, in the place of a calibration");
  add_calibration(*c, o->calibration, "");
  c->add_flag("--resume", o->resume, "Go on with the same command's interrupted work: finished layers are kept beside the output until it is whole");
  add_split(*c, o->part_bytes);
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
