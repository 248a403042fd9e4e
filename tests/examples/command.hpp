// Running the executable `lowbit` as a user does.
#pragma once

#include "tiny_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <sys/wait.h>

struct outcome {
  int code;
  std::string out, err;
};

// Runs `lowbit ARGUMENTS`, or what `before` makes of it ("timeout 1 ").
inline outcome run(const std::string& arguments, const std::string& before = {}) {
  const temporary_folder folder;
  const std::string line = before + "\"" LOWBIT_CLI "\" " + arguments + " > " + folder / "out" + " 2> " + folder / "err" + " < /dev/null";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(folder / "out"), read_bytes(folder / "err")};
}

inline std::size_t lines(const std::string& text) { return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')); }

// Bad input: exit code 2 and one line on standard error, with these words in it.
inline void check_refused(const std::string& arguments, const std::vector<std::string>& words) {
  CAPTURE(arguments);
  const outcome o = run(arguments);
  CAPTURE(o.err);
  CHECK(o.code == 2);
  CHECK(o.out.empty());
  CHECK(lines(o.err) == 1);
  for (const std::string& w : words) CHECK(o.err.find(w) != std::string::npos);
}
