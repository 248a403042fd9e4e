// A progress bar on standard error: only on a terminal, and only once the work has taken a second.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace llm {

class progress {
 public:
  explicit progress(std::string label);
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() { clear(); }

  /// Says how far the work is; cheap to call often.
  void operator()(std::size_t done, std::size_t total);
  /// Takes the bar away, for instance before something else is printed.
  void clear();

 private:
  using clock = std::chrono::steady_clock;
  std::string label_;
  bool terminal_, drawn_ = false;
  clock::time_point began_, last_;
};

}  // namespace llm
