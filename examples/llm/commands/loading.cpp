#include "loading.hpp"

#include "../files/requantise.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace llm {

void warn(const checkpoint& file) {
  if (!file.warnings.empty())
    fmt::print(stderr, "lowbit: warning: {}{}\n", file.warnings[0], file.warnings.size() > 1 ? fmt::format(" (and {} more like it)", file.warnings.size() - 1) : "");
}

lowbit::result<loaded_model> load_model(const std::string& path, const common_options& common, thread_pool& threads,
                                        const weight_source& source) {
  auto file = open_checkpoint(path, common.tokeniser);
  if (!file) return std::move(file).error();
  const auto in_file = [&](lowbit::failure f) { return lowbit::failure{f.kind, path + ": " + f.message}; };
  warn(*file);
  auto words = tokeniser::from(file->words);
  if (!words) return in_file(words.error());
  auto model = build_llama(*file, source, threads);
  if (!model) return in_file(model.error());
  return loaded_model{*std::move(file), *std::move(words), std::make_unique<llama>(*std::move(model))};
}

lowbit::result<weight_source> quantised_source(const std::string& format, thread_pool& threads) {
  if (format.empty()) return weight_source{stored};
  const auto id = format_named(format);
  if (!id) return id.error();
  return weight_source{[how = requantisation{*id, lowbit::method::rtn, {}, 0, 0}, &threads](const tensor& t) { return requantise(t, how, threads); }};
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
