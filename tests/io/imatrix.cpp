// Importance matrices: bytes laid out by hand from llama.cpp's writers, round trips, truncation at every byte, one bad file for each thing.
#include "files.hpp"

#include <lowbit/io/imatrix.hpp>
#include <lowbit/quantise/importance.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <functional>

using namespace lowbit;
using namespace lowbit::test;

namespace {
void put_floats(std::string& f, const std::vector<float>& v) {
  for (const float x : v) put(f, x);
}
/// An old file's fields, any of which a test can spoil.
struct dat_recipe {
  std::int32_t entries = 2, first_length = 1, first_calls = 4, first_values = 3;
  std::string second_name = "blk.0.ffn_down.weight";
  float value = 8;
  std::string tail = [] {
    std::string t;
    put<std::int32_t>(t, 7);
    put<std::int32_t>(t, 5);
    return t + "a.txt";
  }();

  [[nodiscard]] std::string file() const {
    std::string f;
    put(f, entries);
    put(f, first_length);
    f += "w";
    put(f, first_calls);
    put(f, first_values);
    put_floats(f, {4, value, 0});
    put<std::int32_t>(f, static_cast<std::int32_t>(second_name.size()));
    f += second_name;
    put<std::int32_t>(f, 0);
    put<std::int32_t>(f, 2);
    put_floats(f, {5, 6});
    return f + tail;
  }
};

/// The same for a GGUF file: one mixture of two experts with three channels, the second without a token.
struct gguf_recipe {
  std::string type = "imatrix", sums_name = "e.in_sum2", counts_name = "e.counts";
  std::uint32_t sums_type = 0;
  std::uint64_t experts = 2, counts = 2;
  float value = 10;

  [[nodiscard]] std::string file() const {
    std::string f = "GGUF";
    put<std::uint32_t>(f, 3);
    put<std::uint64_t>(f, 2);
    put<std::uint64_t>(f, 4);
    const auto key = [&](const char* name, std::int32_t kind) {
      put_string(f, name);
      put(f, kind);
    };
    key("general.type", 8);
    put_string(f, type);
    key("imatrix.datasets", 9);
    put<std::int32_t>(f, 8);
    put<std::uint64_t>(f, 2);
    put_string(f, "a.txt");
    put_string(f, "b.txt");
    key("imatrix.chunk_count", 4);
    put<std::uint32_t>(f, 12);
    key("imatrix.chunk_size", 4);
    put<std::uint32_t>(f, 512);
    const auto tensor = [&](const std::string& name, std::uint64_t a, std::uint64_t b, std::uint32_t kind, std::uint64_t offset) {
      put_string(f, name);
      put<std::uint32_t>(f, 2);
      put(f, a);
      put(f, b);
      put(f, kind);
      put(f, offset);
    };
    tensor(sums_name, 3, experts, sums_type, 0);
    tensor(counts_name, 1, counts, 0, 32);
    f.resize(round_up(f.size(), 32));
    const std::size_t data = f.size();
    put_floats(f, {value, 20, 0, 0, 0, 0});
    f.resize(data + 32);
    put_floats(f, {5, 0});
    f.resize(data + 64);
    return f;
  }
};

result<imatrix> read(const std::string& file) {
  // A heap copy of exactly this size: a read past the end is seen by the sanitiser.
  const std::vector<std::uint8_t> bytes(file.begin(), file.end());
  return read_imatrix(bytes);
}
}  // namespace

TEST_CASE("an old file's values are means times calls") {
  const auto m = read(dat_recipe{}.file());
  REQUIRE(m);
  REQUIRE(m->entries.size() == 2);
  CHECK(*m->find("w")->importance(3) == std::vector<float>{1, 2, 0});
  // No calls: the channels count alike.
  CHECK(*m->find("blk.0.ffn_down.weight")->importance(2) == std::vector<float>{1, 1});
  CHECK(m->find("blk.0") == nullptr);
  CHECK(m->chunk_count == 7);
  CHECK(m->datasets == std::vector<std::string>{"a.txt"});
  // Files from before the data set was noted.
  dat_recipe old;
  old.tail.clear();
  CHECK(read(old.file())->datasets.empty());
  // Experts lie one after the other, with one count.
  CHECK(*m->find("blk.0.ffn_down.weight")->importance(1, 1, 2) == std::vector<float>{1});
  const auto wrong = m->find("w")->importance(4);
  REQUIRE(!wrong);
  CHECK(wrong.error().message == "importance of 'w': 3 values where 1 x 4 are needed");
}

