// safetensors: headers written out, round trips, shards, and one bad file for each rule of the reference.
#include "files.hpp"

#include <lowbit/io/safetensors_writer.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;
using namespace lowbit::test;

namespace {
std::string file_of(const std::string& header, std::size_t data) {
  std::string f;
  put_string(f, header);
  return f + std::string(data, '\7');
}
}  // namespace

TEST_CASE("a header written out is read") {
  const std::string file = file_of(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},)"
                                   R"("a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},"none":{"dtype":"U8","shape":[0,5],"data_offsets":[12,12]},)"
                                   R"("one":{"dtype":"I8","shape":[],"data_offsets":[12,13]}}   )", 13);
  const auto s = read_safetensors(span_of(file));
  REQUIRE_MESSAGE(s, s.error().message);
  CHECK(s->metadata.at("format") == "pt");
  CHECK(s->find("a")->shape == std::vector<std::uint64_t>{1, 2});
  CHECK(s->find("b")->data.size() == 8);
  CHECK(s->find("none")->data.empty());
  CHECK(s->find("one")->data.size() == 1);
  CHECK(s->tensors[0].name == "a");
}

// safetensors 0.8.0 (Python) reads each of these.
TEST_CASE("what the reference passes over is passed over") {
  for (const char* header : {R"({"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                             R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":{"x":[1]}}})"}) {
    const std::string file = file_of(header, 4);
    const auto s = read_safetensors(span_of(file));
    REQUIRE_MESSAGE(s, s.error().message);
    CHECK(s->metadata.empty());
    CHECK(s->find("a")->data.size() == 4);
  }
}

TEST_CASE("each rule of the reference refuses what breaks it") {
  const auto fails = [](const std::string& header, std::size_t data, errc kind, const std::string& says) {
    const std::string file = file_of(header, data);
    const auto s = read_safetensors(span_of(file));
    REQUIRE_MESSAGE(!s, says);
    CHECK_MESSAGE(s.error().kind == kind, s.error().message);
    CHECK_MESSAGE(s.error().message.find(says) != std::string::npos, s.error().message);
  };
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  fails("", 0, errc::bad_magic, "does not begin with '{'");
  fails(" {}", 0, errc::bad_magic, "does not begin with '{'");
  fails("{", 0, errc::malformed, "not valid JSON");
  fails("{\"a\":{\"dtype\":\"F32\",\"shape\":[\xff],\"data_offsets\":[0,4]}}", 4, errc::malformed, "not valid JSON");
  fails("{" + a + "," + a + "}", 4, errc::malformed, "twice");
  fails("{" + a + "}", 5, errc::malformed, "1 bytes after its last tensor");
  fails("{" + a + "}", 3, errc::truncated, "end after the file");
  fails("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", 6, errc::malformed, "overlap");
  fails("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})", 12, errc::malformed, "leave a hole");
  fails(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, errc::unsupported, "unknown dtype F33");
  fails(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, errc::shape, "want 8 bytes");
  fails(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, errc::shape, "not of sizes");
  fails(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4, errc::shape, "not of sizes");
  fails(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4, errc::shape, "overflows");
  fails(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, errc::shape, "whole bytes");
  fails(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, errc::malformed, "not a range");
  fails(R"({"a":{"dtype":"F32","shape":[1]}})", 4, errc::malformed, "'a': needs dtype, shape and data_offsets");
  fails(R"({"a":7})", 4, errc::malformed, "'a': needs dtype, shape and data_offsets");
  fails(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, errc::malformed, "'dtype' twice");
  fails("{" + a + "}" + std::string("\0garbage", 8), 4, errc::malformed, "a byte of zero");
  fails("{" + a + "}" + std::string(1, '\0'), 4, errc::malformed, "a byte of zero");
  fails("{" + a + "} garbage", 4, errc::malformed, "not valid JSON");
  fails(R"({"__metadata__":{"k":1}})", 0, errc::malformed, "not a string");
  fails("{\"a\":" + std::string(1000000, '[') + "}", 0, errc::malformed, "nested too deeply");
  std::string huge;
  put<std::uint64_t>(huge, 1ull << 62);
  CHECK(read_safetensors(span_of(huge)).error().kind == errc::bad_magic);
}

