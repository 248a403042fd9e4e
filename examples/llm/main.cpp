// The executable `lowbit`: quantise a language model, run it, and see what that cost.
//
// Exit codes: 0 fine; 2 bad input or arguments, or something found by verify, with one line on standard error.
#include "commands/commands.hpp"

#include <lowbit/io/file_writer.hpp>

#include <fmt/core.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>
#include <string_view>
#include <system_error>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

// Before an end that unwinds nothing: half-written files go, and what is kept is said.
void clean_up() {
  lowbit::remove_partial_files();
  if (const char* const words = llm::last_words; words != nullptr) (void)!write(STDERR_FILENO, words, std::strlen(words));
}

// Stopped by the user or the system: the signal does what it always does.
void stopped(int signal) {
  clean_up();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

// There is no going on, and nobody to unwind to: many functions are noexcept.
[[noreturn]] void out_of_memory() {
  clean_up();
  constexpr std::string_view words = "lowbit: there is not enough memory\n";
  (void)!write(STDERR_FILENO, words.data(), words.size());
  _exit(2);
}

// What was chosen, its output included.
lowbit::status run(const llm::action& chosen) {
  const lowbit::failure unwritten{lowbit::errc::io, "standard output cannot be written to"};
  try {
    lowbit::status done = chosen();
    if (done && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)) return unwritten;
    return done;
  } catch (const std::system_error&) {  // fmt's, where a buffer is full
    return unwritten;
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, stopped);
  std::set_new_handler(out_of_memory);
#if defined(__GLIBC__)
  // What runs of rows took goes back to the system at once. By itself glibc keeps large blocks from the second one on, in holes that aligned ones do
  // not fit again: 255 MB instead of 62 for 16 MB at a time.
  (void)mallopt(M_MMAP_THRESHOLD, 4 << 20);
#endif
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow further is an error of its write
  CLI::App app{"Quantise language models, run them on low-bit weights, and measure what that costs."};
  app.name("lowbit");
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& e) { return fmt::format("lowbit: {}\n", e.what()); });

  llm::common_options common;
  llm::action chosen;
  llm::add_inspect(app, common, chosen);
  llm::add_verify(app, common, chosen);
  llm::add_quantise(app, common, chosen);
  llm::add_imatrix(app, common, chosen);
  llm::add_convert(app, common, chosen);
  llm::add_merge(app, common, chosen);
  llm::add_evaluate(app, common, chosen);
  llm::add_generate(app, common, chosen);
  llm::add_compare(app, common, chosen);
  for (CLI::App* command : app.get_subcommands({})) {
    command->add_option("--threads", common.threads, "Threads to use; 0 for as many as the machine has")->capture_default_str()->check(CLI::Range(0, 1024));
    command->add_flag("--json", common.json, "Print one JSON value instead of text");
    for (CLI::Option* const path : command->get_options())
      if (path->get_positional()) path->check([](const std::string& text) { return std::string(text.empty() ? "the path is empty" : ""); });
    command->add_option("--tokenizer", common.tokeniser, "For a llama2.c checkpoint: the tokenizer's file, if it is not beside the model");
  }
  if (argc > 1 && argv[1][0] != '-') {
    std::string known;
    bool is_known = false;
    for (const CLI::App* command : app.get_subcommands({})) {
      known.append(known.empty() ? "" : ", ").append(command->get_name());
      is_known |= command->get_name() == argv[1];
    }
    if (!is_known) {
      fmt::print(stderr, "lowbit: unknown command '{}'; there are {}\n", argv[1], known);
      return 2;
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const lowbit::status status = run(chosen);
  if (status) return 0;
  fmt::print(stderr, "lowbit: {}\n", llm::line_of(status.error().message));
  return 2;
}
