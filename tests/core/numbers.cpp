// Small floats against double arithmetic, bit fields against brute force, and the little types.
#include <lowbit/core/aligned_buffer.hpp>
#include <lowbit/core/error.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/core/float16.hpp>
#include <lowbit/core/matrix_view.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

using namespace lowbit;

namespace {
double value_of_half(unsigned bits) {
  const unsigned e = bits >> 10 & 31, m = bits & 1023;
  const double v = e == 0 ? m * 0x1p-24 : e == 31 ? (m == 0 ? HUGE_VAL : NAN) : std::ldexp(1024 + m, static_cast<int>(e) - 25);
  return bits & 0x8000 ? -v : v;
}
}  // namespace

TEST_CASE("every binary16 has its value, and comes back from it") {
  for (unsigned b = 0; b < 0x10000; ++b) {
    const f16 h{static_cast<std::uint16_t>(b)};
    const double expected = value_of_half(b);
    if (std::isnan(expected)) {
      CHECK(std::isnan(to_float(h)));
      CHECK(std::isnan(to_float(to_f16(to_float(h)))));
    } else {
      REQUIRE(static_cast<double>(to_float(h)) == expected);
      REQUIRE(to_f16(to_float(h)) == h);
    }
  }
}

TEST_CASE("floats round to the nearest binary16, ties to even") {
  // Between each pair of neighbours: just below, at and just above the midpoint, which double holds exactly.
  for (unsigned b = 0; b < 0x7bff; ++b) {
    const double low = value_of_half(b), high = value_of_half(b + 1);
    const auto middle = static_cast<float>((low + high) / 2);
    REQUIRE(static_cast<double>(middle) == (low + high) / 2);
    REQUIRE(to_f16(middle).bits == (b % 2 == 0 ? b : b + 1));
    REQUIRE(to_f16(std::nextafter(middle, -1.0f)).bits == b);
    REQUIRE(to_f16(std::nextafter(middle, 1e9f)).bits == b + 1);
    REQUIRE(to_f16(-middle).bits == ((b % 2 == 0 ? b : b + 1) | 0x8000u));
  }
  CHECK(to_f16(65519.996f).bits == 0x7bff);
  CHECK(to_f16(65520.0f).bits == 0x7c00);
  CHECK(to_f16(INFINITY).bits == 0x7c00);
  CHECK(to_f16(-1e-10f).bits == 0x8000);
}

TEST_CASE("floats round to the nearest bfloat16, ties to even") {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    const float v = std::bit_cast<float>(bits);
    if (std::isnan(v)) {
      CHECK(std::isnan(to_float(to_bf16(v))));
      continue;
    }
    const float down = std::bit_cast<float>(bits & 0xffff0000u), up = std::bit_cast<float>((bits & 0xffff0000u) + 0x10000u);
    const std::uint32_t low = bits & 0xffffu;
    const float expected = low < 0x8000 ? down : low > 0x8000 ? up : (bits >> 16) % 2 == 0 ? down : up;
    REQUIRE(to_float(to_bf16(v)) == expected);
  }
}

TEST_CASE("shared exponents are powers of two") {
  for (unsigned e = 0; e < 255; ++e) {
    CHECK(static_cast<double>(e8m0_to_float(static_cast<std::uint8_t>(e))) == std::ldexp(1.0, static_cast<int>(e) - 127));
    CHECK(static_cast<double>(e8m0_half_to_float(static_cast<std::uint8_t>(e))) == std::ldexp(1.0, static_cast<int>(e) - 128));
  }
  CHECK(std::isnan(e8m0_to_float(255)));
  for (unsigned e = 0; e < 127; ++e)
    CHECK(static_cast<double>(e4m3_to_float(static_cast<std::uint8_t>(e))) ==
          (e < 8 ? std::ldexp(e, -9) : std::ldexp(8 + e % 8, static_cast<int>(e / 8) - 10)));
}

TEST_CASE("bit fields read what was written and touch nothing else") {
  std::mt19937 random(2);
  for (int t = 0; t < 20000; ++t) {
    std::uint8_t bytes[8], before[8];
    for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
    std::copy(std::begin(bytes), std::end(bytes), before);
    const unsigned width = random() % 9, at = random() % (64 - width + 1), value = random() & ((1u << width) - 1);
    write_bits(bytes, at, width, value);
    REQUIRE(read_bits(bytes, at, width) == value);
    for (unsigned i = 0; i < 64; ++i)
      if (i < at || i >= at + width) REQUIRE(read_bits(bytes, i, 1) == read_bits(before, i, 1));
  }
  CHECK(!checked_mul(std::size_t{1} << 40, std::size_t{1} << 24));
  CHECK(checked_mul(0, SIZE_MAX) == 0u);
  CHECK(!checked_add(SIZE_MAX, 1));
  CHECK(round_up(65, 64) == 128);
}

TEST_CASE("work is dealt out completely and evenly") {
  for (std::size_t count : {0u, 1u, 7u, 64u})
    for (std::size_t tasks : {1u, 3u, 8u}) {
      std::size_t next = 0;
      for (std::size_t i = 0; i < tasks; ++i) {
        const part p = split(count, tasks, i);
        CHECK(p.begin == next);
        CHECK(p.end - p.begin <= count / tasks + 1);
        next = p.end;
      }
      CHECK(next == count);
    }
}

TEST_CASE("results carry a value or a failure") {
  result<int> good = 3, bad = failure{errc::io, "no"};
  CHECK(good);
  CHECK(*good == 3);
  CHECK(!bad);
  CHECK(bad.error().message == "no");
}

TEST_CASE("buffers are aligned, zeroed and movable") {
  aligned_buffer a(1000);
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 64 == 0);
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(a.data()[i] == 0);
  const std::uint8_t* const at = a.data();
  aligned_buffer b = std::move(a);
  CHECK(b.data() == at);
  CHECK(a.size() == 0);
  CHECK(aligned_buffer(SIZE_MAX).size() == 0);  // refused, not wrapped
}

TEST_CASE("views step by their stride") {
  std::vector<float> data(12);
  for (std::size_t i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  const matrix_view<float> m(data.data(), 3, 2, 4);
  CHECK(m(2, 1) == 9.0f);
  const matrix_view<const float> rest = m.middle_rows(1, 2);
  CHECK(rest(0, 0) == 4.0f);
}
