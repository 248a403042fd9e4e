// Writing a file so that its name either has the whole content or is not touched.
//
// Bytes go to a new temporary file beside the target (`.NAME.partial-PID`, with a number where that is taken); commit() flushes it to the
// disk and renames it. A writer that is destroyed without commit removes the temporary. A program that is ended by a signal calls
// remove_partial_files() from its handler.
#pragma once

#include <lowbit/io/mapped_file.hpp>

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include <sys/syscall.h>

namespace lowbit {

namespace detail {
/// The name of a temporary that exists now, in a list that a signal handler can walk: entries are added in front and never freed, only used
/// again, and for a name that needs no new memory.
struct partial_file {
  std::atomic<bool> used{true}, ready{false};
  std::string path;
  partial_file* next = nullptr;

  inline static constinit std::atomic<partial_file*> first{nullptr};
};

/// Removes a folder and the files in it by system calls alone, since the C library's functions for folders allocate.
inline void remove_folder(const char* path) noexcept {
  const int folder = ::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
#if defined(SYS_getdents64)
  alignas(8) char entries[4096];
  for (long n = 0; (n = ::syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0;) {
    for (long at = 0; at < n;) {  // {inode: 8, offset: 8, length: 2, type: 1, name}
      std::uint16_t length = 0;
      std::memcpy(&length, entries + at + 16, sizeof length);
      ::unlinkat(folder, entries + at + 19, 0);
      at += length;
    }
  }
#endif
  ::close(folder);
  ::rmdir(path);
}
}  // namespace detail

/// Removes the temporaries of all open writers, and what else is a partial_path. Safe to call from a signal handler.
inline void remove_partial_files() noexcept {
  for (const auto* e = detail::partial_file::first.load(); e != nullptr; e = e->next)
    if (e->ready.load() && ::unlink(e->path.c_str()) != 0) detail::remove_folder(e->path.c_str());
}

/// A file, or a folder of files, that remove_partial_files() removes while this object lives. Movable.
class partial_path {
 public:
  partial_path() = default;
  explicit partial_path(const std::filesystem::path& path) {
    auto& first = detail::partial_file::first;
    entry_ = first.load();
    while (entry_ != nullptr && (entry_->used.load() || entry_->path.capacity() < path.native().size() || entry_->used.exchange(true)))
      entry_ = entry_->next;
    const bool is_new = entry_ == nullptr;
    if (is_new) entry_ = new detail::partial_file;
    entry_->path = path.native();
    entry_->ready = true;
    if (!is_new) return;
    entry_->next = first.load();
    while (!first.compare_exchange_weak(entry_->next, entry_)) {}
  }
  partial_path(partial_path&& other) noexcept : entry_(std::exchange(other.entry_, nullptr)) {}
  partial_path& operator=(partial_path&& other) noexcept {
    std::swap(entry_, other.entry_);
    return *this;
  }
  ~partial_path() {
    if (entry_ == nullptr) return;
    entry_->ready = false;
    entry_->used = false;
  }

 private:
  detail::partial_file* entry_ = nullptr;
};

/// Movable. Not for several threads at once.
class file_writer {
 public:
  /// Fails (io) where the folder is missing or cannot be written to, or the target is there and no regular file: a directory, a device, a
  /// pipe. Of a symbolic link the file that it leads to is written.
  static result<file_writer> create(std::filesystem::path target) {
    std::error_code ignored;
    for (int links = 0; links < 40 && std::filesystem::is_symlink(target, ignored); ++links)
      target = target.parent_path() / std::filesystem::read_symlink(target, ignored);
    const auto kind = std::filesystem::status(target, ignored).type();
    if (kind == std::filesystem::file_type::directory) return failure{errc::io, "cannot write " + target.string() + ": it is a directory"};
    if (kind != std::filesystem::file_type::regular && kind != std::filesystem::file_type::not_found)
      return failure{errc::io, "cannot write " + target.string() + ": it is no regular file"};
    file_writer w;
    w.target_ = target;
    // What has the name already (a link that somebody put there, another writer's file) is not ours to write into: O_EXCL takes neither.
    const std::string name = "." + target.filename().string() + ".partial-" + std::to_string(::getpid());
    for (int taken = 0; taken < most_taken; ++taken) {
      auto path = target.parent_path() / (taken == 0 ? name : name + "-" + std::to_string(taken));
      w.fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
      if (w.fd_ >= 0) w.partial_ = std::move(path);
      if (w.fd_ >= 0 || errno != EEXIST) break;
    }
    if (w.fd_ < 0 && errno == EEXIST)
      return failure{errc::io, "cannot write " + target.string() + ": " + std::to_string(most_taken) + " temporary files " + name + "* are there already"};
    if (w.fd_ < 0) return detail::system_failure("cannot write", target);
    w.remembered_ = partial_path(w.partial_);
    w.buffer_.reserve(buffer_bytes);
    return w;
  }

