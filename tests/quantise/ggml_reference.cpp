// ggml's reference quantisers, checked against blocks that ggml itself made.
//
// The vectors were computed once with ggml's ggml-quants.c (gcc -O2 and clang -O1 agreed) from
// x[i], i = 0 … 255: t = (i*i*31 + i*17 + 5) mod 1013, x = (t - 506) / 1024, and four times that where i mod 97 == 3.
#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/ggml_reference.hpp>

#include <doctest/doctest.h>

#include <string>

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

std::array<float, 256> weights() {
  std::array<float, 256> x;
  for (int i = 0; i < 256; ++i) {
    const int t = (i * i * 31 + i * 17 + 5) % 1013;
    x[static_cast<std::size_t>(i)] = static_cast<float>(t - 506) / 1024.0f * (i % 97 == 3 ? 4.0f : 1.0f);
  }
  return x;
}

template <class F>
std::string hex_of_block(const float* x) {
  block_parts<F> parts;
  ggml_quantise_block<F>(x, parts);
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
