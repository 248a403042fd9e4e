// Formats that are not made of planes: their values against the gguf package's, and everything that runs on what they are recoded into.
#include "../kernel/random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/product.hpp>
#include <lowbit/quantise/by_id.hpp>

#include <doctest/doctest.h>

using namespace lowbit;

namespace {

/// Bytes of a linear congruential generator, the same in any language; the scale made finite.
packed_matrix numbered_blocks(const format_spec& s, std::size_t rows) {
  packed_matrix w(s, rows, s.block);
  std::uint32_t x = 12345;
  for (auto& b : w.bytes()) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::uint8_t>(x >> 24);
  }
  const std::size_t top_of_scale = s.name == "iq1_m" ? 55 : s.name == "tq1_0" ? 53 : 1;
  for (std::size_t r = 0; r < rows; ++r) w.row(r)[top_of_scale] &= 0xbf;
  return w;
}

std::uint32_t crc32(const std::uint8_t* p, std::size_t n) {  // ISO 3309, as zlib's
  std::uint32_t c = 0xffffffffu;
  for (std::size_t i = 0; i < n; ++i) {
    c ^= p[i];
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (0xedb88320u & (0u - (c & 1u)));
  }
  return ~c;
}

/// The same weights in the format of planes.
packed_matrix recoded(const packed_matrix& w) {
  packed_matrix out(w.spec().planes(), w.rows(), w.cols());
  for (std::size_t r = 0; r < w.rows(); ++r) recode_row(w.spec(), w.row(r), w.cols(), out.row(r));
  return out;
}

}  // namespace

TEST_CASE("200 blocks of each type have the values that the gguf package gives them") {
  // zlib.crc32 of gguf.quants.dequantize(blocks).tobytes(), gguf 0.19.0, numpy 2.4.6, with 0.0 added so that there is no -0.
  struct expected { std::string_view name; std::uint32_t crc; };
  constexpr expected all[] = {{"iq1_s", 0x191894a6}, {"iq1_m", 0xacae06d1},   {"iq2_xxs", 0xdf245b6b}, {"iq2_xs", 0x0e0225c8},
                              {"iq2_s", 0x3a2f29e0}, {"iq3_xxs", 0x297ab93c}, {"iq3_s", 0x0f1fa646},   {"tq1_0", 0xcf294511}};
  std::size_t seen = 0;
  for (const format_spec* s : recoded_formats::specs)
    for (const expected& e : all) {
      if (e.name != s->name) continue;
      ++seen;
      const packed_matrix w = numbered_blocks(*s, 200);
      std::vector<float> values(200 * s->block);
      decode(w.view(), {values.data(), 200, s->block});
      for (float& v : values) v += 0.0f;
      CHECK_MESSAGE(crc32(reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * 4) == e.crc, std::string(e.name));
    }
  CHECK(seen == recoded_formats::size);
}

TEST_CASE("panels, rows of floats and products are those of the weights' planes, bit for bit") {
  serial_executor serial;
  workspace space;
  constexpr std::size_t rows = 19, tokens = 3;
  for (const format_spec* s : recoded_formats::specs) {
    CAPTURE(std::string(s->name));
    for (const std::size_t cols : {256u, 700u}) {
      packed_matrix w = test::random_blocks(*s, rows, cols, 3);
      for (std::size_t b = 0; b < w.bytes().size(); b += s->bytes) w.bytes()[b + (s->name == "iq1_m" ? 55 : s->name == "tq1_0" ? 53 : 1)] &= 0x3f;
      const packed_matrix planes = recoded(w);
      std::vector<float> expected(rows * cols), got(rows * cols), row(cols), y(tokens * rows), other(tokens * rows);
      decode(planes.view(), {expected.data(), rows, cols});
      decode(w.view(), {got.data(), rows, cols});
      REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * 4) == 0);
      for (const auto& u : kernel::linked_units()) {
        if (!u.available) continue;
        CAPTURE(std::string(u.name));
        std::fill(got.begin(), got.end(), 42.0f);
        dequantise(w.view(), {got.data(), rows, cols}, serial, *u.kernels);
        REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * 4) == 0);
        const panel_matrix a = panel_matrix::from(w.view(), serial, *u.kernels), b = panel_matrix::from(planes.view(), serial, *u.kernels);
        REQUIRE(a.size_bytes() == b.size_bytes());
        REQUIRE(std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
        for (std::size_t r = 0; r < rows; ++r) {
          read_row(a, r, row.data());
          REQUIRE(std::memcmp(row.data(), &expected[r * cols], cols * 4) == 0);
        }
        const auto x = test::random_activations(tokens * cols, 9);
        for (const precision p : {precision::int8, precision::exact}) {
          multiply({x.data(), tokens, cols}, a, {y.data(), tokens, rows}, space, p);
          multiply({x.data(), tokens, cols}, b, {other.data(), tokens, rows}, space, p);
          REQUIRE(std::memcmp(y.data(), other.data(), y.size() * 4) == 0);
        }
      }
    }
  }
}

TEST_CASE("tq1_0 is written as ggml writes it, lattices are refused by name") {
  // One block that ggml's quantize_row_tq1_0_ref made from x[i]: t = (i*i*31 + i*17 + 5) mod 1013, x = (t - 506) / 1024, four times that
  // where i mod 97 == 3.
  std::vector<std::uint8_t> expected(48, 0x80);
  expected[37] = 0x89;
  for (const std::uint8_t b : {0x7f, 0x7f, 0x7f, 0x7f, 0x24, 0x3f}) expected.push_back(b);
  std::array<float, 256> x;
  for (int i = 0; i < 256; ++i)
    x[static_cast<std::size_t>(i)] = static_cast<float>((i * i * 31 + i * 17 + 5) % 1013 - 506) / 1024.0f * (i % 97 == 3 ? 4.0f : 1.0f);
  serial_executor serial;
  const auto q = quantise(id_of<tq1_0>(), method::rtn, matrix_view<const float>(x.data(), 1, 256), serial);
  REQUIRE(q);
  CHECK(std::equal(expected.begin(), expected.end(), q->bytes().begin(), q->bytes().end()));
  const auto none = quantise(id_of<iq2_xs>(), method::rtn, matrix_view<const float>(x.data(), 1, 256), serial);
  REQUIRE(!none);
  CHECK(none.error().message == "format iq2_xs is only read");
}

TEST_CASE("every block of trits survives being recoded and back") {
  std::mt19937 random(5);
  for (int t = 0; t < 500; ++t) {
    std::array<std::uint8_t, 66> planes{}, again{};
    std::array<std::uint8_t, 54> block;
    for (std::size_t i = 0; i < 256; ++i) tq2_0::spec.codes.set_raw(planes.data(), i, static_cast<unsigned>(random() % 3));
    planes[64] = static_cast<std::uint8_t>(random());
    tq1_0::spec.recode.encode(planes.data(), block.data());
    tq1_0::spec.recode.decode(block.data(), again.data());
    REQUIRE(planes == again);
  }
}
