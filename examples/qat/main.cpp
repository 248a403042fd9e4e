// Quantisation-aware training of a small Llama, against rounding it to nearest afterwards.
//
// The model that ships here, or any small Llama, learns to live with low-bit weights: its own float self is the teacher, on text that it wrote
// itself, so that no data are needed; or a text is given, and the float model is tuned to it first. Every result is written as a file that
// `lowbit evaluate` runs, and its loss is measured from that file.
#include "curve.hpp"
#include "model.hpp"
#include "trainer.hpp"

#include "commands/loading.hpp"
#include "commands/progress.hpp"

#include <lowbit/io/file_writer.hpp>

#include <fmt/core.h>

#include <chrono>
#include <csignal>
#include <filesystem>

namespace {

using namespace qat;
namespace fs = std::filesystem;

struct options {
  std::string model, text, evaluation, folder = "qat";
  std::vector<std::string> formats{"u2_g64", "u3_g64"};
  std::string gradient = "lsq+";
  recipe how;
  std::size_t sequences = 128, threads = 0, tokens = 4096;
  bool no_teacher = false;
};

/// One line of the table.
struct row {
  std::string format, saved;
  double bits = 0, nearest = 0, searched = 0, trained = 0, difference = 0, seconds = 0;
};

class experiment {
 public:
  experiment(const options& o, llm::checkpoint file) : options_(o), how_(o.how), file_(std::move(file)), threads_(o.threads) {}

  lowbit::status run() {
    if (lowbit::status s = choose_texts(); !s) return s;
    if (!options_.text.empty())
      if (lowbit::status s = tune_float(); !s) return s;
    auto loss = loss_in_engine(file_, llm::as_float32(threads_));
    if (!loss) return std::move(loss).error();
    float_loss_ = *loss;
    // With a teacher, training shows its divergence: the picture has everything over the float model's loss.
    const double base = options_.no_teacher ? 0.0 : float_loss_;
    levels_.push_back({"float", float_loss_ - base});
    for (const std::string& name : options_.formats) {
      if (lowbit::status s = compare(name); !s) return s;
      levels_.push_back({name + " nearest", rows_.back().nearest - base});
      levels_.push_back({name + " trained", rows_.back().trained - base});
    }
    print();
    const auto svg = fs::path(options_.folder) / "loss.svg";
    auto file = lowbit::file_writer::create(svg);
    if (!file) return std::move(file).error();
    const std::string title = fmt::format("{}: {}, {} steps of {} sequences", file_.name, options_.gradient, how_.steps, how_.batch);
    const std::string unit = options_.no_teacher ? "loss, nats a token" : "loss over the float model's, nats a token";
    if (lowbit::status s = file->append(std::string_view{draw_curves(title, unit, curves_, levels_)}); !s) return s;
    fmt::print("curves: {}\n", svg.string());
    return file->commit();
  }

 private:
  /// Sequences to train on and to evaluate on: of texts, or of the float model's own writing, with different seeds.
  lowbit::status choose_texts() {
    const auto words = llm::tokeniser::from(file_.words);
    if (!words) return words.error();
    const auto model = llm::build_llama(file_, llm::as_float32(threads_), threads_);
    if (!model) return model.error();
    const std::size_t context = llm::sequence_length(0, 256, file_.config);
    llm::session writer{*model, context, threads_, lowbit::precision::exact};
    const auto write = [&](const char* what, std::size_t count, std::size_t length, std::uint64_t seed) {
      llm::progress bar{what};
      return llm::sample_windows(writer, words->data().bos, count, length, seed, std::ref(bar));
    };
    if (options_.evaluation.empty()) {  // the text that `lowbit compare` evaluates on
      const std::size_t count = lowbit::ceil_div(options_.tokens, context - 1);
      evaluation_ = write("writing a text to judge by", count, lowbit::ceil_div(options_.tokens, count) + 1, 1);
    } else {
      auto w = llm::windows_of_text(options_.evaluation, *words, context, options_.tokens);
      if (!w) return std::move(w).error();
      evaluation_ = *std::move(w);
    }
    if (options_.text.empty()) {
      text_ = write("writing a text to train on", options_.sequences, context, how_.seed + 1);
    } else {
      auto w = llm::windows_of_text(options_.text, *words, context, 0);
      if (!w) return std::move(w).error();
      text_ = *std::move(w);
    }
    return lowbit::done{};
  }

