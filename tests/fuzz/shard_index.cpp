// read_shard_index: no file name that it accepts leaves the folder.
#include "fuzz.hpp"

#include <lowbit/io/safetensors.hpp>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto where = read_shard_index(fuzz::text_of(input), "index");
  if (fuzz::refuses(where)) return;
  for (const auto& [tensor, file] : *where) {
    const std::filesystem::path p(file);
    fuzz::require(!p.has_parent_path() && p.filename() == p && file != ".." && file != "." && file.find('\0') == file.npos);
  }
}
