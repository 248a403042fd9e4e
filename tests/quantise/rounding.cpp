// Rounding by registers is rounding one weight at a time, bit for bit, in every unit; ranges are the standard library's.
#include "hard_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/standard.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace lowbit;

namespace {
struct q3_g40 { static constexpr format_spec spec = uniform({.bits = 3, .group = 40}); };
using formats = detail::concat<all_formats, format_list<q3_g40>>::type;

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }
}  // namespace

TEST_CASE("codes and values of many weights are those of each") {
  std::size_t compared = 0;
  for (const format_spec* s : formats::specs) {
    if (s->is_float() || s->is_recoded()) continue;
    CAPTURE(std::string(s->name));
    const auto x = hard_weights(4 * round_up(s->block, 256), 7);
    block_buffer buffer(*s);
    const block_fields f = buffer.fields();
    for (std::size_t b = 0; b < 4; ++b) {
      const float* const block = x.data() + b * s->block;
      minmax::fit(*s, block, s->block, {}, f);
      const grid g(*s, f);
      for (const std::size_t first : {std::size_t{0}, std::size_t{s->block / 3}}) {
        const std::size_t n = s->block - first;
        std::vector<std::uint8_t> codes(n), own(n);
        std::vector<float> values(n);
        for (std::size_t i = 0; i < n; ++i) own[i] = static_cast<std::uint8_t>(g.code(block[first + i], first + i));
        const auto check = [&] {
          CHECK(codes == own);
          bool same = true;
          for (std::size_t i = 0; i < n; ++i) same = same && same_bits(values[i], g.value(own[i], first + i));
          CHECK(same);
          ++compared;
        };
        g.round(first, block + first, n, codes.data(), values.data());
        check();
        // The same with a map for each weight, by every unit.
        std::vector<kernel::grid_map> maps;
        for (std::size_t i = 0; i < n; ++i) maps.push_back(g.map((first + i) / s->sub_block()));
        for (const auto& u : kernel::linked_units()) {
          if (!u.available) continue;
          CAPTURE(std::string(u.name));
          std::fill(codes.begin(), codes.end(), std::uint8_t{99});
          std::fill(values.begin(), values.end(), 99.0f);
          u.kernels->round_weights({s, block + first, n, maps.data(), true, codes.data(), values.data()});
          check();
        }
      }
    }
  }
  CHECK(compared > 500);
}

TEST_CASE("ggml's rules are truncation and the standard library's round") {
  std::vector<float> x = hard_weights(512, 11);
  for (int i = -300; i <= 300; ++i)
    for (const float half : {0.0f, 0.5f})
      for (const float toward : {-1e9f, 1e9f}) {
        x.push_back(static_cast<float>(i) + half);
        x.push_back(std::nextafter(static_cast<float>(i) + half, toward));
      }
  std::vector<std::uint8_t> codes(x.size());
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    CAPTURE(std::string(u.name));
    kernel::grid_map map{1, 0, 0.25f, 0, 8.5f};
    std::vector<float> within = x;  // levels that the rule is for: those of a block's own weights
    for (float& v : within) v = std::clamp(v, -32.0f, 32.0f);
    u.kernels->round_weights({&q4_0::spec, within.data(), x.size(), &map, false, codes.data(), nullptr, kernel::rounding_rule::half_up});
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(static_cast<int>(codes[i]) == std::min(15, static_cast<int>(within[i] * 0.25f + 8.5f)));
    map = {1, 0, 1, 0, 0};
    for (float& v : within) v = std::clamp(v * 4, -127.0f, 127.0f);
    u.kernels->round_weights({&q8_0::spec, within.data(), x.size(), &map, false, codes.data(), nullptr, kernel::rounding_rule::away});
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(codes[i] == static_cast<std::uint8_t>(static_cast<int>(std::round(within[i]))));
    for (float& v : within) v = std::clamp(v / 64, -1.0f, 1.0f);
    u.kernels->round_weights({&q2_0::spec, within.data(), x.size(), &map, false, codes.data(), nullptr, kernel::rounding_rule::away});
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(static_cast<int>(codes[i]) == static_cast<int>(std::round(within[i])) + 1);
  }
}

TEST_CASE("ranges are the least and the largest weight, for any number of them") {
  const auto x = hard_weights(256, 9);
  for (const auto& u : kernel::linked_units()) {
    if (!u.available) continue;
    for (std::size_t n = 1; n <= 70; ++n) {
      float low = 1, high = -1;
      u.kernels->find_range(x.data() + n, n, &low, &high);
      CHECK(low == *std::min_element(x.begin() + static_cast<std::ptrdiff_t>(n), x.begin() + static_cast<std::ptrdiff_t>(2 * n)));
      CHECK(high == *std::max_element(x.begin() + static_cast<std::ptrdiff_t>(n), x.begin() + static_cast<std::ptrdiff_t>(2 * n)));
    }
    float low = 1, high = 1;
    const std::vector<float> zeros(19, -0.0f);
    u.kernels->find_range(zeros.data(), zeros.size(), &low, &high);
    CHECK(!std::signbit(low));
    CHECK(!std::signbit(high));
  }
}
