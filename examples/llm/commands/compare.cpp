// `lowbit compare MODEL`: every method x format that is asked for on one model, and what each costs, in one table.
//
// The reference is the model in float32. Without a text the reference writes its own, with a fixed seed; on such a text the expected
// loss of a model over the reference's is exactly its divergence from it. Without a calibration text it writes that too, with another
// seed. Files are really written, and sizes are theirs.
#include "../calibrate/outliers.hpp"
#include "../calibrate/pass.hpp"
#include "../calibrate/rotate.hpp"
#include "../engine/sampler.hpp"
#include "../files/save.hpp"
#include "calibration.hpp"
#include "loading.hpp"
#include "progress.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <filesystem>
#include <map>
#include <unistd.h>

namespace llm {
namespace {

using clock = std::chrono::steady_clock;
double seconds_since(clock::time_point t) { return std::chrono::duration<double>(clock::now() - t).count(); }

struct options {
  std::string model, text;
  std::vector<std::string> formats{"q8_0", "q6_k", "q5_k", "q4_k", "q4_1", "q4_0", "iq4_nl", "mxfp4", "nf4", "u4_g64", "s4_g128", "q3_k", "q2_k"};
  std::vector<std::string> methods{"rtn", "mse"};
  calibration_options calibration;
  std::size_t context = 0, tokens = 0;
  lowbit::precision activations = lowbit::precision::automatic;
};

/// One line of the table.
struct row {
  std::string method, format, save_as;
  double bits_per_weight = 0.0, quantise_seconds = 0.0;
  std::size_t file_bytes = 0, arithmetic_bytes = 0;
  evaluation quality;
  double decode_speed = 0.0, prompt_speed = 0.0;  // tokens a second
  bool needs_data = false;
};

/// Tokens a second for one token at a time and for a prompt: the best of three runs of a tenth of a second or more.
void measure_speed(session& s, const std::vector<int>& ids, row& r) {
  const std::size_t prompt = std::min<std::size_t>(ids.size(), s.capacity());
  const auto best_of = [&](std::size_t tokens, auto&& pass) {
    double best = 0.0;
    for (int repeat = 0; repeat < 3; ++repeat) {
      std::size_t done = 0;
      const auto began = clock::now();
      do {
        s.clear();
        pass();
        done += tokens;
      } while (seconds_since(began) < 0.1);
      best = std::max(best, static_cast<double>(done) / seconds_since(began));
    }
    return best;
  };
  r.prompt_speed = best_of(prompt, [&] { s.feed(std::span{ids}.first(prompt)); });
  const std::size_t steps = std::min<std::size_t>(prompt, 32);
  r.decode_speed = best_of(steps, [&] {
    for (std::size_t i = 0; i < steps; ++i) s.feed(std::span{ids}.subspan(i, 1));
  });
}

/// A path for a file or folder that is removed again.
class temporary_path {
 public:
  temporary_path() {
    std::error_code failed;
    const auto folder = std::filesystem::temp_directory_path(failed);
    path_ = (failed ? std::filesystem::path{"."} : folder) / ("lowbit-compare-" + std::to_string(getpid()));
    remembered_ = lowbit::partial_path{path_};
  }
  temporary_path(const temporary_path&) = delete;
  temporary_path& operator=(const temporary_path&) = delete;
  ~temporary_path() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string string() const { return path_.string(); }

 private:
  std::filesystem::path path_;
  lowbit::partial_path remembered_;
};

class comparison {
 public:
  comparison(const options& o, const common_options& common, checkpoint file, thread_pool& threads)
      : options_(o), common_(common), file_(std::move(file)), threads_(threads) {
    for (const tensor& t : file_.tensors) parameters_ += t.rows * t.cols;
  }

  /// Builds the float32 model, chooses the texts, and keeps what the model says to the one that is evaluated on.
  lowbit::status prepare(bool needs_data) {
    auto words = tokeniser::from(file_.words);
    if (!words) return std::move(words).error();
    const auto reference = build_llama(file_, as_float32(threads_), threads_);
    if (!reference) return reference.error();
    context_ = sequence_length(options_.context, 256, file_.config);
    // By default as many tokens as have a hundred or so megabytes of logits.
    const std::size_t tokens = options_.tokens != 0 ? options_.tokens : std::clamp<std::size_t>((std::size_t{32} << 20) / file_.config.vocabulary, 64, 4096);
    session s{*reference, context_, threads_, lowbit::precision::exact};
    if (options_.text.empty()) {
      progress bar{"writing a text"};
      const std::size_t count = lowbit::ceil_div(tokens, context_ - 1);
      windows_ = sample_windows(s, words->data().bos, count, lowbit::ceil_div(tokens, count) + 1, evaluation_seed, std::ref(bar));
    } else {
      auto w = windows_of_text(options_.text, *words, context_, tokens);
      if (!w) return std::move(w).error();
      windows_ = *std::move(w);
    }
    if (needs_data && !options_.calibration.text.empty()) {
      auto samples = read_samples(options_.calibration, *words, file_.config);
      if (!samples) return std::move(samples).error();
      samples_ = *std::move(samples);
    } else if (needs_data) {
      if (options_.calibration.plan.seed == evaluation_seed && options_.text.empty())
        return lowbit::failure{lowbit::errc::bad_value, "the calibration text would be the one that is evaluated on: choose another --seed"};
      session writer{*reference, calibration_length(options_.calibration.plan, file_.config), threads_, lowbit::precision::exact};
      progress bar{"writing a calibration text"};
      samples_ = sample_model(writer, words->data().bos, file_.config, options_.calibration.plan, std::ref(bar));
    }
    progress bar{"float32"};
    reference_ = remember(logits_of(s, windows_), windows_, std::ref(bar));
    return lowbit::done{};
  }

