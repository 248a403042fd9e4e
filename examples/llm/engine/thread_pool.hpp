// A lowbit executor: some threads that wait for work, and the calling thread, which works along.
//
// `run` is called many times for one token, on work of tens of microseconds, so waiting threads look out for a while before they
// sleep, and a call waits only for threads that took part: one that the system does not schedule in time costs nothing. One caller
// at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace llm {

class thread_pool {
 public:
  /// A pool of `threads` including the caller; 0 means as many as the machine has. Where the system gives no more, those that there are do the work.
  explicit thread_pool(std::size_t threads) {
    if (threads == 0) threads = std::thread::hardware_concurrency();
    workers_.reserve(threads);
    try {
      for (std::size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { wait_and_work(); });
    } catch (const std::system_error&) {
    }
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() {
    stopping_ = true;
    start();
    for (std::thread& t : workers_) t.join();
  }

  [[nodiscard]] std::size_t concurrency() const noexcept { return workers_.size() + 1; }

  /// f(0) … f(tasks - 1), on any threads; returns when all are done.
  template <class F>
  void run(std::size_t tasks, F&& f) {
    if (workers_.empty() || tasks <= 1) {
      for (std::size_t i = 0; i < tasks; ++i) f(i);
      return;
    }
    call_ = [](void* context, std::size_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); };
    context_ = const_cast<void*>(static_cast<const void*>(&f));
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    state_.store(open, std::memory_order_release);
    start();
    work();
    // Nobody may enter any more; those who did may still use f.
    state_.fetch_and(~open, std::memory_order_acq_rel);
    spin_until([&] { return state_.load(std::memory_order_acquire) == 0; });
    for (auto inside = state_.load(std::memory_order_acquire); inside != 0; inside = state_.load(std::memory_order_acquire))
      state_.wait(inside, std::memory_order_acquire);
  }

 private:
  static constexpr std::uint32_t open = std::uint32_t{1} << 31;

  template <class Condition>
  static void spin_until(Condition&& condition) {
    for (int i = 0; i < 4000 && !condition(); ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
  void start() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }
  void work() {
    for (std::size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < tasks_; i = next_.fetch_add(1, std::memory_order_relaxed))
      call_(context_, i);
  }
  void wait_and_work() {
    for (std::uint32_t seen = 0;;) {
      spin_until([&] { return round_.load(std::memory_order_acquire) != seen; });
      round_.wait(seen, std::memory_order_acquire);
      seen = round_.load(std::memory_order_acquire);
      if (stopping_) return;
      auto inside = state_.load(std::memory_order_acquire);
      while ((inside & open) != 0 && !state_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
      }
      if ((inside & open) == 0) continue;
      work();
      if (state_.fetch_sub(1, std::memory_order_acq_rel) == 1) state_.notify_one();
    }
  }

  void (*call_)(void*, std::size_t) = nullptr;
  void* context_ = nullptr;
  std::size_t tasks_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::uint32_t> round_{0}, state_{0};  // state_: workers inside the current call, and whether more may enter
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace llm
