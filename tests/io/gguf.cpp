// GGUF: bytes laid out by hand from the format's description, round trips, and one bad file for each thing that can be wrong.
#include "files.hpp"

#include <lowbit/io/gguf_writer.hpp>

#include <doctest/doctest.h>

#include <functional>
#include <random>

using namespace lowbit;
using namespace lowbit::test;

namespace {

struct tensor_info {
  std::string name = "w";
  std::vector<std::uint64_t> dims = {32, 2};
  std::uint32_t type = 2, rank = 0xffffffff;
  std::uint64_t offset = 0;
};
/// A file's fields, any of which a test can spoil.
struct recipe {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t tensor_count = UINT64_MAX, key_count = UINT64_MAX;
  std::vector<std::string> keys;  // each already a key, a type and a value
  std::vector<tensor_info> tensors = {tensor_info{}};
  std::string data = std::string(36, '\x11');

  [[nodiscard]] std::string file() const {
    std::string f = magic;
    put(f, version);
    put(f, tensor_count != UINT64_MAX ? tensor_count : tensors.size());
    put(f, key_count != UINT64_MAX ? key_count : keys.size());
    for (const auto& k : keys) f += k;
    for (const auto& t : tensors) {
      put_string(f, t.name);
      put<std::uint32_t>(f, t.rank != 0xffffffff ? t.rank : static_cast<std::uint32_t>(t.dims.size()));
      for (const auto d : t.dims) put(f, d);
      put(f, t.type);
      put(f, t.offset);
    }
    f.resize(round_up(f.size(), 32));
    return f + data;
  }
};
template <class T>
std::string key(const std::string& name, std::int32_t type, T value) {
  std::string k;
  put_string(k, name);
  put(k, type);
  put(k, value);
  return k;
}
std::string array_key(const std::string& name, std::int32_t element, std::uint64_t count, const std::string& values) {
  std::string k;
  put_string(k, name);
  put<std::int32_t>(k, 9);
  put(k, element);
  put(k, count);
  return k + values;
}
}  // namespace

TEST_CASE("a file made by hand is read field by field") {
  recipe r;
  std::string names;
  put_string(names, "a");
  put_string(names, "");
  r.keys = {key<std::uint32_t>("u", 4, 7), key<float>("f", 6, 1.5f), key<std::uint8_t>("b", 7, 1), key<std::int64_t>("i", 11, -5),
            array_key("names", 8, 2, names), array_key("ids", 5, 3, std::string("\1\0\0\0\2\0\0\0\377\377\377\377", 12))};
  r.tensors = {{"first", {32, 2}, 2}, {"second", {3}, 0, 0xffffffff, 64}};
  r.data = std::string(36, '\x11') + std::string(28, '\0') + std::string(12, '\x22');
  const std::string file = r.file();
  const auto g = read_gguf(span_of(file));
  REQUIRE(g);
  CHECK(g->metadata.find<std::uint32_t>("u") == 7u);
  CHECK(g->metadata.find<std::uint64_t>("u") == 7u);  // integers serve for one another where they fit
  CHECK(g->metadata.find<float>("f") == 1.5f);
  CHECK(g->metadata.find<bool>("b") == true);
  CHECK(g->metadata.find<std::int32_t>("i") == -5);
  CHECK(!g->metadata.find<std::uint32_t>("i"));
  CHECK(g->metadata.get<std::string>("u").error().kind == errc::bad_value);
  CHECK(g->metadata.get<std::string>("none").error().message == "metadata key 'none' is missing");
  CHECK(*g->metadata.find_array<std::string>("names") == std::vector<std::string>{"a", ""});
  CHECK(*g->metadata.find_array<std::int32_t>("ids") == std::vector<std::int32_t>{1, 2, -1});
  REQUIRE(g->tensors.size() == 2);
  CHECK(g->find("first")->data.size() == 36);
  CHECK(g->find("second")->data[0] == 0x22);
  CHECK(g->find("second")->elements() == 3);
}

TEST_CASE("what is written is read back, and written again the same") {
  const scratch_folder folder;
  gguf_metadata m;
  m.set("general.architecture", "llama");
  m.set("n", std::uint32_t{3});
  m.set("flag", true);
  m.set("scores", std::vector<float>{1, 2});
  std::vector<std::uint8_t> a(36, 1), b(8, 2);
  const std::vector<gguf_tensor> tensors{{"a", 2, {64}, a}, {"b", 0, {2}, b}};
  for (const char* name : {"one.gguf", "two.gguf"}) {
    auto w = gguf_writer::create(folder / name, m, tensors);
    REQUIRE(w);
    REQUIRE(w->append(std::span(a).first(10)));
    REQUIRE(w->append(std::span(a).subspan(10)));
    REQUIRE(w->append(b));
    REQUIRE(w->commit());
    const auto file = mapped_file::open(folder / name);
    REQUIRE(file);
    const auto g = read_gguf(file->bytes());
    REQUIRE(g);
    CHECK(std::equal(a.begin(), a.end(), g->find("a")->data.begin()));
    m = g->metadata;
  }
  CHECK(read_all(folder / "one.gguf") == read_all(folder / "two.gguf"));
  CHECK(folder.files() == 2);
}