TEST_CASE("a GGUF file's values are sums over counts, expert by expert") {
  const auto m = read(gguf_recipe{}.file());
  REQUIRE(m);
  REQUIRE(m->entries.size() == 1);
  CHECK(*m->find("e")->importance(3, 0, 2) == std::vector<float>{2, 4, 0});
  CHECK(*m->find("e")->importance(3, 1, 2) == std::vector<float>{1, 1, 1});
  CHECK(!m->find("e")->importance(3, 0, 1));
  CHECK(m->datasets == std::vector<std::string>{"a.txt", "b.txt"});
  CHECK(m->chunk_count == 12);
  CHECK(m->chunk_size == 512);
}

TEST_CASE("both kinds are written as they were laid out by hand") {
  const scratch_folder folder;
  const auto back = [&](const std::string& file, imatrix_kind kind) {
    const auto m = read(file);
    REQUIRE(m);
    REQUIRE(write_imatrix(folder / "m", *m, kind));
    const bytes b = read_all(folder / "m");
    return std::string(b.begin(), b.end());
  };
  gguf_recipe g;
  CHECK(back(g.file(), imatrix_kind::gguf) == g.file());
  // An entry without calls becomes one of a single call whose mean is 1, which is what it meant.
  dat_recipe d;
  const auto again = read(back(d.file(), imatrix_kind::dat));
  REQUIRE(again);
  CHECK(again->find("w")->sums == std::vector<float>{4, 8, 0});
  CHECK(again->find("w")->counts == std::vector<float>{4});
  CHECK(*again->find(d.second_name)->importance(2) == std::vector<float>{1, 1});
  CHECK(again->chunk_count == 7);
  CHECK(again->datasets == std::vector<std::string>{"a.txt"});
  // From one kind to the other the means stay.
  const auto converted = read(back(g.file(), imatrix_kind::dat));
  REQUIRE(converted);
  CHECK(*converted->find("e")->importance(3, 0, 2) == std::vector<float>{2, 4, 0});
  CHECK(*converted->find("e")->importance(3, 1, 2) == std::vector<float>{1, 1, 1});
}

TEST_CASE("files cut off at any byte are refused") {
  const dat_recipe whole;
  const std::string dat = whole.file(), gguf = gguf_recipe{}.file();
  for (std::size_t n = 0; n < dat.size(); ++n) {
    if (n == dat.size() - whole.tail.size()) continue;  // a whole file of before the data set was noted
    const auto m = read(dat.substr(0, n));
    CHECK(!m);
    CHECK(m.error().kind == errc::truncated);
  }
  // The last tensor may lack its padding.
  for (std::size_t n = 0; n + 24 < gguf.size(); ++n) CHECK_MESSAGE(!read(gguf.substr(0, n)), n);
  CHECK(read(gguf.substr(0, gguf.size() - 24)));
}

