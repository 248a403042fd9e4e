// Runs a fuzz target over every file of the folders it is given, and over every beginning of the small ones: a reader must survive a file
// that was cut at any byte. Fails where one that is called bad_* is not refused, and where there is nothing to run.
#include "fuzz.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

int main(int argc, char** argv) {
  constexpr std::size_t small = 4096;
  std::size_t files = 0, runs = 0, accepted = 0;
  for (int i = 1; i < argc; ++i)
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      const std::vector<char> content(std::istreambuf_iterator<char>(in), {});
      ++files;
      for (std::size_t n = content.size() <= small ? 0 : content.size(); n <= content.size(); ++n, ++runs) {
        const auto exact = std::make_unique<std::uint8_t[]>(n);  // of exactly this size: a sanitiser sees what reaches further
        std::copy_n(content.begin(), n, exact.get());
        lowbit::fuzz::refused = false;
        fuzz_one({exact.get(), n});
      }
      if (!entry.path().filename().string().starts_with("bad_") || lowbit::fuzz::refused) continue;  // the last run was of all of it
      std::printf("%s is accepted\n", entry.path().c_str());
      ++accepted;
    }
  std::printf("%zu files, %zu runs\n", files, runs);
  return files == 0 || accepted != 0 ? 1 : 0;
}
