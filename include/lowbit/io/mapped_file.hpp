// A file, or a part of one, as read-only bytes mapped by the operating system: nothing is copied or allocated.
//
// The file has to stay as it is meanwhile. What is written into it shows in the bytes, and where it is cut off, reading what was behind the
// new end stops the process with SIGBUS: no check can come before that. Who replaces a file by renaming another one disturbs nobody.
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

/// Bytes of a file. Movable; they live as long as the object.
class mapped_file {
 public:
  mapped_file() = default;

  /// The whole file. Fails (io) for what is missing, unreadable or not a regular file. An empty file is an empty span.
  static result<mapped_file> open(const std::filesystem::path& path);

  mapped_file(mapped_file&& other) noexcept : bytes_(std::exchange(other.bytes_, {})), before_(std::exchange(other.before_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(before_, other.before_);
    return *this;
  }
  ~mapped_file() {
    if (!bytes_.empty()) ::munmap(const_cast<std::uint8_t*>(bytes_.data()) - before_, bytes_.size() + before_);
  }

  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept { return bytes_; }

 private:
  friend class open_file;
  std::span<const std::uint8_t> bytes_;
  std::size_t before_ = 0;  // from the page where the mapping begins
};

/// A file whose parts are mapped when they are needed: for files that are larger than what a process may map or keep.
class open_file {
 public:
  /// Fails (io) for what is missing, unreadable or not a regular file.
  static result<open_file> open(const std::filesystem::path& path) {
    open_file file;
    file.path_ = path;
    file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer would be waited for
    if (file.fd_ < 0) return detail::system_failure("cannot open", path);
    struct stat info {};
    if (::fstat(file.fd_, &info) != 0) return detail::system_failure("cannot read", path);
    if (!S_ISREG(info.st_mode)) return failure{errc::io, "cannot read " + path.string() + ": not a regular file"};
    file.size_ = static_cast<std::size_t>(info.st_size);
    return file;
  }

  open_file(open_file&& other) noexcept { swap(other); }
  open_file& operator=(open_file&& other) noexcept {
    swap(other);
    return *this;
  }
  ~open_file() {
    if (fd_ >= 0) ::close(fd_);
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  /// Bytes [offset, offset + bytes). Expects them inside the file. Fails (io) where the system does not map them.
  [[nodiscard]] result<mapped_file> map(std::size_t offset, std::size_t bytes) const {
    LOWBIT_EXPECTS(offset <= size_ && bytes <= size_ - offset);
    mapped_file part;
    if (bytes == 0) return part;
    const std::size_t before = offset % static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    void* const at = ::mmap(nullptr, bytes + before, PROT_READ, MAP_PRIVATE, fd_, static_cast<off_t>(offset - before));
    if (at == MAP_FAILED) return detail::system_failure("cannot map", path_);
    part.bytes_ = {static_cast<const std::uint8_t*>(at) + before, bytes};
    part.before_ = before;
    return part;
  }

 private:
  open_file() = default;
  void swap(open_file& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    std::swap(size_, other.size_);
  }

  std::filesystem::path path_;
  int fd_ = -1;
  std::size_t size_ = 0;
};

inline result<mapped_file> mapped_file::open(const std::filesystem::path& path) {
  auto file = open_file::open(path);
  if (!file) return std::move(file).error();
  return file->map(0, file->size());
}

}  // namespace lowbit
