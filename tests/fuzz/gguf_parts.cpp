// gguf_model::open on a model in two parts. Input: the size of the first (4 bytes, little-endian), then both.
#include "fuzz.hpp"

#include <lowbit/io/gguf_model.hpp>

#include <algorithm>
#include <cstring>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  static const fuzz::temporary_folder folder;
  std::uint32_t size = 0;
  if (input.size() < sizeof size) return;
  std::memcpy(&size, input.data(), sizeof size);
  const std::string_view both = fuzz::text_of(input.subspan(sizeof size)), first = both.substr(0, size);
  folder.write("m-00001-of-00002.gguf", first);
  folder.write("m-00002-of-00002.gguf", both.substr(first.size()));
  const auto model = gguf_model::open(folder.path() / "m-00001-of-00002.gguf");
  if (fuzz::refuses(model)) return;
  for (const gguf_model::tensor& t : model->tensors()) {
    const auto bytes = model->map(t);
    if (!fuzz::refuses(bytes)) fuzz::touch(bytes->bytes());
  }
}
