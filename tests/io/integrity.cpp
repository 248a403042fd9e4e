// SHA-256 against the vectors of FIPS 180-4's examples, and one spoilt block for each thing that is looked for.
#include "../kernel/random_weights.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/format/runtime.hpp>
#include <lowbit/io/integrity.hpp>
#include <lowbit/io/sha256.hpp>

#include <doctest/doctest.h>

using namespace lowbit;

namespace {
std::string digest(const std::string& text, std::size_t piece) {
  sha256 h;
  const std::span<const std::uint8_t> all(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
  for (std::size_t at = 0; at < all.size(); at += piece) h.update(all.subspan(at, std::min(piece, all.size() - at)));
  return h.finish();
}
/// Ones in any format.
packed_matrix ones(const format_spec& s, std::size_t rows, std::size_t cols) {
  packed_matrix w = test::random_blocks(s, rows, cols, 1);
  for (std::size_t b = 0; b < w.bytes().size(); b += s.bytes) {
    std::uint8_t* const block = w.bytes().data() + b;
    for (std::size_t i = 0; i < s.block; ++i) s.codes.set_raw(block, i, 1);
    if (s.zero_point.present()) s.zero_point.set_raw(block, 0, 0);
    for (std::size_t j = 0; s.sub_scale.present() && j < s.sub_blocks(); ++j) s.sub_scale.set_raw(block, j, 1);
  }
  return w;
}
}  // namespace

TEST_CASE("digests are those of FIPS 180-4's examples, in pieces of any size") {
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", million(1000000, 'a');
  for (const std::size_t piece : {1u, 7u, 64u, 1000000u}) {
    CHECK(digest("abc", piece) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest("", piece) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest(two_blocks, piece) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(digest(million, piece) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST_CASE("good weights have no findings, in any format") {
  for (const format_spec* s : all_formats::specs) {
    if (s->is_float()) continue;
    CAPTURE(std::string(s->name));
    const weight_findings f = find_in_weights(ones(*s, 3, 2 * s->block + 1).view(), kernel::best_unit());
    const std::size_t blocks = s == &spec_of<nvfp4> ? 3 * (2 * 4 + 1) : 9;  // each sub-block has its own scale, and the block none
    CHECK(f.blocks == blocks);
    CHECK(f.not_finite.count == 0);
    CHECK(f.out_of_range.count == 0);
    // Code 1 is no weight in formats whose codes mean -1, 0, 1.
    CHECK(f.zero.count == (s->codes.zero == 1 ? blocks : 0));
  }
}

TEST_CASE("scales that are not numbers, zeros, and codes that mean nothing are found where they are") {
  const auto spoil = [](const format_spec& s, const auto& change) {
    packed_matrix w = ones(s, 4, 3 * s.block);
    change(w.row(2) + s.bytes);
    return find_in_weights(w.view(), kernel::best_unit());
  };
  const auto at = [](const format_spec& s, const weight_findings::kind& k) { return k.count == 1 && k.row == 2 && k.col == s.block; };
  for (const std::uint16_t bits : {std::uint16_t{0x7e00}, std::uint16_t{0x7c00}, std::uint16_t{0xfc00}}) {
    const auto put = [&](std::uint8_t* b) { std::memcpy(b, &bits, 2); };
    CHECK(at(spec_of<q4_0>, spoil(spec_of<q4_0>, put).not_finite));
    CHECK(at(spec_of<q5_1>, spoil(spec_of<q5_1>, [&](std::uint8_t* b) { put(b + 2); }).not_finite));
    CHECK(at(spec_of<q4_k>, spoil(spec_of<q4_k>, [&](std::uint8_t* b) { put(b + 2); }).not_finite));
  }
  const auto zeros = spoil(spec_of<q4_0>, [](std::uint8_t* b) { std::memset(b, 0, 2); });
  CHECK(at(spec_of<q4_0>, zeros.zero));
  CHECK(zeros.not_finite.count == 0);
  const auto sixteen = spoil(spec_of<nvfp4>, [](std::uint8_t* b) { b[2] = 0; });  // the scale of the third group of 16
  CHECK(sixteen.zero.count == 1);
  CHECK(sixteen.zero.row == 2);
  CHECK(sixteen.zero.col == 64 + 32);
  // Groups of a checkpoint whose inputs are in any order may be as small as one weight, which may be zero.
  CHECK(find_in_weights(packed_matrix(uniform_format(4, 1, true), 2, 3).view(), kernel::best_unit()).zero.count == 0);
  CHECK(find_in_weights(packed_matrix(uniform_format(4, 8, true), 2, 16).view(), kernel::best_unit()).zero.count == 4);
  CHECK(at(spec_of<asymmetric<4, 32>>, spoil(spec_of<asymmetric<4, 32>>, [](std::uint8_t* b) { b[2] = 16; }).out_of_range));
  CHECK(at(spec_of<tq2_0>, spoil(spec_of<tq2_0>, [](std::uint8_t* b) { b[0] |= 3; }).out_of_range));
  CHECK(at(spec_of<mxfp4>, spoil(spec_of<mxfp4>, [](std::uint8_t* b) { b[0] = 255; }).out_of_range));
  CHECK(at(spec_of<nvfp4>, spoil(spec_of<nvfp4>, [](std::uint8_t* b) { b[1] = 0x7f; }).out_of_range));
  packed_matrix trits(spec_of<tq1_0>, 1, 256);
  CHECK(find_in_weights(trits.view(), kernel::best_unit()).out_of_range.count == 0);
  trits.bytes()[3] = 1;  // between ceil(0 * 256 / 243) and ceil(1 * 256 / 243)
  CHECK(find_in_weights(trits.view(), kernel::best_unit()).out_of_range.count == 1);
  packed_matrix floats(spec_of<f32>, 2, 3);
  auto* const v = reinterpret_cast<float*>(floats.bytes().data());
  v[1] = NAN, v[2] = INFINITY;
  const auto f = find_in_weights(floats.view(), kernel::best_unit());
  CHECK(f.blocks == 6);
  CHECK(f.not_finite.count == 2);
  CHECK(f.not_finite.col == 1);
  CHECK(f.zero.count == 1);
  CHECK(f.zero.row == 1);
  weight_findings sum = find_in_weights(ones(spec_of<q4_0>, 2, 32).view(), kernel::best_unit());
  sum.append(zeros, 10);
  CHECK(sum.zero.row == 12);
  CHECK(sum.blocks == 14);
}
