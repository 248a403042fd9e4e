// The layouts read a second time, with plain loops written from the formats' descriptions rather than from their specs: on random bytes
// both readings give the same bits. And blocks survive being taken apart.
#include <lowbit/format/codec.hpp>
#include <lowbit/format/registry.hpp>

#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

using namespace lowbit;

namespace {

float half(const std::uint8_t* p) {  // through double arithmetic, not through to_float
  const unsigned bits = p[0] | p[1] << 8, e = bits >> 10 & 31, m = bits & 1023;
  double v = e == 0 ? m * 0x1p-24 : e == 31 ? (m == 0 ? HUGE_VAL : NAN) : std::ldexp(1024 + m, static_cast<int>(e) - 25);
  return static_cast<float>(bits & 0x8000 ? -v : v);
}
// Products that must be rounded before they are added to.
float times(float a, float b) {
  volatile float p = a * b;
  return p;
}

using reading = std::function<void(const std::uint8_t*, float*)>;
constexpr int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Scale and minimum j of the twelve bytes of q4_k and q5_k.
void six_bits(const std::uint8_t* s, int j, int& scale, int& minimum) {
  if (j < 4) {
    scale = s[j] & 63;
    minimum = s[j + 4] & 63;
  } else {
    scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    minimum = s[j + 4] >> 4 | s[j] >> 6 << 4;
  }
}

const std::map<std::string_view, reading> readings{
    {"q4_0", [](const std::uint8_t* b, float* y) {
       for (int j = 0; j < 16; ++j) {
         y[j] = half(b) * static_cast<float>((b[2 + j] & 15) - 8);
         y[j + 16] = half(b) * static_cast<float>((b[2 + j] >> 4) - 8);
       }
     }},
    {"q4_1", [](const std::uint8_t* b, float* y) {
       for (int j = 0; j < 16; ++j) {
         y[j] = times(half(b), static_cast<float>(b[4 + j] & 15)) + half(b + 2);
         y[j + 16] = times(half(b), static_cast<float>(b[4 + j] >> 4)) + half(b + 2);
       }
     }},
    {"q5_0", [](const std::uint8_t* b, float* y) {
       const unsigned high = b[2] | b[3] << 8 | b[4] << 16 | static_cast<unsigned>(b[5]) << 24;
       for (int j = 0; j < 16; ++j) {
         y[j] = half(b) * static_cast<float>(static_cast<int>((b[6 + j] & 15) | (high >> j & 1) << 4) - 16);
         y[j + 16] = half(b) * static_cast<float>(static_cast<int>(b[6 + j] >> 4 | (high >> (j + 16) & 1) << 4) - 16);
       }
     }},
    {"q5_1", [](const std::uint8_t* b, float* y) {
       const unsigned high = b[4] | b[5] << 8 | b[6] << 16 | static_cast<unsigned>(b[7]) << 24;
       for (int j = 0; j < 16; ++j) {
         y[j] = times(half(b), static_cast<float>((b[8 + j] & 15) | (high >> j & 1) << 4)) + half(b + 2);
         y[j + 16] = times(half(b), static_cast<float>(b[8 + j] >> 4 | (high >> (j + 16) & 1) << 4)) + half(b + 2);
       }
     }},
    {"q8_0", [](const std::uint8_t* b, float* y) {
       for (int j = 0; j < 32; ++j) y[j] = half(b) * static_cast<float>(static_cast<signed char>(b[2 + j]));
     }},
    {"q2_k", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 256; ++i) {
         const int h = i / 128, l = i % 32, shift = i % 128 / 32 * 2, s = b[i / 16];
         y[i] = times(times(half(b + 80), static_cast<float>(s & 15)), static_cast<float>(b[16 + 32 * h + l] >> shift & 3)) -
                times(half(b + 82), static_cast<float>(s >> 4));
       }
     }},
    {"q3_k", [](const std::uint8_t* b, float* y) {
       const std::uint8_t *mask = b, *low = b + 32, *scales = b + 96;
       for (int i = 0; i < 256; ++i) {
         const int j = i / 16;
         const int scale = ((j < 8 ? scales[j] & 15 : scales[j - 8] >> 4) | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
         const int q = (low[32 * (i / 128) + i % 32] >> (i % 128 / 32 * 2) & 3) - (mask[i % 32] >> (i / 32) & 1 ? 0 : 4);
         y[i] = times(times(half(b + 108), static_cast<float>(scale)), static_cast<float>(q));
       }
     }},
    {"q4_k", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 256; ++i) {
         int scale, minimum;
         six_bits(b + 4, i / 32, scale, minimum);
         const int q = b[16 + 32 * (i / 64) + i % 32] >> (i % 64 / 32 * 4) & 15;
         y[i] = times(times(half(b), static_cast<float>(scale)), static_cast<float>(q)) - times(half(b + 2), static_cast<float>(minimum));
       }
     }},
    {"q5_k", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 256; ++i) {
         int scale, minimum;
         six_bits(b + 4, i / 32, scale, minimum);
         const int q = (b[48 + 32 * (i / 64) + i % 32] >> (i % 64 / 32 * 4) & 15) | (b[16 + i % 32] >> (i / 32) & 1) << 4;
         y[i] = times(times(half(b), static_cast<float>(scale)), static_cast<float>(q)) - times(half(b + 2), static_cast<float>(minimum));
       }
     }},
    {"q6_k", [](const std::uint8_t* b, float* y) {
       for (int h = 0; h < 2; ++h)
         for (int l = 0; l < 32; ++l)
           for (int k = 0; k < 4; ++k) {
             const int low = b[64 * h + l + 32 * (k % 2)] >> (k / 2 * 4) & 15, high = b[128 + 32 * h + l] >> (2 * k) & 3;
             const int i = 128 * h + 32 * k + l;
             y[i] = times(times(half(b + 208), static_cast<float>(static_cast<signed char>(b[192 + i / 16]))), static_cast<float>((low | high << 4) - 32));
           }
     }},
    {"iq4_nl", [](const std::uint8_t* b, float* y) {
       for (int j = 0; j < 32; ++j) y[j] = half(b) * static_cast<float>(iq4[j < 16 ? b[2 + j] & 15 : b[2 + j - 16] >> 4]);
     }},
    {"iq4_xs", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 256; ++i) {
         const int j = i / 32, k = i % 32;
         const int scale = ((b[4 + j / 2] >> (4 * (j % 2)) & 15) | ((b[2] | b[3] << 8) >> (2 * j) & 3) << 4) - 32;
         const int q = k < 16 ? b[8 + 16 * j + k] & 15 : b[8 + 16 * j + k - 16] >> 4;
         y[i] = times(times(half(b), static_cast<float>(scale)), static_cast<float>(iq4[q]));
       }
     }},
    {"tq2_0", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 256; ++i) y[i] = half(b + 64) * static_cast<float>((b[32 * (i / 128) + i % 32] >> (i % 128 / 32 * 2) & 3) - 1);
     }},
    {"mxfp4", [](const std::uint8_t* b, float* y) {
       constexpr double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
       for (int j = 0; j < 32; ++j) {
         const int q = j < 16 ? b[1 + j] & 15 : b[1 + j - 16] >> 4;
         y[j] = static_cast<float>(std::ldexp(q < 8 ? values[q] : 0.0 - values[q - 8], b[0] - 127));  // ggml's table is of integers: no -0
       }
     }},
    {"nvfp4", [](const std::uint8_t* b, float* y) {
       constexpr double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
       for (int i = 0; i < 64; ++i) {
         const int s = i / 16, k = i % 16, e = b[s] & 127, q = k < 8 ? b[4 + 8 * s + k] & 15 : b[4 + 8 * s + k - 8] >> 4;
         const double scale = e == 127 ? 0 : e < 8 ? std::ldexp(e, -9) : std::ldexp(8 + e % 8, e / 8 - 10);
         y[i] = static_cast<float>((q < 8 ? values[q] : 0.0 - values[q - 8]) * scale);
       }
     }},
    {"q1_0", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 128; ++i) y[i] = (b[2 + i / 8] >> (i % 8) & 1) != 0 ? half(b) : -half(b);
     }},
    {"q2_0", [](const std::uint8_t* b, float* y) {
       for (int i = 0; i < 64; ++i) y[i] = half(b) * static_cast<float>((b[2 + i / 4] >> (2 * (i % 4)) & 3) - 1);
     }},
    {"nf4", [](const std::uint8_t* b, float* y) {
       constexpr float table[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                                    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                                    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                                    0.7229568362236023f, 1.0f};
       float absmax;
       std::memcpy(&absmax, b, 4);
       for (int i = 0; i < 64; ++i) y[i] = absmax * table[i % 2 == 0 ? b[4 + i / 2] >> 4 : b[4 + i / 2] & 15];
     }},
    {"fp4", [](const std::uint8_t* b, float* y) {
       constexpr float magnitudes[8] = {0, 0.0625f / 12, 0.6666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f};
       float absmax;
       std::memcpy(&absmax, b, 4);
       for (int i = 0; i < 64; ++i) {
         const int q = i % 2 == 0 ? b[4 + i / 2] >> 4 : b[4 + i / 2] & 15;
         y[i] = absmax * (q < 8 ? magnitudes[q] : -magnitudes[q - 8]);
       }
     }},
};