  /// Quantises, writes, evaluates and times; adds a line to the table.
  lowbit::status add(lowbit::format_id format, const recipe& method) {
    const lowbit::format_spec& spec = lowbit::spec_of_id(format);
    row r;
    r.method = method.name;
    r.format = spec.name;
    r.needs_data = method.needs_data;
    r.save_as = name_of(container_of(file_, format));
    r.arithmetic_bytes = static_cast<std::size_t>(static_cast<double>(parameters_) * spec.bits_per_weight() / 8.0);

    checkpoint model = method.rotated ? rotated(file_, options_.calibration.plan.seed, threads_) : file_;
    const requantisation how = plan_for(model, format, method.method);
    step_store quantised;
    progress bar{r.format + ' ' + r.method};
    const auto began = clock::now();
    if (method.needs_data)
      if (lowbit::status s = calibration_pass{model, how, method, samples_, threads_}.run(quantised, std::ref(bar)); !s) return s;
    named_weights rest;
    for (const tensor& t : model.tensors) {
      if (quantised.find(t.name) != nullptr) continue;
      if (!method.needs_data) bar(rest.size(), model.tensors.size());
      auto w = requantise(t, how, threads_);
      if (!w) return std::move(w).error();
      rest.insert_or_assign(t.name, *std::move(w));
    }
    if (lowbit::status s = quantised.keep(std::move(rest)); !s) return s;
    r.quantise_seconds = seconds_since(began);
    std::size_t stored_bytes = 0;
    for (const tensor& t : model.tensors) stored_bytes += quantised.find(t.name)->view().size_bytes();
    const lowbit::adapter apart = adapter_of_outliers(model, [&](const std::string& name) { return quantised.find(name); });
    std::size_t apart_bytes = 0;
    for (const auto& [name, f] : apart.weights) apart_bytes += (f.a.size() + f.b.size()) * sizeof(float);
    stored_bytes += apart_bytes;
    r.bits_per_weight = 8.0 * static_cast<double>(stored_bytes) / static_cast<double>(parameters_);

    const weight_source in_memory = [&](const tensor& t) -> lowbit::result<weights> {
      return weights{quantised.find(t.name)->view().middle_rows(t.first_row, t.rows)};
    };
    if (!r.save_as.empty()) {
      const temporary_path path;
      const auto bytes = save_model(path.string(), model, format, in_memory);
      if (!bytes) return bytes.error();
      r.file_bytes = *bytes + apart_bytes;
    }
    for (tensor& t : model.tensors) t.read = [&in_memory, &t] { return in_memory(t); };  // vectors, too
    auto built = build_llama(model, in_memory, threads_);
    if (!built) return built.error();
    attach(*built, apart, threads_);
    session s{*built, context_, threads_, options_.activations};
    r.quality = evaluate(logits_of(s, windows_), reference_, windows_, std::ref(bar));
    measure_speed(s, windows_[0], r);
    rows_.push_back(std::move(r));
    return lowbit::done{};
  }

