#include "progress.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <unistd.h>

namespace llm {

progress::progress(std::string label)
    : label_(std::move(label)), terminal_(isatty(STDERR_FILENO) == 1), began_(clock::now()), last_(began_) {}

void progress::operator()(std::size_t done, std::size_t total) {
  using namespace std::chrono_literals;
  const auto now = clock::now();
  if (!terminal_ || total == 0 || now - began_ < 1s || now - last_ < 100ms) return;
  last_ = now;
  drawn_ = true;
  constexpr std::size_t width = 30;
  const std::size_t filled = std::min(done, total) * width / total;
  const double seconds = std::chrono::duration<double>(now - began_).count();
  const double left = done == 0 ? 0.0 : seconds * static_cast<double>(total - std::min(done, total)) / static_cast<double>(done);
  fmt::print(stderr, "\r\x1b[K{:<24} [{:<{}}] {:3}%  {:.0f} s left", label_, std::string(filled, '='), width, done * 100 / total, left);
  std::fflush(stderr);
}

void progress::clear() {
  if (!drawn_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace llm
