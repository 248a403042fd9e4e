// A small Llama with random weights, written by hand as a llama2.c checkpoint: what the tests of files start from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

/// A folder that is removed again.
class temporary_folder {
 public:
  temporary_folder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() / ("lowbit-test-" + std::to_string(getpid()) + '-' + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{file}, {}};
}
inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream{path, std::ios::binary} << bytes;
}

struct tiny_shape {
  std::int32_t dim = 64, hidden = 128, layers = 2, heads = 4, kv_heads = 2, vocabulary = 270, positions = 64;
};

/// llama2.c's bytes: the header, normally distributed weights (norms around 1), and the tables that readers skip.
inline std::string tiny_checkpoint(const tiny_shape& s, unsigned seed = 1) {
  std::string bytes;
  const auto put = [&](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const std::int32_t h : {s.dim, s.hidden, s.layers, s.heads, s.kv_heads, s.vocabulary, s.positions}) put(h);
  std::minstd_rand random{seed};
  const auto fill = [&](std::size_t count, float centre, float spread) {
    for (std::size_t i = 0; i < count; ++i) {  // the sum of four uniforms is near enough to a normal, and quick
      float sum = -2.0f;
      for (int k = 0; k < 4; ++k) sum += static_cast<float>(random()) / static_cast<float>(random.max());
      put(centre + spread * sum);
    }
  };
  const auto size = [](std::int32_t a, std::int32_t b) { return static_cast<std::size_t>(a) * static_cast<std::size_t>(b); };
  const std::size_t layers = static_cast<std::size_t>(s.layers);
  const std::int32_t kv = s.dim / s.heads * s.kv_heads;
  fill(size(s.vocabulary, s.dim), 0.0f, 1.0f);
  fill(size(s.layers, s.dim), 1.0f, 0.2f);
  fill(layers * size(s.dim, s.dim), 0.0f, 0.3f);
  fill(layers * size(kv, s.dim), 0.0f, 0.3f);
  fill(layers * size(kv, s.dim), 0.0f, 0.3f);
  fill(layers * size(s.dim, s.dim), 0.0f, 0.3f);
  fill(size(s.layers, s.dim), 1.0f, 0.2f);
  fill(layers * size(s.hidden, s.dim), 0.0f, 0.3f);
  fill(layers * size(s.dim, s.hidden), 0.0f, 0.3f);
  fill(layers * size(s.hidden, s.dim), 0.0f, 0.3f);
  fill(static_cast<std::size_t>(s.dim), 1.0f, 0.2f);
  bytes.append(size(s.positions, s.dim / s.heads) * sizeof(float), '\0');
  return bytes;
}

/// Its tokeniser: three control tokens, the 256 bytes, and letters.
inline std::string tiny_tokeniser(std::int32_t vocabulary) {
  std::string bytes;
  const auto put = [&](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  put(std::int32_t{8});
  for (std::int32_t i = 0; i < vocabulary; ++i) {
    const char* const hex = "0123456789ABCDEF";
    std::string piece = i == 0 ? "<unk>" : i == 1 ? "\n<s>\n" : i == 2 ? "\n</s>\n" : "";
    if (i >= 3 && i < 259) piece = std::string{"<0x"} + hex[(i - 3) / 16] + hex[(i - 3) % 16] + '>';
    if (i == 259) piece = " ";
    if (i > 259) piece = i < 286 ? std::string(1, static_cast<char>('a' + i - 260)) : 'q' + std::to_string(i);
    put(static_cast<float>(-i));
    put(static_cast<std::int32_t>(piece.size()));
    bytes += piece;
  }
  return bytes;
}

/// Writes NAME.bin and NAME-tok.bin and returns the first one's path.
inline std::string write_tiny_model(const temporary_folder& folder, const tiny_shape& s = {}, const std::string& name = "tiny") {
  write_bytes(folder / (name + ".bin"), tiny_checkpoint(s));
  write_bytes(folder / (name + "-tok.bin"), tiny_tokeniser(s.vocabulary));
  return folder / (name + ".bin");
}