  void print() const {
    if (common_.json) {
      auto all = nlohmann::ordered_json::array();
      for (const row& r : rows_) {
        all.push_back({{"method", r.method}, {"format", r.format}, {"bits_per_weight", r.bits_per_weight}, {"file_bytes", r.file_bytes},
                       {"arithmetic_bytes", r.arithmetic_bytes}, {"perplexity", r.quality.perplexity}, {"kl_mean", r.quality.kl_mean},
                       {"kl_p99", r.quality.kl_p99}, {"top1_agreement", r.quality.top1_agreement},
                       {"decode_tokens_per_second", r.decode_speed}, {"prompt_tokens_per_second", r.prompt_speed},
                       {"quantise_seconds", r.quantise_seconds}, {"needs_data", r.needs_data}, {"save_as", r.save_as}});
        if (r.save_as.empty()) all.back()["file_bytes"] = all.back()["save_as"] = nullptr;
      }
      print_json(all);
      return;
    }
    fmt::print("{} ({}), {} parameters; {} tokens {}; {} thread{}\n", file_.name, file_.kind, parameters_, rows_.front().quality.tokens,
               options_.text.empty() ? "that the float32 model wrote itself" : "of " + options_.text, threads_.concurrency(),
               threads_.concurrency() == 1 ? "" : "s");
    if (!samples_.sequences.empty()) fmt::print("methods with data: calibrated on {}\n", samples_.description());
    fmt::print("\n{:<11} {:<8} {:>7} {:>9} {:>9} {:>11} {:>9} {:>9} {:>6} {:>8} {:>9} {:>9}  {:<5} {}\n", "method", "format", "bits/w", "file MB",
               "p*b/8 MB", "perplexity", "KL mean", "KL p99", "top-1", "token/s", "prompt/s", "quantise", "data", "saved as");
    for (const row& r : rows_)
      fmt::print("{:<11} {:<8} {:>7.3f} {:>9} {:>9.2f} {:>11.4f} {:>9.2e} {:>9.2e} {:>5.1f}% {:>8.1f} {:>9.1f} {:>7.2f} s  {:<5} {}\n", r.method, r.format,
                 r.bits_per_weight, r.save_as.empty() ? "-" : fmt::format("{:.2f}", static_cast<double>(r.file_bytes) / 1e6),
                 static_cast<double>(r.arithmetic_bytes) / 1e6, r.quality.perplexity, r.quality.kl_mean, r.quality.kl_p99, 100.0 * r.quality.top1_agreement,
                 r.decode_speed, r.prompt_speed, r.quantise_seconds, r.needs_data ? "yes" : "no", r.save_as.empty() ? "-" : r.save_as);
    print_fallbacks();
  }

 private:
  /// Which formats are not what all matrices got: a block does not divide their rows, or the file keeps them as floats.
  void print_fallbacks() const {
    std::string_view last;
    for (const row& r : rows_) {
      if (r.format == last) continue;
      last = r.format;
      std::map<std::string_view, std::size_t> others;
      std::size_t matrices = 0;
      for (const tensor& t : file_.tensors) {
        if (t.is_vector) continue;
        ++matrices;
        const std::string_view got = lowbit::spec_of_id(target_format(t, *lowbit::find_format(r.format))).name;
        if (got != r.format) ++others[got];
      }
      for (const auto& [name, count] : others) fmt::print("{}: {} of {} matrices are {}\n", r.format, count, matrices, name);
    }
  }

  const options& options_;
  const common_options& common_;
  checkpoint file_;
  thread_pool& threads_;
  std::size_t parameters_ = 0, context_ = 0;
  static constexpr std::uint64_t evaluation_seed = 1;
  windows windows_;
  calibration_samples samples_;
  logit_source reference_;
  std::vector<row> rows_;
};

lowbit::status run(const options& o, const common_options& common) {
  std::vector<recipe> methods;
  bool needs_data = false;
  std::vector<lowbit::format_id> formats;
  const auto trimmed = [](const std::string& name) {  // "q4_0, q8_0" is a list too
    const auto begin = name.find_first_not_of(' '), end = name.find_last_not_of(' ');
    return begin == name.npos ? std::string{} : name.substr(begin, end - begin + 1);
  };
  for (const std::string& given : o.methods) {
    const std::string name = trimmed(given);
    const auto m = recipe_named(name);
    if (!m) return m.error();
    methods.push_back(*m);
    needs_data |= m->needs_data;
  }
  for (const std::string& given : o.formats) {
    const auto f = format_named(trimmed(given));
    if (!f) return f.error();
    formats.push_back(*f);
  }
  auto file = open_checkpoint(o.model, common.tokeniser);
  if (!file) return std::move(file).error();
  thread_pool threads{common.threads};
  comparison table{o, common, *std::move(file), threads};
  if (lowbit::status s = table.prepare(needs_data); !s) return s;
  if (lowbit::status s = table.add(lowbit::id_of<lowbit::f32>(), recipe{.name = "none"}); !s) return s;
  for (const lowbit::format_id f : formats)
    for (const recipe& m : methods)
      if (lowbit::status s = table.add(f, m); !s) return s;
  table.print();
  return lowbit::done{};
}

}  // namespace

void add_compare(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("compare", "Quantise a model in many ways and show in one table what each costs");
  c->add_option("model", o->model, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->add_option("--format,--formats", o->formats, "Formats to try, separated by commas")->delimiter(',')->capture_default_str();
  c->add_option("--method,--methods", o->methods, "Methods to try, separated by commas: " + recipe_names())->delimiter(',')->capture_default_str();
  c->add_option("--text", o->text, "A UTF-8 text to evaluate on (default: one that the float32 model writes)");
  add_calibration(*c, o->calibration, " (default: one that the float32 model writes, with another seed than the text that is evaluated on)");
  c->add_option("--context", o->context, "Tokens in a window (default 256), but never more than the model was trained for")->transform(whole_number(2));
  c->add_option("--tokens", o->tokens, "Predict so many tokens (default: by the size of the vocabulary, 64 to 4096)")->transform(whole_number(1));
  add_activations(*c, o->activations);
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