TEST_CASE("what is wrong is named") {
  const auto message_of = [](const result<imatrix>& m) { return m ? std::string("accepted") : m.error().message; };
  const auto dat = [&](const std::function<void(dat_recipe&)>& spoil) {
    dat_recipe r;
    spoil(r);
    return message_of(read(r.file()));
  };
  const std::string truncated = "the importance matrix ends before its last entry";
  CHECK(dat([](auto& r) { r.entries = 0; }) == "not an importance matrix: 0 entries");
  CHECK(dat([](auto& r) { r.entries = -1; }) == "not an importance matrix: -1 entries");
  CHECK(dat([](auto& r) { r.entries = 0x7fffffff; }) == truncated);
  CHECK(dat([](auto& r) { r.first_length = 0; }) == "importance matrix: the name of entry 0 has length 0");
  CHECK(dat([](auto& r) { r.first_length = -5; }) == "importance matrix: the name of entry 0 has length -5");
  CHECK(dat([](auto& r) { r.first_length = 0x7fffffff; }) == truncated);
  CHECK(dat([](auto& r) { r.first_calls = -1; }) == "importance of 'w': -1 calls");
  CHECK(dat([](auto& r) { r.first_values = 0; }) == "importance of 'w': 0 values");
  CHECK(dat([](auto& r) { r.first_values = 0x7fffffff; }) == truncated);
  CHECK(dat([](auto& r) { r.second_name = "w"; }) == "importance of 'w': appears twice");
  CHECK(dat([](auto& r) { r.value = -1; }) == "importance of 'w': value 1 is -1.000000");
  CHECK(dat([](auto& r) { r.value = std::nanf(""); }) == "importance of 'w': value 1 is nan");
  CHECK(dat([](auto& r) { r.value = INFINITY; }) == "importance of 'w': value 1 is inf");
  CHECK(dat([](auto& r) { r.tail += "x"; }) == "importance matrix: 1 bytes too many");
  CHECK(dat([](auto& r) { r.tail[3] = '\x80'; }) == "importance matrix: a negative chunk or length at its end");

  const auto gguf = [&](const std::function<void(gguf_recipe&)>& spoil) {
    gguf_recipe r;
    spoil(r);
    return message_of(read(r.file()));
  };
  CHECK(gguf([](auto& r) { r.type = "model"; }) == "not an importance matrix: general.type is 'model'");
  CHECK(gguf([](auto& r) { r.counts_name = "f.counts"; }) == "importance of 'e': there are sums and no counts");
  CHECK(gguf([](auto& r) { r.sums_name = "e.in_sum"; }) == "importance matrix: some counts have no sums");
  CHECK(gguf([](auto& r) { r.sums_type = 26; }) == "importance of 'e': sums and counts are not float32");
  CHECK(gguf([](auto& r) { r.counts = 1; }) == "importance of 'e': sums of 2 experts, counts of 1");
  CHECK(gguf([](auto& r) { r.value = -2; }) == "importance of 'e': value 0 is -2.000000");

  const scratch_folder folder;
  imatrix bad;
  bad.entries.push_back({"w", {1, 2, 3}, {1, 1}});
  CHECK(write_imatrix(folder / "m", bad).error().message == "importance of 'w' cannot be written: 3 sums, 2 counts");
  bad.entries[0].counts = {std::nanf("")};
  CHECK(write_imatrix(folder / "m", bad, imatrix_kind::dat).error().message == "importance of 'w': count 0 is nan");
  CHECK(folder.files() == 0);
}

TEST_CASE("a file's importance quantises like a calibration's") {
  std::vector<float> tokens(40 * 64), weights(3 * 64);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f;
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i * 53 % 89) / 44.0f - 1.0f;
  calibrated<channel_importance> stats(64);
  stats.add({tokens.data(), 40, 64});
  const Eigen::VectorXf mean = stats.get<channel_importance>().mean();
  imatrix m;
  m.entries.push_back({"w", std::vector<float>(mean.begin(), mean.end()), {1}});
  const scratch_folder folder;
  REQUIRE(write_imatrix(folder / "m", m));
  const bytes file = read_all(folder / "m");
  const auto given = given_importance(*read_imatrix(file)->find("w")->importance(64));
  const matrix_view<const float> w(weights.data(), 3, 64);
  const auto a = quantiser<q4_0, importance_weighted>::quantise(w, stats), b = quantiser<q4_0, importance_weighted>::quantise(w, given);
  CHECK(std::equal(a->weights.bytes().begin(), a->weights.bytes().end(), b->weights.bytes().begin()));
}
