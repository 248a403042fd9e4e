// The subcommands of `lowbit`. Each adds itself to the command line and says what to run when it was chosen.
#pragma once

#include <lowbit/core/error.hpp>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>

namespace llm {

/// What every subcommand takes.
struct common_options {
  std::size_t threads = 0;  ///< 0: as many as the machine has
  bool json = false;        ///< one JSON value on standard output instead of text
  std::string tokeniser;    ///< for llama2.c's checkpoints: the tokenizer's file
  bool cache = false;       ///< keep the panels of a model that is run as stored in a file beside it
};

/// What standard error is told when a signal ends the program; null: nothing.
inline std::atomic<const char*> last_words{nullptr};

/// The chosen subcommand.
using action = std::function<lowbit::status()>;

/// For options: a number in [low, high], which NaN is not.
inline CLI::Validator number_between(double low, double high) {
  return CLI::Validator([low, high](const std::string& text) -> std::string {
    double v = 0;
    if (CLI::detail::lexical_cast(text, v) && v >= low && v <= high) return {};
    std::string range = std::to_string(low);
    return text + " is not between " + range.substr(0, range.find('.')) + " and " + std::to_string(static_cast<long>(high));
  }, "FROM " + std::to_string(static_cast<long>(low)) + " TO " + std::to_string(static_cast<long>(high)));
}

/// To transform() options by: a whole number from `low` on, in digits. (CLI11 by itself takes -1 for 2^64 - 1, whatever does not fit for that
/// too, and 010 for eight.)
inline CLI::Validator whole_number(std::uint64_t low = 0) {
  return CLI::Validator([low](std::string& text) -> std::string {
    std::uint64_t v = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
    if (error != std::errc{} || end != text.data() + text.size() || v < low) return text + " is not a whole number from " + std::to_string(low) + " to 2^64 - 1";
    text = std::to_string(v);
    return {};
  }, "FROM " + std::to_string(low));
}

/// Adds --split. (CLI11's sizes by themselves may be negative, and overflow.)
inline void add_split(CLI::App& command, std::size_t& bytes) {
  static const CLI::Validator digits([](std::string& text) -> std::string {
    const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
    return count == 0 || count > 12 ? text + " is not a size such as 500M or 2G" : std::string();
  }, "SIZE");
  command.add_option("--split", bytes, "Write several files of at most so many bytes of tensors each (2G), but for one that has more; GGUF as OUT-00001-of-….gguf")
      ->transform(CLI::AsSizeValue(false))->transform(digits);
}

/// A text as one line for people, what steers terminals made visible: names from files may have anything in them.
inline std::string line_of(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) line.append("\\x").append({digits[byte >> 4], digits[byte & 15]});
    else line += c;
  }
  return line;
}

/// Prints one JSON value; bytes that are not UTF-8 (of files' names) are replaced.
inline void print_json(const nlohmann::ordered_json& j) {
  const std::string text = j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void add_inspect(CLI::App& app, const common_options& common, action& chosen);
void add_verify(CLI::App& app, const common_options& common, action& chosen);
void add_quantise(CLI::App& app, const common_options& common, action& chosen);
void add_imatrix(CLI::App& app, const common_options& common, action& chosen);
void add_convert(CLI::App& app, const common_options& common, action& chosen);
void add_merge(CLI::App& app, const common_options& common, action& chosen);
void add_evaluate(CLI::App& app, common_options& common, action& chosen);
void add_generate(CLI::App& app, common_options& common, action& chosen);
void add_compare(CLI::App& app, const common_options& common, action& chosen);

}  // namespace llm