  file_writer(file_writer&& other) noexcept { swap(other); }
  file_writer& operator=(file_writer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~file_writer() { abandon(); }

  /// Appends bytes. After a failure (disk full, …) every later call fails as well.
  status append(std::span<const std::uint8_t> bytes) {
    if (problem_) return *problem_;
    LOWBIT_EXPECTS(fd_ >= 0);
    written_ += bytes.size();
    if (buffer_.size() + bytes.size() <= buffer_bytes) {
      buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return done{};
    }
    if (status flushed = flush(); !flushed) return flushed;
    return write_all(bytes.data(), bytes.size());
  }
  status append(std::string_view text) { return append({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}); }
  /// Zeros up to the next multiple of `alignment`.
  status pad_to(std::size_t alignment) {
    const std::string zeros((alignment - written_ % alignment) % alignment, '\0');
    return append(std::string_view(zeros));
  }
  [[nodiscard]] std::size_t written() const noexcept { return written_; }

  /// Flushes the file to the disk and closes it: whole, but under its temporary name until commit().
  status finish() {
    LOWBIT_EXPECTS(!partial_.empty());
    if (problem_) return *problem_;
    if (fd_ < 0) return done{};
    if (status flushed = flush(); !flushed) return flushed;
    std::string().swap(buffer_);  // many files may wait for their names
    if (::fsync(fd_) != 0 && errno != EINVAL) return fail("cannot write");
    if (::close(std::exchange(fd_, -1)) != 0) return fail("cannot write");
    return done{};
  }
  /// Makes the file appear under its name.
  status commit() {
    if (status finished = finish(); !finished) return finished;
    if (::rename(partial_.c_str(), target_.c_str()) != 0) return fail("cannot write");
    partial_.clear();
    remembered_ = {};
    return done{};
  }
  /// Makes files that belong together appear, none before all are whole. Where one cannot, those that had appeared are removed again: a part
  /// that is missing is found out, new ones beside old ones are not.
  static status commit_all(std::vector<file_writer> files) {
    for (file_writer& f : files)
      if (status s = f.finish(); !s) return s;
    for (std::size_t i = 0; i < files.size(); ++i)
      if (status s = files[i].commit(); !s) {
        while (i-- > 0) ::unlink(files[i].target_.c_str());
        return s;
      }
    return done{};
  }

 private:
  static constexpr std::size_t buffer_bytes = std::size_t{1} << 20;
  static constexpr int most_taken = 100;  // names of temporaries that are tried

  file_writer() = default;
  void swap(file_writer& other) noexcept {
    std::swap(target_, other.target_);
    std::swap(partial_, other.partial_);
    std::swap(fd_, other.fd_);
    std::swap(written_, other.written_);
    std::swap(buffer_, other.buffer_);
    std::swap(problem_, other.problem_);
    std::swap(remembered_, other.remembered_);
  }
  void abandon() noexcept {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    if (partial_.empty()) return;
    ::unlink(partial_.c_str());
    partial_.clear();
    remembered_ = {};
  }
  status fail(const std::string& what) {
    problem_ = detail::system_failure(what, target_);
    return *problem_;
  }
  status write_all(const std::uint8_t* data, std::size_t size) {
    while (size != 0) {
      const ssize_t n = ::write(fd_, data, size);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail("cannot write");
      data += n;
      size -= static_cast<std::size_t>(n);
    }
    return done{};
  }
  status flush() {
    if (problem_) return *problem_;
    const std::string pending = std::exchange(buffer_, {});
    buffer_.reserve(buffer_bytes);
    return write_all(reinterpret_cast<const std::uint8_t*>(pending.data()), pending.size());
  }

  std::filesystem::path target_, partial_;
  int fd_ = -1;
  std::size_t written_ = 0;
  std::string buffer_;
  std::optional<failure> problem_;
  partial_path remembered_;
};

}  // namespace lowbit
