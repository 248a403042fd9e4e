// A progress bar on standard error: only on a terminal, and only once the work has taken a second. It is drawn by a thread of its own, so that
// it appears, and its time goes on, while a long step says nothing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <string>
#include <thread>

namespace llm {

class progress {
 public:
  explicit progress(std::string label);
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;
  ~progress() { clear(); }

  /// Says how far the work is; cheap to call often.
  void operator()(std::size_t done, std::size_t total);
  /// Takes the bar away for good, for instance before something else is printed.
  void clear();

 private:
  void draw_until_cleared();

  std::string label_;
  std::chrono::steady_clock::time_point began_;
  std::mutex guard_;
  std::condition_variable cleared_;
  std::size_t done_ = 0, total_ = 0;
  bool over_ = false;
  std::thread drawing_;  // none where there is no terminal
};

}  // namespace llm
