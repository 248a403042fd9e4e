#include "loading.hpp"

#include "../files/adapter.hpp"
#include "../files/requantise.hpp"
#include "progress.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

namespace llm {

void warn(const checkpoint& file) {
  if (!file.warnings.empty())
    fmt::print(stderr, "lowbit: warning: {}{}\n", file.warnings[0], file.warnings.size() > 1 ? fmt::format(" (and {} more like it)", file.warnings.size() - 1) : "");
}

namespace {

namespace fs = std::filesystem;

// Whether it is a cache of panels, of whatever source and version, or what is left of one behind its header.
bool is_cache(const fs::path& path) {
  const auto file = lowbit::mapped_file::open(path);
  if (!file) return false;
  const auto header = lowbit::read_gguf_header(file->bytes(), std::numeric_limits<std::ptrdiff_t>::max());
  return header && header->metadata.find<std::string>("general.type") == "lowbit.panels";
}

lowbit::result<loaded_model> load(const std::string& path, const common_options& common, thread_pool& threads, const weight_source& source,
                                  std::unique_ptr<lowbit::panel_cache> panels) {
  auto file = open_checkpoint(path, common.tokeniser);
  if (!file) return std::move(file).error();
  const auto in_file = [&](lowbit::failure f) { return lowbit::failure{f.kind, path + ": " + f.message}; };
  warn(*file);
  auto words = tokeniser::from(file->words);
  if (!words) return in_file(words.error());
  progress bar{"loading"};
  std::size_t done = 0;
  const weight_source reported = [&](const tensor& t) {
    bar(done++, file->tensors.size());
    return source(t);
  };
  auto model = build_llama(*file, reported, threads, panels.get());
  if (!model) return in_file(model.error());
  return loaded_model{*std::move(file), *std::move(words), std::move(panels), std::make_unique<llama>(*std::move(model))};
}

}  // namespace

lowbit::result<loaded_model> load_model(const std::string& path, const common_options& common, thread_pool& threads,
                                        const weight_source& source) {
  return load(path, common, threads, source, nullptr);
}

lowbit::result<loaded_model> load_model(const std::string& path, const common_options& common, thread_pool& threads) {
  if (!common.cache) return load(path, common, threads, stored, nullptr);
  std::error_code ignored;
  const fs::path beside = fs::is_directory(path, ignored) ? fs::path(path) / "model.panels" : fs::path(path + ".panels");
  const auto files = files_of(path);
  const auto source = lowbit::fingerprint(files);
  if (!source) return source.error();
  if (auto cache = lowbit::panel_cache::open(beside, *source))
    return load(path, common, threads, stored, std::make_unique<lowbit::panel_cache>(*std::move(cache)));
  auto loaded = load(path, common, threads, stored, nullptr);
  if (!loaded) return loaded;
  if (fs::exists(fs::symlink_status(beside, ignored)) && !is_cache(beside)) {  // a link that leads nowhere is not followed either
    fmt::print(stderr, "lowbit: no cache of panels: {} is there already, and is none\n", line_of(beside.string()));
    return loaded;
  }
  const auto entries = matrices_of(*loaded->model);
  // Only if the files did not change while they were read.
  if (const auto again = lowbit::fingerprint(files); !again || *again != *source) return loaded;
  if (const auto written = lowbit::panel_cache::write(beside, *source, entries); !written)
    fmt::print(stderr, "lowbit: no cache of panels: {}\n", written.error().message);
  return loaded;
}

lowbit::result<weight_source> quantised_source(const std::string& format, thread_pool& threads) {
  if (format.empty()) return weight_source{stored};
  const auto id = format_named(format);
  if (!id) return id.error();
  return weight_source{[how = requantisation{*id, lowbit::method::rtn}, &threads](const tensor& t) { return requantise(t, how, threads); }};
}

lowbit::result<const lowbit::format_spec*> kv_format_named(const std::string& name) {
  if (name.empty()) return &lowbit::spec_of<lowbit::f32>;
  const auto format = format_named(name);
  if (!format) return format.error();
  const lowbit::format_spec& s = lowbit::spec_of_id(*format);
  if (s.is_recoded()) return lowbit::failure{lowbit::errc::unsupported, "keys and values cannot be kept in " + name};
  return &s;
}

void add_activations(CLI::App& command, lowbit::precision& how) {
  static const std::map<std::string, lowbit::precision> names{
      {"automatic", lowbit::precision::automatic}, {"bf16", lowbit::precision::bf16}, {"exact", lowbit::precision::exact},
      {"int16", lowbit::precision::int16}, {"int8", lowbit::precision::int8}};
  command.add_option_function<std::string>("--activations", [&how](const std::string& name) { how = names.at(name); },
                      "What activations are rounded to before a product; automatic: int16 beside codes of 6 bits and more, int8 beside others")
      ->check(CLI::IsMember(names))->default_str("automatic");
}

lowbit::status attach_adapters(loaded_model& model, const std::string& path, const std::vector<std::string>& adapters, thread_pool& threads) {
  if (adapters.empty()) {
    std::error_code ignored;
    const std::string outliers = outliers_beside(path);
    for (const std::string& beside : {outliers, outliers + ".gguf"})
      if (fs::exists(beside, ignored)) fmt::print(stderr, "lowbit: warning: outliers of this model are apart; they go with --adapter {}\n", beside);
    return lowbit::done{};
  }
  const auto adapter = open_adapters(adapters, model.file);
  if (!adapter) return adapter.error();
  attach(*model.model, *adapter, threads);
  return lowbit::done{};
}

lowbit::result<std::string> read_text(const std::string& path) {
  std::error_code ignored;
  std::ifstream file{path, std::ios::binary};
  if (!file || std::filesystem::is_directory(path, ignored)) return lowbit::failure{lowbit::errc::io, path + ": cannot be opened"};
  std::string text{std::istreambuf_iterator<char>{file}, {}};
  if (file.bad()) return lowbit::failure{lowbit::errc::io, path + ": cannot be read"};
  if (const auto at = find_invalid_utf8(text))
    return lowbit::failure{lowbit::errc::bad_value, path + ": is not UTF-8 (byte " + std::to_string(*at) + ")"};
  return text;
}

std::size_t sequence_length(std::size_t asked, std::size_t otherwise, const model_config& c) {
  return std::clamp<std::size_t>(asked != 0 ? asked : otherwise, 2, std::max<std::size_t>(c.context, 2));
}

lowbit::result<windows> windows_of_text(const std::string& path, const tokeniser& words, std::size_t context, std::size_t limit) {
  auto text = read_text(path);
  if (!text) return std::move(text).error();
  std::vector<int> ids = words.encode(*text);
  const int bos = words.data().add_bos ? words.data().bos : -1;
  if (bos >= 0) ids.erase(ids.begin());  // every window gets its own
  windows w = cut_windows(ids, bos, context, limit);
  if (w.empty()) return lowbit::failure{lowbit::errc::bad_value, path + ": is too short to predict a token of"};
  return w;
}

}  // namespace llm