  lowbit::result<double> loss_in_engine(const llm::checkpoint& model, const llm::weight_source& source) {
    const auto built = llm::build_llama(model, source, threads_);
    if (!built) return built.error();
    llm::session s{*built, llm::sequence_length(0, 256, model.config), threads_, lowbit::precision::exact};
    llm::progress bar{"evaluating"};
    return llm::evaluate(llm::logits_of(s, evaluation_), {}, evaluation_, std::ref(bar)).nll;
  }

  lowbit::result<trained> train_shown(const std::string& name, const llm::checkpoint& model, const parameters<float>& start,
                                      lowbit::format_id format, const parameters<float>* teacher) {
    llm::progress bar{"training " + name};
    return train(model.config, start, parameter_formats(model, format), text_, teacher, how_, threads_,
                 [&](std::size_t step, double) { bar(step, how_.steps); });
  }

  /// The same training without quantisation: what the quantised models are to be measured against.
  lowbit::status tune_float() {
    constexpr auto floats = lowbit::id_of<lowbit::f32>();
    auto start = read_parameters(file_, {floats, lowbit::method::rtn}, threads_);
    if (!start) return std::move(start).error();
    auto tuned = train_shown("float", file_, *start, floats, nullptr);
    if (!tuned) return std::move(tuned).error();
    if (options_.no_teacher) curves_.push_back({"float, training", std::move(tuned->losses)});
    file_ = with_weights(std::move(file_), std::move(tuned->weights));
    return lowbit::done{};
  }

  lowbit::status compare(const std::string& name) {
    const auto format = llm::format_named(name);
    if (!format) return format.error();
    llm::checkpoint model = file_;
    const llm::requantisation how = llm::plan_for(model, *format, lowbit::method::rtn);
    row r;
    r.format = name;
    for (const auto& [method, loss] : {std::pair(lowbit::method::rtn, &r.nearest), std::pair(lowbit::method::mse, &r.searched)}) {
      llm::requantisation untrained = how;
      untrained.method = method;
      const auto measured = loss_in_engine(model, [&](const llm::tensor& t) { return llm::requantise(t, untrained, threads_); });
      if (!measured) return measured.error();
      *loss = *measured;
    }

    const auto began = std::chrono::steady_clock::now();
    const auto start = read_parameters(model, how, threads_);
    if (!start) return start.error();
    auto result = train_shown(name, model, *start, *format, options_.no_teacher ? nullptr : &*start);
    if (!result) return std::move(result).error();
    r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    double bytes = 0, weights = 0;
    for (const auto& w : result->weights) {
      bytes += static_cast<double>(w.bytes().size());
      weights += static_cast<double>(w.rows() * w.cols());
    }
    r.bits = 8 * bytes / weights;

    // What was trained, written and read again.
    const double own = loss_of(model.config, result->values, evaluation_, threads_);
    model = with_weights(std::move(model), std::move(result->weights));
    const fs::path path = fs::path(options_.folder) / (name + (llm::container_of(model, *format) == llm::container::gguf ? ".gguf" : ""));
    r.saved = path.string();
    if (auto written = llm::save_model(r.saved, model, *format, llm::stored); !written) return written.error();
    const auto again = llm::open_checkpoint(r.saved);
    if (!again) return again.error();
    auto trained_loss = loss_in_engine(*again, llm::stored);
    if (!trained_loss) return std::move(trained_loss).error();
    r.trained = *trained_loss;
    r.difference = r.trained - own;
    curves_.push_back({name + ", training", std::move(result->losses)});
    rows_.push_back(std::move(r));
    return lowbit::done{};
  }

