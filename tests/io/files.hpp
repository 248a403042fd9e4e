// A folder of one's own for a test, and files as byte vectors.
#pragma once

#include <lowbit/io/mapped_file.hpp>

#include <fstream>
#include <string>
#include <vector>

namespace lowbit::test {

using bytes = std::vector<std::uint8_t>;

/// Created empty, removed with everything in it.
class scratch_folder {
 public:
  scratch_folder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() / ("lowbit-test-" + std::to_string(::getpid()) + "-" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  scratch_folder(const scratch_folder&) = delete;
  ~scratch_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

 private:
  std::filesystem::path path_;
};

inline bytes read_all(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return bytes(std::istreambuf_iterator<char>(in), {});
}
inline void write_all(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
inline std::span<const std::uint8_t> span_of(const std::string& s) { return {reinterpret_cast<const std::uint8_t*>(s.data()), s.size()}; }

/// Appends a number's bytes.
template <class T>
void put(std::string& s, T v) {
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}
inline void put_string(std::string& s, const std::string& text) {
  put<std::uint64_t>(s, text.size());
  s += text;
}

}  // namespace lowbit::test
