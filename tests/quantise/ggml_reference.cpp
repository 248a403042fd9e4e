// ggml's reference quantisers, checked against blocks that ggml itself made.
//
// The vectors were computed once with ggml's ggml-quants.c (gcc -O2 and clang -O1 agreed) from
// x[i], i = 0 … 255: t = (i*i*31 + i*17 + 5) mod 1013, x = (t - 506) / 1024, and four times that where i mod 97 == 3.
#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/fit.hpp>
#include <lowbit/quantise/ggml_reference.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "hard_weights.hpp"

using namespace lowbit;

namespace {
struct vector_of_bytes {
  std::string_view format;
  std::string_view hex;
};
constexpr vector_of_bytes golden[] = {
    {"q4_0",
     "582d3243546099cc4599239a45bd895735d4"},
    {"q4_1",
     "af2c58b942435570aaee55ab34ab46de9b5836f4"},
    {"q5_0",
     "5829b01ab08a747598d02188992356137a69f3ae5aa8"},
    {"q5_1",
     "882858b9b03ab09a8596b9f055ddab5668478bae26b06cf9"},
    {"q8_0",
     "631da3acc0810c43c917b419ce4a15eccfbdb6bbcce80f42c50fa90aba32facdac52"},
    {"mxfp4",
     "7cdedecdaf1155cc12ed12dc4592caec5d"},
    {"iq4_nl",
     "741d3232436099dd349a229a34cd7a4624e3"},
    {"iq4_xs",
     "2e0f56897c2788903232436099dd349a229a34cd7a4624e3c1c1b19f5c27e28d15ae147ce013477ad9eaead8b5723ef9921ca21a6fd3083b56676767"
     "5033dda955dc76dc64b92c53071a2b3b2916f3c06c04bf25be0259cef1cfae9e9eafd0f3197fe33cd24ef6a1899aab555550aaaa8876ba9865985a86"
     "c3703e1c0b0b1c2e4094ea2fa51ea621"},
    {"q2_k",
     "f7859585a67588968696a5659fa6a6a55d5d5d60e6bb0d52b91279178e6e2995848484859adf20469c369c3ba14cf8ab410dcd9d9dbd82c7095e84de"
     "54de4910df9b4636363b081d52a7c952b913be692e2ab329"},
    {"q3_k",
     "7058d8969797e8ef740bf4cb31cc7e32c686066665451a1f24eb9c2bd32cc053f53532cc18b29649feadfab6c12b82a6a9f9f6e39d47ee7180d411c2"
     "fca208a38c11d5b575409ed802b75bcbfbc6d43e84299e72323d1b62bf11d5796938734d7c79878808b792871a9695951f23"},
    {"q4_k",
     "d0187621615adb62bfa7ada79a899fdbd2d3e400397dc52a941aa54efab77554444445679add157ae359e47c28d5a37e76666668faad02478d157d16"
     "804b18a58372727385a80c31870e660f7924bf8c18f6d5c5d6e80b3f84da31b932cc6612efbd9c8b8c9eb0e4297ed53cc54ef9944201d0b6a6afb0d1"
     "034590f366d36005b3714026060610215284d03295129633"},
    {"q5_k",
     "cb1466215e58da63bfa7acaa8988ffea1222a2a0adfd92912e3186b10bb70208b83030303b3f24211295a215a512be2dc5c6f90075fdab4648275b8e"
     "f6700cb988899bdf35bd2af5d6b4e8fa32db56ffedcccddff44b138e1b39ea3c10972f5916f4e4e60a401872fe1ccc0ee1576f0810fcbaaabce0077f"
     "08c4717253a8dd24df6a2807093c70e831edb9798a9ee2398502b07c5c5f71b3169a31f7cdc7e11a76e3813d1d0d1153a529b0653b253c68"},
    {"q6_k",
     "b89ba000a38172d68d366393150b034f46887e37a5e8dbb521537722ce1e02dda7d6e2cc1f2ffa4477d8b3dd6031ee07ed5e7b630766caa032d8e1fe"
     "7703031e3d659999941c80501dc57909860e73c4e0096effcce54dddaab31a9a6972b94c0c0067eaa8a2ff701d1661e1839bb42ae3d1097e2d093fa2"
     "593267c16d4d60c85050516c2a77819e749e759b42b5a558387878796613ccba60ca60c75df004476d22e2929281adec2651afe55fe06a1f90544434"
     "343403025da8c21cb218b1262e21dfe221dfc6e0dedfe1e2802321225e0f"},
    {"tq2_0",
     "555555555555555555555555555555555555555555555555555555555555555555555555556555555555555555555555555555555555555555555555"
     "55555555243f"},
    {"nvfp4",
     "1e1a1a19ee2ecd6f21a5cdd2fe1eee5b92d6fe7246e647cf7d5116be7dbd7c19e4775e10"},
    {"q1_0",
     "f933b01ab08a6775b0ed382560da3f953fd5"},
    {"q2_0",
     "583900599415505944852a55515655496659"},
};

// The same with importance w[i] = 1 + ((i * 13) % 7) / 4.
constexpr vector_of_bytes golden_with_importance[] = {
    {"q4_0",
     "e42d4343547199cc5599349945bc895735d4"},
    {"q4_1",
     "992c4bb942435570aaee55ab34ab46df9b5836f4"},
    {"q5_0",
     "a729b01ab08a7586a8d12188992367138a69f3ae6aa8"},
    {"q5_1",
     "812850b9b03ab09a8596b9f055ddab5668478bae26b06cf9"},
    {"iq4_nl",
     "6c1d3232436099dd349a229a34cd7a4624e3"},
    {"iq4_xs",
     "0d0f56897c1887902132436099dd349a229a34cd7a4624e3c1c1b19f5c27e28d15ae147ce013477aeafaeae8b4712ff9911ca20a6fd3082c56676767"
     "5033dca955dc76dc65b93c53072a3b3b2917f3c06c14be26be0369bef1cfae9e9eafd0f3197fe33dd24ef6a1899aab555550bbaa8876ba9865985a76"
     "c3703e1c0b0b1c2e4094ea2fa51ea620"},
    {"q2_k",
     "f885657585768896869675657fa6a6955d5d5d60e2b70d52b91279138e7a2595848484859adf20469c369c37914cf8a7410dcd9d9dbe82c3095e80ca"
     "50ce4510ef9b4a36373b081d52a7cd13b913be29ef29e329"},
    {"q3_k",
     "7058d8969797e8ef740bf4cb31cc7e32c686066665451a1f24eb9c2bd32cc053f53532cc18b29649fdadfabbc12b82a6a9f9f6e39d47ed71c0d411c2"
     "fca248a38c11d5b575409ed802b75bcbfbc6d43f812a9e32323d1b61bf11d57a6939734d7b59878808b792861a969595f922"},
    {"q4_k",
     "c91867215f5adb63bfa7ada89a99afdbd2d3e5003a7ec52b941ba64ffbb87654444445679ade157ae35ae47d29d5a37f76666668faad02478d157d16"
     "804b17a58372727385a80c31770e660f7924bf8c18f6d5d5d6e80b4f84ea31b932dc6612efbd9c8b8c9eb0e4297ed54cc54ef9944201d0b6a6afb0d1"
     "034590f366d36005b3714016060610215284d03295129633"},
    {"q5_k",
     "ca1464215e59da63bfa7acaa9988ffea1222a2a0adfd92912e3186b10bb70008b83030303b3f24211295a215a512be2db5b6d90065fd9b4638275b8e"
     "f660fca988799bdf25ad2ae5c6a4c8fa32cb46ffedcccddff44b138e1b39ea3c10972f5916f4e4e60a401872fe1ccc0ee1576f0810fcbaaabce1077f"
     "08c5727253a8dd24df6b2807093c70e832eeba7a8a9ee2398502b07c5c5f71b3169a31f7cdc7e11a76e3813d1d0d1153a529b0653b253c68"},
    {"q6_k",
     "b99ba000a38172d68d366392150b044f35777d27a6e8eaa620647632ce1d11eea7d7e3cb1f2ffa4377d8b4dc6031ee07ed5e7b630766caa032d8e1fe"
     "7803031e3d659999941c80501dc57909860e73c4e10a6ff0cde64bddaab4199c6973b94b0c0067eaa8a2ff701d1661e1839bb41ae3d0097e2d093fa2"
     "593267c16d4d60c85050516c2a77819e749e759b42b5a558387878796613ccba60ca60c75df004476d22e2929281adec2651afe55fe06a1f90544435"
     "343403025da8c21cb218b1262f20dee221dec6e0dedde1e280232122590f"},
};

/// CRC-32 of the bytes that ggml (of llama-cpp-python 0.3.36, built for baseline x86-64) made of hard_weights(16 * 2048, 1) as 16 rows, without and with
/// hard_importance(2048, 1001).
struct checksums {
  std::string_view format;
  std::uint32_t without, with;
};
constexpr checksums of_hard_weights[] = {
    {"q4_0", 0x717c1843u, 0xec5e4e09u},
    {"q4_1", 0x7b708d02u, 0x7c79cf06u},
    {"q5_0", 0x64d4b757u, 0x54f1fcedu},
    {"q5_1", 0x918c3d74u, 0x29892de1u},
    {"q8_0", 0xad233678u, 0xad233678u},
    {"q2_k", 0xcd3e0292u, 0x847adcc4u},
    {"q3_k", 0x3c47b414u, 0x694e2357u},
    {"q4_k", 0x9a19a7ecu, 0x99ecd077u},
    {"q5_k", 0x34bbe8d8u, 0xa46ca8f4u},
    {"q6_k", 0x84c57750u, 0xf4f09bf3u},
    {"iq4_nl", 0x458ad517u, 0x38344c97u},
    {"iq4_xs", 0x3053aabcu, 0x8c5b046fu},
    {"tq2_0", 0xeffba377u, 0xeffba377u},
    {"mxfp4", 0x78172687u, 0x78172687u},
    {"nvfp4", 0x00a37e2cu, 0x00a37e2cu},
    {"q1_0", 0x888e3b11u, 0x888e3b11u},
    {"q2_0", 0x02979fd0u, 0x02979fd0u},
};

std::array<float, 256> weights() {
  std::array<float, 256> x;
  for (int i = 0; i < 256; ++i) {
    const int t = (i * i * 31 + i * 17 + 5) % 1013;
    x[static_cast<std::size_t>(i)] = static_cast<float>(t - 506) / 1024.0f * (i % 97 == 3 ? 4.0f : 1.0f);
  }
  return x;
}

std::array<float, 256> importance() {
  std::array<float, 256> w;
  for (int i = 0; i < 256; ++i) w[static_cast<std::size_t>(i)] = 1.0f + static_cast<float>(i * 13 % 7) / 4.0f;
  return w;
}

template <class F>
std::string hex_of_block(const float* x, const float* importance = nullptr, float row_mean_square = 0) {
  block_parts<F> parts;
  ggml_quantise_block<F>(x, parts, importance, row_mean_square);
  std::uint8_t block[spec_of<F>.bytes];
  write_block<F>(parts, block);
  std::string hex;
  for (const std::uint8_t b : block) {
    hex += "0123456789abcdef"[b >> 4];
    hex += "0123456789abcdef"[b & 15];
  }
  return hex;
}
}  // namespace

