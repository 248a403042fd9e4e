// Checkpoint layouts: bytes worked out by hand from bitsandbytes' and compressed-tensors' code, and lossless round trips.
#include "../kernel/random_weights.hpp"

#include <lowbit/io/checkpoint.hpp>

#include <doctest/doctest.h>

using namespace lowbit;

namespace {
auto finder(std::vector<checkpoint_part>& parts) {
  for (auto& p : parts) p.declaration.data = p.bytes;
  return [&](const std::string& name) -> const safetensor* {
    for (const auto& p : parts)
      if (p.declaration.name == name) return &p.declaration;
    return nullptr;
  };
}
}  // namespace

TEST_CASE("every weight that can be saved comes back with the same values") {
  std::size_t saved = 0;
  for (const format_spec* s : all_formats::specs)
    for (const std::size_t cols : {64u, 96u, 172u, 256u}) {
      packed_matrix w = test::random_blocks(*s, 37, cols, 3);
      for (std::size_t r = 0; r < w.rows(); ++r)
        for (std::size_t b = 0; b < s->row_blocks(cols); ++b)  // zero-points within the range of the codes, as quantisers make them
          if (s->zero_point.present()) {
            std::uint8_t* const block = w.row(r) + b * s->bytes;
            s->zero_point.set_raw(block, 0, s->zero_point.raw(block, 0) % (1u << s->codes.bits()));
          }
      auto parts = checkpoint_parts("m.weight", w.view());
      CHECK(parts.ok() == (checkpoint_layout_of(*s, cols) != checkpoint_layout::none));
      if (!parts) continue;
      for (const auto& p : *parts) {
        std::size_t bytes = *safetensors_bits(p.declaration.dtype) / 8;
        for (const auto d : p.declaration.shape) bytes *= d;
        CHECK(bytes == p.bytes.size());
      }
      const auto back = read_checkpoint(finder(*parts), "m.weight");
      REQUIRE(back);
      REQUIRE_MESSAGE(*back, (*back).error().message);
      std::vector<float> a(37 * cols), b(37 * cols);
      decode(w.view(), {a.data(), 37, cols});
      decode((**back).view(), {b.data(), 37, cols});
      REQUIRE(std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
      ++saved;
    }
  CHECK(saved > 150);
}

TEST_CASE("compressed-tensors packs codes along the input, zero-points along the output") {
  using format = asymmetric<4, 32>;
  packed_matrix w(spec_of<format>, 9, 32);
  for (std::size_t r = 0; r < 9; ++r) {
    block_parts<format> p;
    p.scale = 0x3c00;  // 1.0
    p.zero_point = static_cast<std::uint8_t>(r);
    for (std::size_t i = 0; i < 32; ++i) p.codes[i] = static_cast<std::uint8_t>(i % 8);
    write_block<format>(p, w.row(r));
  }
  const auto parts = checkpoint_parts("m.weight", w.view());
  REQUIRE(parts);
  const auto& packed = (*parts)[1];
  CHECK(packed.declaration.name == "m.weight_packed");
  CHECK(packed.declaration.shape == std::vector<std::uint64_t>{9, 4});
  std::uint32_t word;
  std::memcpy(&word, packed.bytes.data(), 4);
  CHECK(word == 0x76543210u);
  const auto& zero = (*parts)[2];
  CHECK(zero.declaration.shape == std::vector<std::uint64_t>{2, 1});
  std::memcpy(&word, zero.bytes.data(), 4);
  CHECK(word == 0x76543210u);
  std::memcpy(&word, zero.bytes.data() + 4, 4);
  CHECK(word == 8u);
}

TEST_CASE("bitsandbytes puts the first code in the high nibble and says the rest in JSON") {
  packed_matrix w(spec_of<nf4>, 1, 64);
  block_parts<nf4> p;
  p.scale = std::bit_cast<std::uint32_t>(2.0f);
  for (std::size_t i = 0; i < 64; ++i) p.codes[i] = static_cast<std::uint8_t>(i % 16);
  write_block<nf4>(p, w.row(0));
  const auto parts = checkpoint_parts("m.weight", w.view());
  REQUIRE(parts);
  CHECK((*parts)[2].declaration.shape == std::vector<std::uint64_t>{32, 1});
  CHECK((*parts)[2].bytes[0] == 0x01);
  CHECK((*parts)[2].bytes[1] == 0x23);
  const auto& state = (*parts)[3];
  CHECK(state.declaration.name == "m.weight.quant_state.bitsandbytes__nf4");
  CHECK(std::string(state.bytes.begin(), state.bytes.end()) == R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [1, 64]})");
}

TEST_CASE("parts that contradict each other are refused") {
  const packed_matrix w = test::random_blocks(spec_of<nf4>, 2, 64, 1);
  auto parts = checkpoint_parts("m.weight", w.view());
  const auto spoiled = [&](std::size_t part, std::size_t bytes) {
    auto copy = *parts;
    copy[part].bytes.resize(bytes);
    const auto r = read_checkpoint(finder(copy), "m.weight");
    return r && !*r;
  };
  CHECK(spoiled(0, 4));
  CHECK(spoiled(2, 63));
  CHECK(spoiled(3, 10));
  const packed_matrix u = test::random_blocks(spec_of<asymmetric<3, 32>>, 5, 64, 1);
  auto more = checkpoint_parts("m.weight", u.view());
  for (auto& p : *more) p.declaration.data = p.bytes;
  (*more)[0].bytes[0] = 6;  // another number of rows
  CHECK(!*read_checkpoint(finder(*more), "m.weight"));
}