TEST_CASE("a file cut at any byte is refused, a changed one never crashes") {
  const std::string file = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})", 11);
  REQUIRE(read_safetensors(span_of(file)));
  for (std::size_t n = 0; n < file.size(); ++n) {
    const std::vector<std::uint8_t> cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));
    REQUIRE(!read_safetensors(cut));
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::uint8_t> changed(file.begin(), file.end());
    changed[random() % changed.size()] = static_cast<std::uint8_t>(random());
    (void)read_safetensors(changed).ok();
  }
}

TEST_CASE("what is written is read back, widest types first") {
  const scratch_folder folder;
  auto w = safetensors_writer::create(folder / "m.safetensors", {{"format", "pt"}},
                                      {{"c", "U8", {3}, {}}, {"a", "F32", {2}, {}}, {"empty", "F32", {0}, {}}, {"b", "BF16", {1}, {}}});
  REQUIRE(w);
  CHECK(w->order() == std::vector<std::string>{"a", "empty", "b", "c"});
  const std::vector<std::uint8_t> data{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
  REQUIRE(w->append(std::span(data).first(8)));
  REQUIRE(w->append(std::span(data).subspan(8, 2)));
  REQUIRE(w->append(std::span(data).subspan(10, 3)));
  REQUIRE(w->commit());
  const auto model = safetensors_model::open(folder / "m.safetensors");
  REQUIRE_MESSAGE(model, model.error().message);
  safetensors_parts parts(*model);
  CHECK(parts.find("c")->data[2] == 13);
  CHECK(parts.find("b")->data[0] == 9);
  CHECK(parts.find("c") == parts.find("c"));
  CHECK(parts.find("d") == nullptr);
  CHECK(parts.find("empty")->data.empty());
  CHECK(!parts.failed());
  CHECK((reinterpret_cast<std::uintptr_t>(parts.find("a")->data.data()) % 8) == 0);
  CHECK(model->find("a")->bytes == 8);
  CHECK(model->map(*model->find("a"), 3, 2)->bytes()[0] == 4);
}

TEST_CASE("a header has the reference's text") {
  const scratch_folder folder;
  auto w = safetensors_writer::create(folder / "m", {{"format", "pt"}}, {{"b \"\xff", "F32", {1, 2}, {}}, {"a", "U8", {}, {}}});
  REQUIRE(w);
  REQUIRE(w->append(bytes(8, 1)));
  REQUIRE(w->append(bytes(1, 2)));
  REQUIRE(w->commit());
  std::string due = R"({"__metadata__":{"format":"pt"},"b \"\uFFFD":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})";
  due.replace(due.find("\\uFFFD"), 6, "\xef\xbf\xbd");  // what replaces a byte that is not UTF-8
  due.resize(round_up(due.size(), 8), ' ');
  std::string file = file_of(due, 0) + std::string(8, '\1') + '\2';
  CHECK(read_all(folder / "m") == bytes(file.begin(), file.end()));
}

TEST_CASE("what safetensors cannot hold is refused when written, and leaves no file") {
  const scratch_folder folder;
  const auto fails = [&](std::vector<safetensor> tensors, const std::string& says, const std::map<std::string, std::string>& metadata = {}) {
    const auto w = safetensors_writer::create(folder / "m", metadata, std::move(tensors));
    REQUIRE_MESSAGE(!w, says);
    CHECK_MESSAGE(w.error().message.find(says) != std::string::npos, w.error().message);
  };
  fails({{"__metadata__", "U8", {1}, {}}}, "'__metadata__'");
  fails({{"a", "U8", {1}, {}}, {"a", "F32", {1}, {}}}, "'a' is declared twice");
  fails({{"\xff", "U8", {1}, {}}, {"\xfe", "U8", {1}, {}}}, "is declared twice");  // the same in the header
  fails({{"a", "F33", {1}, {}}}, "unknown dtype F33");
  fails({{"a", "F4", {3}, {}}}, "not whole bytes");
  fails({{"a", "U8", {1ull << 62}, {}}}, "'a': its size overflows");
  std::vector<safetensor> many;
  for (int i = 0; i < 9; ++i) many.push_back({"t" + std::to_string(i), "U8", {(1ull << 61) - 1}, {}});
  fails(many, "'t8': the size of the file overflows");  // 9 (2^61 - 1) >= 2^64
  // The reference refuses a header of more than 100 000 000 bytes, of which {"__metadata__":{"k":""}} takes 25.
  fails({}, "more than safetensors may have", {{"k", std::string(100'000'000 - 24, 'x')}});
  CHECK(folder.files() == 0);
  CHECK(safetensors_writer::create(folder / "m", {{"k", std::string(100'000'000 - 25, 'x')}}, {}));
}