/// Uniform codes: a little-endian stream of bits after an f16 scale and perhaps a zero-point byte.
void read_uniform(unsigned bits, unsigned group, bool symmetric, const std::uint8_t* b, float* y) {
  const std::uint8_t* const codes = b + (symmetric ? 2 : 3);
  for (unsigned i = 0; i < group; ++i) {
    unsigned q = 0;
    for (unsigned k = 0; k < bits; ++k) q |= (codes[(i * bits + k) / 8] >> ((i * bits + k) % 8) & 1u) << k;
    const int zero = symmetric ? 1 << (bits - 1) : b[2];
    y[i] = half(b) * (symmetric && bits == 1 ? (q ? 1.0f : -1.0f) : static_cast<float>(static_cast<int>(q) - zero));
  }
}

std::vector<std::uint8_t> random_bytes(std::size_t n, std::mt19937& random) {
  std::vector<std::uint8_t> b(n);
  for (auto& v : b) v = static_cast<std::uint8_t>(random());
  return b;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::isnan(a[i]) && std::isnan(b[i])) && std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  return true;
}

}  // namespace

TEST_CASE("two readings of every layout agree to the bit") {
  std::mt19937 random(1);
  std::size_t read = 0;
  for (const format_spec* s : all_formats::specs) {
    if (s->is_float()) continue;
    CAPTURE(std::string(s->name));
    const auto known = readings.find(s->name);
    for (int t = 0; t < 200; ++t) {
      const auto block = random_bytes(s->bytes, random);
      std::vector<float> expected(s->block), got(s->block);
      if (known != readings.end()) known->second(block.data(), expected.data());
      else read_uniform(static_cast<unsigned>(s->name[1] - '0'), static_cast<unsigned>(std::stoi(std::string(s->name.substr(4)))),
                        s->name[0] == 's', block.data(), expected.data());
      decode_block(*s, block.data(), got.data());
      if (s->name == "mxfp4" && block[0] > 253) continue;  // values past float's range: ggml's table wraps there, ldexp does not
      REQUIRE(same(got, expected));
    }
    ++read;
  }
  CHECK(read == gguf_formats::size + bitsandbytes_formats::size + uniform_formats::size);
}

