// Executors for tests: results must not depend on them.
#pragma once

#include <cstddef>

/// Says that it is `Width` tasks wide, and runs them backwards on the calling thread.
template <std::size_t Width>
struct backwards_executor {
  static constexpr std::size_t concurrency() { return Width; }
  template <class F>
  static void run(std::size_t n, F&& f) {
    while (n-- > 0) f(n);
  }
};
