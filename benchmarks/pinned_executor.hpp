// Threads that stay on a processor each and wait for work by spinning: what a measurement of several cores needs. An unpinned pair often
// shares one processor, and sleeping threads take longer to wake than a product of one token takes.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lowbit::bench {

/// The processors that this process was allowed when this was first called.
inline const std::vector<int>& processors() {
  static const std::vector<int> all = [] {
    std::vector<int> out;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
      for (int i = 0; i < CPU_SETSIZE; ++i)
        if (CPU_ISSET(i, &set)) out.push_back(i);
#endif
    return out;
  }();
  return all;
}

/// Keeps the calling thread on some of them, where the system can.
inline void stay_on([[maybe_unused]] std::span<const int> some) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int p : some) CPU_SET(static_cast<std::size_t>(p), &set);
  if (!some.empty()) sched_setaffinity(0, sizeof set, &set);
#endif
}

/// An executor of `threads` threads, the caller's among them, on the first processors. The caller is pinned while it lives.
class pinned_executor {
 public:
  explicit pinned_executor(std::size_t threads) : threads_(threads) {
    pin(0);
    for (std::size_t i = 1; i < threads; ++i)
      workers_.emplace_back([this, i] {
        pin(i);
        work(i);
      });
  }
  pinned_executor(const pinned_executor&) = delete;
  pinned_executor& operator=(const pinned_executor&) = delete;
  ~pinned_executor() {
    stopped_ = true;
    round_.fetch_add(1);
    for (std::thread& t : workers_) t.join();
    stay_on(processors());
  }

  [[nodiscard]] std::size_t concurrency() const noexcept { return threads_; }
  template <class F>
  void run(std::size_t tasks, F&& f) {
    call_ = [](void* context, std::size_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); };
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    tasks_ = tasks;
    working_.store(workers_.size());
    round_.fetch_add(1);  // what is above is seen by who sees this
    for (std::size_t i = 0; i < tasks; i += concurrency()) f(i);
    while (working_.load() != 0) {
    }
  }

 private:
  static void pin(std::size_t i) {
    const std::span<const int> all = processors();
    if (!all.empty()) stay_on(all.subspan(i % all.size(), 1));
  }
  void work(std::size_t first) {
    for (std::size_t seen = 0;;) {
      std::size_t now = round_.load();
      for (; now == seen; now = round_.load()) {
      }
      seen = now;
      if (stopped_) return;
      for (std::size_t i = first; i < tasks_; i += concurrency()) call_(context_, i);
      working_.fetch_sub(1);
    }
  }

  std::size_t threads_;
  std::vector<std::thread> workers_;
  std::atomic<std::size_t> round_{0}, working_{0};
  std::atomic<bool> stopped_{false};
  void (*call_)(void*, std::size_t) = nullptr;
  void* context_ = nullptr;
  std::size_t tasks_ = 0;
};

}  // namespace lowbit::bench
