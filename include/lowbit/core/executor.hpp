// Where parallel work runs. lowbit starts no thread; it hands an executor a number of independent tasks.
//
// An executor has `concurrency()`, how many tasks are worth making, and `run(n, f)`, which calls f(0) … f(n-1) in any order on
// any threads and returns when all are done. Work is split by the shape alone, so results never depend on the executor.
#pragma once

#include <lowbit/core/config.hpp>

#include <concepts>

namespace lowbit {

template <class E>
concept executor = requires(E& e, void (&f)(std::size_t)) {
  { e.concurrency() } -> std::convertible_to<std::size_t>;
  e.run(std::size_t{}, f);
};

/// Runs everything on the calling thread.
struct serial_executor {
  [[nodiscard]] static constexpr std::size_t concurrency() noexcept { return 1; }
  template <class F>
  static constexpr void run(std::size_t tasks, F&& f) {
    for (std::size_t i = 0; i < tasks; ++i) f(i);
  }
};

/// The range that task `index` of `tasks` handles when `count` items are dealt out in contiguous, near-equal parts.
struct part {
  std::size_t begin, end;
};
LOWBIT_ALWAYS_INLINE constexpr part split(std::size_t count, std::size_t tasks, std::size_t index) noexcept {
  const std::size_t base = count / tasks, extra = count % tasks;
  const std::size_t begin = index * base + (index < extra ? index : extra);
  return {begin, begin + base + (index < extra)};
}

/// Calls f(begin, end) on contiguous parts of [0, count), no more parts than the executor is wide, none smaller than `grain`.
template <executor E, class F>
void for_parts(E& e, std::size_t count, std::size_t grain, F&& f) {
  if (count == 0) return;
  const std::size_t wanted = grain == 0 ? count : (count + grain - 1) / grain;
  const std::size_t width = e.concurrency();
  const std::size_t tasks = wanted < width ? wanted : width;
  if (tasks <= 1) return f(std::size_t{0}, count);
  e.run(tasks, [&](std::size_t i) {
    const part p = split(count, tasks, i);
    f(p.begin, p.end);
  });
}

}  // namespace lowbit