TEST_CASE("each kind of bad file has its own failure") {
  const auto fails = [](const std::function<void(recipe&)>& spoil, errc kind, const std::string& says) {
    recipe r;
    spoil(r);
    const std::string file = r.file();
    const auto g = read_gguf(span_of(file));
    REQUIRE_MESSAGE(!g, says);
    CHECK_MESSAGE(g.error().kind == kind, g.error().message);
    CHECK_MESSAGE(g.error().message.find(says) != std::string::npos, g.error().message);
  };
  fails([](recipe& r) { r.magic = "GGML"; }, errc::bad_magic, "not a GGUF file");
  fails([](recipe& r) { r.version = 1; }, errc::bad_magic, "version 1");
  fails([](recipe& r) { r.version = 0x03000000; }, errc::bad_magic, "big-endian");
  fails([](recipe& r) { r.tensor_count = UINT64_MAX - 1; }, errc::truncated, "ends before");
  fails([](recipe& r) { r.key_count = 1ull << 60; }, errc::truncated, "ends before");
  fails([](recipe& r) { r.keys = {key<float>("", 6, 1)}; }, errc::malformed, "key is empty");
  fails([](recipe& r) { r.keys = {key<float>("k", 6, 1), key<float>("k", 6, 1)}; }, errc::malformed, "'k' appears twice");
  fails([](recipe& r) { r.keys = {key<float>("k", 13, 1)}; }, errc::malformed, "unknown type 13");
  fails([](recipe& r) { r.keys = {key<std::uint8_t>("k", 7, 2)}; }, errc::malformed, "a boolean is 2");
  fails([](recipe& r) { r.keys = {array_key("k", 9, 1, std::string(12, '\0'))}; }, errc::malformed, "array of arrays");
  fails([](recipe& r) { r.keys = {array_key("k", 6, 1ull << 62, "")}; }, errc::truncated, "longer than the file");
  fails([](recipe& r) { r.keys = {key<std::uint32_t>("general.alignment", 4, 24)}; }, errc::malformed, "not a power of two");
  fails([](recipe& r) { r.keys = {key<std::uint32_t>("general.alignment", 4, 0)}; }, errc::malformed, "not a power of two");
  fails([](recipe& r) { r.tensors[0].name = std::string(64, 'n'); }, errc::malformed, "64 bytes or more");
  fails([](recipe& r) { r.tensors.push_back(r.tensors[0]); }, errc::malformed, "'w' appears twice");
  fails([](recipe& r) { r.tensors[0].rank = 5; }, errc::shape, "5 dimensions");
  fails([](recipe& r) { r.tensors[0].type = 4; }, errc::unsupported, "unknown tensor type 4");
  fails([](recipe& r) { r.tensors[0].type = 4000000000u; }, errc::unsupported, "unknown tensor type 4000000000");
  fails([](recipe& r) { r.tensors[0].dims = {0, 2}; }, errc::shape, "a dimension is 0");
  fails([](recipe& r) { r.tensors[0].dims = {33, 2}; }, errc::shape, "not whole blocks of q4_0");
  fails([](recipe& r) { r.tensors[0].dims = {1ull << 40, 1ull << 40}; }, errc::shape, "overflows");
  fails([](recipe& r) { r.tensors[0].dims = {32, 1ull << 50}; }, errc::truncated, "end after the file");
  fails([](recipe& r) { r.tensors[0].offset = 32; }, errc::malformed, "offset 32 where 0 was due");
  fails([](recipe& r) { r.tensors.push_back({"v", {32}, 2, 0xffffffff, 0}); }, errc::malformed, "offset 0 where 64 was due");
  fails([](recipe& r) { r.data.pop_back(); }, errc::truncated, "end after the file");
}

TEST_CASE("a file cut at any byte is refused, a changed one never crashes") {
  recipe r;
  std::string names;
  put_string(names, "token");
  r.keys = {key<std::uint32_t>("u", 4, 7), array_key("names", 8, 1, names)};
  const std::string file = r.file();
  REQUIRE(read_gguf(span_of(file)));
  for (std::size_t n = 0; n < file.size(); ++n) {
    const std::vector<std::uint8_t> cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));  // exact size: ASan sees overruns
    REQUIRE(!read_gguf(cut));
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::uint8_t> changed(file.begin(), file.end());
    changed[random() % changed.size()] = static_cast<std::uint8_t>(random());
    const auto g = read_gguf(changed);
    if (g)
      for (const auto& t : g->tensors) CHECK(t.data.data() + t.data.size() <= changed.data() + changed.size());
  }
}

TEST_CASE("tensors that GGUF cannot hold are refused when written, and leave no file") {
  const scratch_folder folder;
  CHECK(!gguf_writer::create(folder / "x", {}, {{"w", 2, {33}, {}}}));
  CHECK(!gguf_writer::create(folder / "x", {}, {{std::string(64, 'n'), 0, {1}, {}}}));
  CHECK(!gguf_writer::create(folder / "x", {}, {{"w", 0, {1}, {}}, {"w", 0, {1}, {}}}));
  CHECK(folder.files() == 0);
}
