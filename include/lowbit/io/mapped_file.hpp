// A file as read-only bytes, mapped by the operating system: nothing is copied, and nothing larger than the file is ever allocated.
#pragma once

#include <lowbit/core/error.hpp>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lowbit {

namespace detail {
inline failure system_failure(const std::string& what, const std::filesystem::path& path) {
  return {errc::io, what + " " + path.string() + ": " + std::strerror(errno)};
}
}  // namespace detail

/// Movable; the bytes live as long as the object.
class mapped_file {
 public:
  mapped_file() = default;

  /// Fails (io) for what is missing, unreadable or not a regular file. An empty file is an empty span.
  static result<mapped_file> open(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return detail::system_failure("cannot open", path);
    struct stat info {};
    mapped_file file;
    failure problem{errc::io, ""};
    if (::fstat(fd, &info) != 0) {
      problem = detail::system_failure("cannot read", path);
    } else if (!S_ISREG(info.st_mode)) {
      problem.message = "cannot read " + path.string() + ": not a regular file";
    } else if (info.st_size > 0) {
      void* const at = ::mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
      if (at == MAP_FAILED) problem = detail::system_failure("cannot map", path);
      else file.bytes_ = {static_cast<const std::uint8_t*>(at), static_cast<std::size_t>(info.st_size)};
    }
    ::close(fd);
    if (!problem.message.empty()) return problem;
    return file;
  }

  mapped_file(mapped_file&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~mapped_file() {
    if (!bytes_.empty()) ::munmap(const_cast<std::uint8_t*>(bytes_.data()), bytes_.size());
  }

  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept { return bytes_; }

  /// Tells the system that these bytes will not be needed again soon, so that a pass over a large file keeps little of it resident.
  void release(std::span<const std::uint8_t> part) const noexcept {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<std::uintptr_t>(part.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(part.data() + part.size()) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace lowbit
