// Weights without a value: found by their bits exactly where their values are none, in every format, and refused where panels are built.
#include "../executors.hpp"
#include "../kernel/random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/panel_matrix.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace lowbit;
using test::random_blocks;

TEST_CASE("the search that reads no codes knows every number that has no value, and where the first block with one is") {
  const auto holds = [](number type, std::uint32_t bits) {
    std::uint8_t bytes[12] = {};
    std::memcpy(bytes + 5, &bits, size_of(type));
    return std::pair{detail::any_non_finite(type, bytes + 5, 1, size_of(type)), detail::any_non_finite(type, bytes, 2, 5)};
  };
  for (const number type : {number::f16, number::bf16, number::e8m0_half, number::e4m3_half}) {
    std::size_t differ = 0;
    for (std::uint32_t bits = 0; bits < 1u << (8 * size_of(type)); ++bits) {
      const bool bad = !std::isfinite(number_value(type, bits));
      differ += holds(type, bits) != std::pair{bad, bad};
    }
    CHECK(differ == 0);
  }
  for (const float v : {0.0f, -1.0f, 3.4028235e38f, 1e-45f, NAN, INFINITY, -INFINITY})
    CHECK(holds(number::f32, std::bit_cast<std::uint32_t>(v)).first == !std::isfinite(v));

  const auto spoil = [](const format_spec& s, std::size_t at, std::uint32_t bits, unsigned bytes) {
    packed_matrix w = random_blocks(s, 4, 3 * s.block, 7);
    CHECK(!find_non_finite(w.view()));
    std::memcpy(w.row(3), &bits, bytes);  // a later one
    std::memcpy(w.row(2) + s.bytes + at, &bits, bytes);
    return find_non_finite(w.view()).value_or(block_place{});
  };
  for (const format_spec* s : all_formats::specs) {
    if (s->is_float() || s->is_recoded()) continue;
    CAPTURE(std::string(s->name));
    for (const scalar_field& f : {s->scale, s->minimum}) {
      if (size_of(f.type) < 2) continue;
      const block_place place = spoil(*s, f.at, f.type == number::f16 ? 0x7c00 : f.type == number::bf16 ? 0x7f80 : 0x7f80'0000, size_of(f.type));
      CHECK(place.row == 2);
      CHECK(place.col == s->block);
    }
  }
  packed_matrix trits(spec_of<tq1_0>, 1, 512), lattice(spec_of<iq2_xxs>, 1, 512);
  CHECK(!find_non_finite(trits.view()));
  CHECK(!find_non_finite(lattice.view()));
  trits.bytes()[2 * spec_of<tq1_0>.bytes - 1] = 0x7c;  // its scale is the block's last two bytes, iq2_xxs's the first two
  lattice.bytes()[spec_of<iq2_xxs>.bytes + 1] = 0x7c;
  CHECK(find_non_finite(trits.view()).value_or(block_place{}).col == 256);
  CHECK(find_non_finite(lattice.view()).value_or(block_place{}).col == 256);
  packed_matrix floats(spec_of<float16>, 2, 3);
  floats.row(1)[5] = 0x7e;
  CHECK(find_non_finite(floats.view()).value_or(block_place{}).col == 2);
}

TEST_CASE("panels of checked weights are the same bytes; a block without a value is refused by the first one's place, whatever the threads") {
  backwards_executor<3> backwards;
  serial_executor serial;
  for (const format_spec* s : all_formats::specs) {
    CAPTURE(std::string(s->name));
    packed_matrix w = random_blocks(*s, 1011, 2048 + (s->block == 1 ? 35 : 0), 3);  // several pieces of a cache's size, a ragged panel
    if (s->is_recoded())
      for (std::uint8_t* b = w.bytes().data(); b != w.bytes().data() + w.bytes().size(); b += s->bytes)
        b[s->name == "iq1_m" ? 55 : s->name == "tq1_0" ? 53 : 1] &= 0xbf;  // the high byte of the scale
    const auto checked = panel_matrix::from_checked(w.view(), backwards);
    REQUIRE_MESSAGE(checked, checked.error().message);
    const panel_matrix plain = panel_matrix::from(w.view(), serial);
    REQUIRE(checked->size_bytes() == plain.size_bytes());
    CHECK(std::memcmp(checked->data(), plain.data(), plain.size_bytes()) == 0);
  }
  packed_matrix w = random_blocks(spec_of<q4_0>, 2000, 4096, 3);
  for (const std::size_t row : {1999, 1200, 1203}) w.row(row)[33 * spec_of<q4_0>.bytes + 1] = 0x7e;
  for (int threads = 0; threads < 2; ++threads) {
    const auto refused = threads == 0 ? panel_matrix::from_checked(w.view(), serial) : panel_matrix::from_checked(w.view(), backwards);
    REQUIRE(!refused);
    CHECK(refused.error().kind == errc::bad_value);
    CHECK(refused.error().message == "a weight is not finite, at row 1200, column 1056");
  }
}