TEST_CASE("a block that is taken apart and put together is the same block") {
  std::mt19937 random(2);
  for_each_format(all_formats{}, [&]<class F>() {
    if constexpr (!spec_of<F>.is_float()) {
      static_assert(spec_of<F>.unused_bits == 0);
      for (int t = 0; t < 100; ++t) {
        std::array<std::uint8_t, spec_of<F>.bytes> block, again;
        for (auto& b : block) b = static_cast<std::uint8_t>(random());
        block_parts<F> parts;
        read_block<F>(block.data(), parts);
        write_block<F>(parts, again.data());
        REQUIRE_MESSAGE(block == again, std::string(spec_of<F>.name));
      }
    }
  });
}

TEST_CASE("formats are found by name in any case, and by GGUF's type id") {
  CHECK(spec_of_id(*find_format("Q4_K")).name == "q4_k");
  CHECK(spec_of_id(*find_format("s3_g64")).block == 64);
  CHECK(!find_format("q4_"));
  CHECK(!find_format(""));
  CHECK(spec_of_id(*find_gguf_format(39)).name == "mxfp4");
  CHECK(!find_gguf_format(4));
  CHECK(!find_gguf_format(-1));
  for (std::size_t i = 0; i < format_count; ++i)
    CHECK(find_format(all_formats::specs[i]->name) == static_cast<format_id>(i));  // names are unique
}

TEST_CASE("bits per weight are those that the formats' projects state") {
  const std::map<std::string_view, double> stated{{"q4_0", 4.5}, {"q4_1", 5}, {"q5_0", 5.5}, {"q5_1", 6}, {"q8_0", 8.5}, {"q2_k", 2.625},
                                                  {"q3_k", 3.4375}, {"q4_k", 4.5}, {"q5_k", 5.5}, {"q6_k", 6.5625}, {"iq4_nl", 4.5},
                                                  {"iq4_xs", 4.25}, {"tq2_0", 2.0625}, {"mxfp4", 4.25}, {"nvfp4", 4.5}, {"q1_0", 1.125}, {"q2_0", 2.25}, {"nf4", 4.5}, {"f16", 16}};
  for (const auto& [name, bits] : stated) CHECK(spec_of_id(*find_format(name)).bits_per_weight() == bits);
}

TEST_CASE("codebooks round to the nearest value") {
  for (const format_spec* s : all_formats::specs) {
    if (!s->values.present()) continue;
    CAPTURE(std::string(s->name));
    float largest = 0;
    for (unsigned i = 0; i < s->values.size; ++i) largest = std::max(largest, std::fabs(s->values.values[i]));
    for (int i = -2100; i <= 2100; ++i) {
      const float v = largest * static_cast<float>(i) / 2000.0f;
      float best = INFINITY;
      for (unsigned c = 0; c < s->values.size; ++c) best = std::min(best, std::fabs(v - s->values.values[c]));
      // bitsandbytes' own bounds lie a little off the midpoints (up to 3e-4 of the largest value).
      const float slack = s->scale.type == number::f32 ? 1e-3f * largest : 0.0f;
      CHECK(std::fabs(v - s->values.values[s->values.nearest(v)]) <= best + slack);
    }
  }
}