  void print() const {
    std::size_t tokens = 0;
    for (const auto& w : evaluation_) tokens += w.size() - 1;
    fmt::print("{}: loss in nats a token over {} tokens {}; {} steps of {} sequences, {}\n\n", file_.name, tokens,
               options_.evaluation.empty() ? "that the float model wrote" : "of " + options_.evaluation, how_.steps, how_.batch,
               options_.gradient);
    fmt::print("{:<10} {:>7} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>9}  {}\n", "format", "bits/w", "float", "nearest", "searched", "trained",
               "recovered", "file-loop", "seconds", "saved as");
    for (const row& r : rows_)
      fmt::print("{:<10} {:>7.3f} {:>8.4f} {:>8.4f} {:>8.4f} {:>8.4f} {:>9.1f}% {:>10.1e} {:>9.0f}  {}\n", r.format, r.bits, float_loss_,
                 r.nearest, r.searched, r.trained, 100 * (r.nearest - r.trained) / (r.nearest - float_loss_), r.difference, r.seconds, r.saved);
  }

  const options& options_;
  const recipe how_;
  llm::checkpoint file_;
  llm::thread_pool threads_;
  llm::windows evaluation_, text_;
  double float_loss_ = 0;
  std::vector<row> rows_;
  std::vector<series> curves_;
  std::vector<level> levels_;
};

lowbit::status run(const options& o) {
  std::error_code error;
  fs::create_directories(o.folder, error);
  if (error) return lowbit::failure{lowbit::errc::io, "cannot make " + o.folder + ": " + error.message()};
  auto file = llm::open_checkpoint(o.model);
  if (!file) return std::move(file).error();
  return experiment(o, *std::move(file)).run();
}

}  // namespace

int main(int argc, char** argv) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    std::signal(signal, [](int s) {
      lowbit::remove_partial_files();
      std::signal(s, SIG_DFL);
      std::raise(s);
    });
  options o;
  CLI::App app{"Train a small Llama for low-bit weights and compare it with rounding to nearest."};
  app.failure_message([](const CLI::App*, const CLI::Error& e) { return fmt::format("lowbit_qat: {}\n", e.what()); });
  const std::map<std::string, estimator> gradients{{"ste", estimator::straight_through}, {"lsq", estimator::lsq}, {"lsq+", estimator::lsq_plus}};
  app.add_option("model", o.model, "A .gguf file, a Hugging Face folder, or a llama2.c .bin")->required();
  app.add_option("folder", o.folder, "Where the trained models and the picture go; made if it does not exist")->capture_default_str();
  app.add_option("--format,--formats", o.formats, "Formats to train for, separated by commas")->delimiter(',')->capture_default_str();
  app.add_option("--gradient", o.gradient, "The derivatives of rounding: ste (scales stay), lsq (scales are learnt) or lsq+ (offsets too)")
      ->check(CLI::IsMember(gradients))->capture_default_str();
  app.add_option("--text", o.text, "A UTF-8 text to train on; the float model is tuned to it first (default: one that the float model writes)");
  app.add_option("--evaluation", o.evaluation, "A UTF-8 text to evaluate on (default: another one that the float model writes)");
  app.add_flag("--no-teacher", o.no_teacher, "Learn the tokens of the text, not the float model's probabilities");
  app.add_option("--steps", o.how.steps, "Optimiser steps")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--batch", o.how.batch, "Sequences in a step")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rate", o.how.rate, "Adam's learning rate at its height")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--sequences", o.sequences, "Sequences that the float model writes")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--tokens", o.tokens, "Tokens to evaluate on")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", o.how.seed, "Of the order of the sequences and of the text that is written")->capture_default_str();
  app.add_option("--threads", o.threads, "Threads to use; 0 for as many as the machine has")->check(CLI::Range(0, 1024));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  o.how.gradient = gradients.at(o.gradient);
  const lowbit::status status = run(o);
  if (status) return 0;
  fmt::print(stderr, "lowbit_qat: {}\n", status.error().message);
  return 2;
}
