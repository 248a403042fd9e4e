// Eigen::ThreadPool as an executor.
#pragma once

#include <lowbit/core/executor.hpp>

#include <unsupported/Eigen/CXX11/ThreadPool>

namespace lowbit {

/// Runs tasks on a pool that the caller owns; the calling thread takes one.
class eigen_executor {
 public:
  explicit eigen_executor(Eigen::ThreadPoolInterface& pool) : pool_(&pool) {}
  [[nodiscard]] std::size_t concurrency() const noexcept { return static_cast<std::size_t>(pool_->NumThreads()) + 1; }
  template <class F>
  void run(std::size_t tasks, F&& f) {
    if (tasks == 0) return;
    Eigen::Barrier others(static_cast<unsigned>(tasks - 1));
    for (std::size_t i = 1; i < tasks; ++i)
      pool_->Schedule([&f, &others, i] {
        f(i);
        others.Notify();
      });
    f(std::size_t{0});
    others.Wait();
  }

 private:
  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace lowbit
