// Owned bytes for weights: aligned to a cache line, movable, and allocated through two functions a user can replace.
//
// Large buffers are aligned to 2 MiB and offered for huge pages: with 4 KiB pages, streaming weights loses a quarter of the bandwidth
// of memory to address translation.
#pragma once

#include <lowbit/core/bits.hpp>
#include <lowbit/core/config.hpp>

#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

/// Replace both (before the first lowbit header) to allocate weights elsewhere. May return nullptr. As they are, a program's new-handler hears
/// of weights that find no memory as it does of everything else.
#ifndef LOWBIT_ALIGNED_ALLOC
#define LOWBIT_ALIGNED_ALLOC(alignment, bytes) ::operator new(bytes, std::align_val_t{alignment}, std::nothrow)
#define LOWBIT_ALIGNED_FREE(pointer, alignment) ::operator delete(pointer, std::align_val_t{alignment})
#endif

namespace lowbit {

/// A block of bytes, zeroed unless asked otherwise. Empty where the allocation failed: callers that ask for outside sizes check `size()`.
class aligned_buffer {
 public:
  aligned_buffer() = default;
  explicit aligned_buffer(std::size_t bytes) : aligned_buffer(uninitialised(bytes)) {
    if (size_ != 0) std::memset(data_, 0, size_);
  }
  /// Bytes of any value, for who writes them all: pages are then taken from the system where and when they are written.
  static aligned_buffer uninitialised(std::size_t bytes) {
    aligned_buffer b;
    const std::size_t alignment = alignment_of(bytes);
    if (bytes == 0 || bytes > static_cast<std::size_t>(PTRDIFF_MAX) - huge) return b;
    b.data_ = static_cast<std::uint8_t*>(LOWBIT_ALIGNED_ALLOC(alignment, round_up(bytes, alignment)));
    if (b.data_ == nullptr) return b;
    b.size_ = bytes;
#if defined(__linux__)
    // Many systems give huge pages only to those who ask. A refusal costs nothing but speed.
    if (alignment == huge) (void)::madvise(b.data_, round_up(bytes, huge), MADV_HUGEPAGE);
#endif
    return b;
  }
  aligned_buffer(aligned_buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  aligned_buffer& operator=(aligned_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~aligned_buffer() { LOWBIT_ALIGNED_FREE(data_, alignment_of(size_)); }

  [[nodiscard]] std::uint8_t* data() noexcept { return data_; }
  [[nodiscard]] const std::uint8_t* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t huge = std::size_t{2} << 20;
  static constexpr std::size_t alignment_of(std::size_t bytes) noexcept { return bytes >= huge ? huge : 64; }

  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace lowbit