TEST_CASE("blocks are ggml's, byte for byte") {
  const auto x = weights();
  std::size_t compared = 0;
  for_each_format(gguf_formats{}, [&]<class F>() {
    for (const vector_of_bytes& expected : golden)
      if (expected.format == spec_of<F>.name) {
        CHECK_MESSAGE(hex_of_block<F>(x.data()) == expected.hex, std::string(expected.format));
        ++compared;
      }
  });
  CHECK(compared == gguf_formats::size);
}

TEST_CASE("blocks with importance are ggml's, byte for byte") {
  const auto x = weights();
  const auto w = importance();
  std::size_t compared = 0;
  for_each_format(gguf_formats{}, [&]<class F>() {
    // The row is one block here.
    const float row_mean_square = mean_square(x.data(), spec_of<F>.block);
    for (const vector_of_bytes& expected : golden_with_importance)
      if (expected.format == spec_of<F>.name) {
        CHECK_MESSAGE(hex_of_block<F>(x.data(), w.data(), row_mean_square) == expected.hex, std::string(expected.format));
        ++compared;
      }
  });
  CHECK(compared == std::size(golden_with_importance));
}

TEST_CASE("hard weights come out as ggml's, with importance and without") {
  constexpr std::size_t rows = 16, cols = 2048;
  const auto x = hard_weights(rows * cols, 1), importance = hard_importance(cols, 1001);
  for_each_format(gguf_formats{}, [&]<class F>() {
    constexpr const format_spec& s = spec_of<F>;
    const auto* const expected = std::find_if(std::begin(of_hard_weights), std::end(of_hard_weights), [&](const checksums& c) { return c.format == s.name; });
    REQUIRE(expected != std::end(of_hard_weights));
    for (const bool with : {false, true}) {
      std::vector<std::uint8_t> bytes(rows * s.row_bytes(cols));
      for (std::size_t b = 0; b < rows * cols / s.block; ++b) {
        const std::size_t at = b * s.block, row = at / cols, c = at % cols;
        block_parts<F> parts;
        ggml_quantise_block<F>(x.data() + at, parts, with ? importance.data() + c : nullptr, mean_square(x.data() + row * cols, cols));
        write_block<F>(parts, bytes.data() + b * s.bytes);
      }
      CHECK_MESSAGE(crc32_of(bytes.data(), bytes.size()) == (with ? expected->with : expected->without), std::string(s.name), with ? " with importance" : "");
    }
  });
}

TEST_CASE("a block of zeros decodes to zeros") {
  const std::array<float, 256> x{};
  for_each_format(gguf_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    block_parts<F> parts;
    ggml_quantise_block<F>(x.data(), parts);
    std::uint8_t block[spec_of<F>.bytes];
    write_block<F>(parts, block);
    float out[spec_of<F>.block];
    decode_block(spec_of<F>, block, out);
    for (const float v : out) CHECK(v == 0.0f);
  });
}
