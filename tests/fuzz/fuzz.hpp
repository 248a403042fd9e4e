// What the fuzz targets share. Each target defines fuzz_one(), which must neither crash nor hang nor allocate beyond its input, whatever
// the bytes. Under libFuzzer (preset `fuzz`) it is driven by coverage; otherwise replay.cpp runs it over the stored corpus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

/// Reads `input` with the reader under test.
void fuzz_one(std::span<const std::uint8_t> input);

namespace lowbit::fuzz {

inline std::string_view text_of(std::span<const std::uint8_t> input) { return {reinterpret_cast<const char*>(input.data()), input.size()}; }

/// Inputs of two files: a text, a byte of zero, and the rest.
inline std::pair<std::string_view, std::span<const std::uint8_t>> text_and_rest(std::span<const std::uint8_t> input) {
  const std::string_view text = text_of(input);
  const std::size_t end = text.find('\0');
  if (end == text.npos) return {text, {}};
  return {text.substr(0, end), input.subspan(end + 1)};
}

/// Stops the run: a reader accepted what contradicts itself.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// Whether a reader refused the input, or something in it. What is called bad_* in a corpus has to be.
inline bool refused = false;
/// Notes a refusal, which has to have words.
template <class Result>
[[nodiscard]] bool refuses(const Result& r) {
  if (r) return false;
  require(!r.error().message.empty());
  return refused = true;
}

/// Reads every byte of a span, so that one that reaches too far is noticed.
inline void touch(std::span<const std::uint8_t> bytes) {
  unsigned sum = 0;
  for (const std::uint8_t b : bytes) sum += b;
  volatile unsigned sink = sum;
  (void)sink;
}

/// Bytes as a file that readers can open by path; it lives in memory, and as long as the object.
class memory_file {
 public:
  explicit memory_file(std::span<const std::uint8_t> bytes) : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      require(n > 0);
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
  }
  memory_file(const memory_file&) = delete;
  ~memory_file() { ::close(fd_); }
  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

/// A folder for readers that want several files; it goes with the object.
class temporary_folder {
 public:
  temporary_folder() {
    std::string name = (std::filesystem::temp_directory_path() / "lowbit-fuzz-XXXXXX").string();
    require(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  temporary_folder(const temporary_folder&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  void write(const char* name, std::string_view content) const {
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    require(out.good());
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lowbit::fuzz
