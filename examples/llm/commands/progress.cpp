#include "progress.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <unistd.h>

namespace llm {

progress::progress(std::string label) : label_(std::move(label)), began_(std::chrono::steady_clock::now()) {
  if (isatty(STDERR_FILENO) == 1) drawing_ = std::thread{[this] { draw_until_cleared(); }};
}

void progress::operator()(std::size_t done, std::size_t total) {
  const std::lock_guard lock{guard_};
  done_ = std::min(done, total);
  total_ = total;
}

void progress::draw_until_cleared() {
  using namespace std::chrono_literals;
  std::unique_lock lock{guard_};
  bool drawn = false;
  for (auto wait = 1000ms; !cleared_.wait_for(lock, wait, [&] { return over_; }); wait = 200ms) {
    if (total_ == 0) continue;
    constexpr std::size_t width = 30;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    const std::string left = done_ == 0 ? "" : fmt::format("  {:.0f} s left", seconds * static_cast<double>(total_ - done_) / static_cast<double>(done_));
    fmt::print(stderr, "\r\x1b[K{:<24} [{:<{}}] {:3}%  {:.0f} s{}", label_, std::string(done_ * width / total_, '='), width, done_ * 100 / total_, seconds, left);
    std::fflush(stderr);
    drawn = true;
  }
  if (!drawn) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
}

void progress::clear() {
  if (!drawing_.joinable()) return;
  {
    const std::lock_guard lock{guard_};
    over_ = true;
  }
  cleared_.notify_all();
  drawing_.join();
}

}  // namespace llm