TEST_CASE("many tensors are declared in a time that grows as they do") {
  const scratch_folder folder;
  std::vector<safetensor> tensors;
  for (int i = 0; i < 50000; ++i) tensors.push_back({"model.layers.experts." + std::to_string(i), "U8", {0}, {}});
  auto w = safetensors_writer::create(folder / "m.safetensors", {}, tensors);
  REQUIRE_MESSAGE(w, w.error().message);
  REQUIRE(w->commit());
  const auto model = safetensors_model::open(folder / "m.safetensors");
  REQUIRE_MESSAGE(model, model.error().message);
  CHECK(model->tensors().size() == tensors.size());
}

TEST_CASE("a folder's single file comes before its index, and a file that is named is that file") {
  const scratch_folder folder;
  write_all(folder / "model.safetensors", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  write_all(folder / "part.safetensors", file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  write_all(folder / "model.safetensors.index.json", R"({"weight_map":{"b":"part.safetensors"}})");
  const auto has = [&](const std::string& path, const std::string& name) {
    const auto model = safetensors_model::open(folder / path);
    REQUIRE_MESSAGE(model, model.error().message);
    CHECK(model->tensors().size() == 1);
    return model->find(name) != nullptr;
  };
  CHECK(has("", "a"));
  CHECK(has("part.safetensors", "b"));
  CHECK(has("model.safetensors", "a"));
  CHECK(has("model.safetensors.index.json", "b"));
  std::filesystem::remove(folder / "model.safetensors");
  CHECK(has("", "b"));
  for (const char* missing : {"model.safetensors", "other.safetensors"}) {
    const auto model = safetensors_model::open(folder / missing);
    REQUIRE(!model);
    CHECK(model.error().kind == errc::io);
    CHECK_MESSAGE(model.error().message.find(missing) != std::string::npos, model.error().message);
  }
}

TEST_CASE("shards are read through their index, which cannot name files elsewhere") {
  const scratch_folder folder;
  write_all(folder / "one.safetensors", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  write_all(folder / "two.safetensors", file_of(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  const auto index = [&](const std::string& text) {
    write_all(folder / "model.safetensors.index.json", text);
    return safetensors_model::open(folder / "");
  };
  const auto good = index(R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  REQUIRE_MESSAGE(good, good.error().message);
  CHECK(good->find("b") != nullptr);
  CHECK(index(R"({"weight_map":{"a":"../one.safetensors"}})").error().kind == errc::malformed);
  CHECK(index(R"({"weight_map":{"a":"/etc/passwd"}})").error().kind == errc::malformed);
  CHECK(index(R"({"weight_map":{"a":".."}})").error().kind == errc::malformed);
  CHECK(index(R"({"weight_map":{"a":"three.safetensors"}})").error().kind == errc::io);
  CHECK(index(R"({"weight_map":{"c":"one.safetensors"}})").error().kind == errc::not_found);
  CHECK(index(R"({"weight_map":{"a":"two.safetensors","b":"one.safetensors"}})").error().kind == errc::not_found);
  CHECK(index(R"({"weight_map":{}})").error().kind == errc::malformed);
  CHECK(index(R"([])").error().kind == errc::malformed);
}
