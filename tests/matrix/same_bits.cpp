// The integer path has the same bits on every machine: checksums of products, committed, that every instruction set, compiler and
// processor family must meet. And the unit that is chosen is the most capable one that the processor has.
#include "../kernel/random_weights.hpp"
#include "defined_product.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/product.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cstdlib>

using namespace lowbit;

namespace {
constexpr std::size_t rows = 35, cols = 531, tokens = 7;

/// Activations that are exact in every C++ library: multiples of 1/256, of very different size from block to block.
std::vector<float> exact_activations() {
  std::mt19937 random(17);
  std::vector<float> x(tokens * cols);
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = std::ldexp(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 256.0f, static_cast<int>(i / 48 % 7) - 3);
  return x;
}

/// CRC-32 as in ISO 3309 (the polynomial of zlib and Ethernet), bit by bit.
std::uint32_t crc32(const std::vector<float>& values) {
  std::uint32_t crc = ~0u;
  for (const float v : values)
    for (std::uint32_t bits = std::bit_cast<std::uint32_t>(v), i = 0; i < 4; ++i, bits >>= 8) {
      crc ^= bits & 255u;
      for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ ((crc & 1u) != 0 ? 0xedb8'8320u : 0u);
    }
  return ~crc;
}

struct expectation {
  const format_spec* spec;
  std::uint32_t crc;
  precision how = precision::int8;
};
// From test::defined_product on x86-64; those of q4_0, q8_0, q5_1 and iq4_nl also from a program in another language, written from the
// layouts' descriptions, that rounds binary64 to binary32.
const expectation expectations[] = {
    {&spec_of<q4_0>, 0x9288'73dbu},
    {&spec_of<q5_1>, 0x29a5'fa0eu},
    {&spec_of<q8_0>, 0x28ee'f493u},
    {&spec_of<iq4_nl>, 0x15f0'3023u},
    {&spec_of<q2_k>, 0x6725'1b57u},
    {&spec_of<q3_k>, 0x3de8'c092u},
    {&spec_of<q4_k>, 0x2c92'c42du},
    {&spec_of<q5_k>, 0x76eb'9e50u},
    {&spec_of<q6_k>, 0x3526'f95au},
    {&spec_of<iq4_xs>, 0x5630'ee21u},
    {&spec_of<mxfp4>, 0xd346'1582u},
    {&spec_of<tq2_0>, 0xbe06'f7b3u},
    {&spec_of<symmetric<1, 32>>, 0xce45'0383u},
    {&spec_of<asymmetric<3, 64>>, 0xeb85'fd7du},
    {&spec_of<asymmetric<4, 128>>, 0x2752'0d1cu},
    {&spec_of<symmetric<7, 40>>, 0x8b54'ce40u},
    {&spec_of<asymmetric<8, 128>>, 0xa9b8'5b76u},
    {&spec_of<q8_0>, 0x4c92'088eu, precision::int16},
    {&spec_of<q6_k>, 0xcdda'7072u, precision::int16},
    {&spec_of<asymmetric<8, 128>>, 0x0247'80b9u, precision::int16},
};
}  // namespace

TEST_CASE("checksum: CRC-32 of the standard's check input") {
  CHECK(crc32({std::bit_cast<float>(0x3433'3231u), std::bit_cast<float>(0x3837'3635u)}) == 0x9ae0'daafu);  // "12345678"
}

TEST_CASE("checksum: integer products have the committed bits on every instruction set") {
  serial_executor serial;
  workspace space;
  const std::vector<float> x = exact_activations();
  for (const expectation& e : expectations) {
    const format_spec* const spec = e.spec;
    const std::uint32_t crc = e.crc;
    const int levels = e.how == precision::int8 ? 127 : test::defined_int16_levels(*spec);
    CAPTURE(std::string(spec->name));
    const packed_matrix w = test::random_blocks(*spec, rows, cols, 23);
    std::vector<float> weights(rows * cols), expected(tokens * rows), y(tokens * rows);
    decode(w.view(), {weights.data(), rows, cols});
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        const float* const xt = &x[t * cols];
        expected[t * rows + r] = test::defined_product(w, r, xt, levels);
        // What rounding activations can change: half a step for each of them.
        double sum = 0, slack = 0;
        for (std::size_t begin = 0; begin < cols; begin += spec->block) {
          const std::size_t end = std::min<std::size_t>(begin + spec->block, cols);
          double largest = 0, magnitude = 0;
          for (std::size_t c = begin; c < end; ++c) {
            const double wc = weights[r * cols + c], xc = xt[c];
            sum += wc * xc;
            magnitude += std::fabs(wc);
            largest = std::max(largest, std::fabs(xc));
          }
          slack += magnitude * largest / levels * 0.5001;
        }
        REQUIRE(std::fabs(sum - expected[t * rows + r]) <= slack + 1e-3);
      }
    CHECK(crc32(expected) == crc);
    for (const auto& u : kernel::linked_units()) {
      if (!u.available) continue;
      CAPTURE(std::string(u.name));
      multiply({x.data(), tokens, cols}, panel_matrix::from(w.view(), serial, *u.kernels), {y.data(), tokens, rows}, space, e.how);
      CHECK(crc32(y) == crc);
    }
  }
}

TEST_CASE("checksum: the chosen unit is the last that this processor has, and the one that is expected where one is") {
  const auto units = kernel::linked_units();
  REQUIRE(units[0].available);
  if (std::getenv("LOWBIT_ARCH") != nullptr) return;
  std::string chosen;
  for (const auto& u : units)
    if (u.available) chosen = u.name;
  for (const auto& u : units) CHECK((u.kernels == &kernel::best_unit()) == (u.name == chosen));
  if (const char* const expected = std::getenv("LOWBIT_EXPECTED_UNIT")) CHECK(chosen == expected);
}
