// GGUF: bytes laid out by hand from the format's description, round trips, and one bad file for each thing that can be wrong.
#include "files.hpp"

#include <lowbit/io/gguf_writer.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <functional>
#include <random>

#include <sys/resource.h>
#include <sys/wait.h>

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
  fails([](recipe& r) { r.version = 0; }, errc::bad_magic, "version 0");
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
  const gguf_tensor huge{"v", 28, {std::uint64_t{1} << 60}, {}};  // 2^63 bytes, of which a file cannot have two
  CHECK(gguf_writer::create(folder / "x", {}, {huge, {"w", 28, huge.dims, {}}}).error().message.find("'w': the size of the file overflows") != std::string::npos);
  CHECK(folder.files() == 0);
}

TEST_CASE("an alignment that is no power of two, another type, or mostly padding is not written") {
  const scratch_folder folder;
  const auto create = [&](auto alignment) {
    gguf_metadata m;
    m.set("general.alignment", alignment);
    return gguf_writer::create(folder / "x.gguf", m, {{"w", 24, {1}, {}}});
  };
  for (const std::uint32_t bad : {0u, 24u, 1u << 17, 1u << 31}) {
    const auto w = create(bad);
    REQUIRE_MESSAGE(!w, bad);
    CHECK_MESSAGE(w.error().message.find("general.alignment") != std::string::npos, w.error().message);
  }
  CHECK(create(32.0f).error().message.find("general.alignment") != std::string::npos);
  CHECK(folder.files() == 0);
  auto w = create(std::uint32_t{65536});
  REQUIRE(w);
  REQUIRE(w->append(bytes(1, 5)));
  REQUIRE(w->commit());
  const auto g = read_gguf(read_all(folder / "x.gguf"));
  REQUIRE(g);
  CHECK(g->find("w")->offset == 65536);
}

namespace {
/// Three small tensors over files of at most `most` bytes of tensors.
std::size_t write_split(const std::filesystem::path& prefix, std::size_t most) {
  gguf_metadata m;
  m.set("general.architecture", "llama");
  m.set("general.alignment", std::uint32_t{64});
  const std::vector<gguf_tensor> tensors{{"a", 2, {64}, {}}, {"b", 0, {3}, {}}, {"c", 24, {5, 2}, {}}};
  auto w = gguf_split_writer::create(prefix, m, tensors, most);
  REQUIRE_MESSAGE(w, w.error().message);
  for (std::size_t i = 0; const std::size_t n : {36u, 12u, 10u}) REQUIRE(w->append(bytes(n, static_cast<std::uint8_t>(++i))));
  REQUIRE(w->commit());
  return w->parts();
}
}  // namespace

TEST_CASE("a model over several files is read as one, whatever the parts") {
  for (const std::size_t most : {std::size_t{1}, std::size_t{48}, std::size_t{1000}}) {
    const scratch_folder folder;
    const std::size_t parts = write_split(folder / "m", most);
    CHECK(parts == (most == 1 ? 3 : most == 48 ? 2 : 1));
    CHECK(folder.files() == parts);
    const auto g = gguf_model::open(folder / gguf_split_name("m", 0, parts));
    REQUIRE_MESSAGE(g, g.error().message);
    CHECK(g->parts() == parts);
    CHECK(g->metadata().find<std::string>("general.architecture") == "llama");
    REQUIRE(g->tensors().size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
      const auto& t = g->tensors()[i];
      const auto all = g->map(t), end = g->map(t, t.bytes - 2, 2);
      REQUIRE((all && end));
      CHECK(all->bytes().size() == (i == 0 ? 36 : i == 1 ? 12 : 10));
      CHECK(all->bytes()[0] == i + 1);
      CHECK(end->bytes()[1] == i + 1);
      CHECK(reinterpret_cast<std::uintptr_t>(all->bytes().data()) % 64 == 0);
    }
  }
}

namespace {
/// `parts` files of one tensor of 4 bytes each, the last of which has `last` of them.
result<gguf_split_writer> begin_parts(const std::filesystem::path& prefix, std::size_t parts, std::uint64_t last = 1) {
  std::vector<gguf_tensor> tensors;
  for (std::size_t i = 0; i < parts; ++i) tensors.push_back({"t" + std::to_string(i), 0, {i + 1 == parts ? last : 1}, {}});
  return gguf_split_writer::create(prefix, {}, tensors, 4);
}
}  // namespace

TEST_CASE("more parts than files may be open are written, and a signal's handler removes them all") {
  constexpr std::size_t parts = 150;
  const scratch_folder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit few{24, 24};
    ::setrlimit(RLIMIT_NOFILE, &few);
    {
      auto stopped = begin_parts(folder / "stopped", parts);
      if (!stopped) ::_exit(1);
      for (std::size_t i = 0; i < parts; ++i)
        if (!stopped->append(bytes(4, 1)) || folder.files() != i + 1) ::_exit(2);
      remove_partial_files();  // as a signal handler would
      if (folder.files() != 0) ::_exit(3);
    }
    auto kept = begin_parts(folder / "kept", parts);
    for (std::size_t i = 0; i < parts; ++i)
      if (!kept || !kept->append(bytes(4, static_cast<std::uint8_t>(i)))) ::_exit(4);
    ::_exit(kept->commit() ? 0 : 5);
  }
  int state = 0;
  ::waitpid(child, &state, 0);
  REQUIRE(WIFEXITED(state));
  CHECK(WEXITSTATUS(state) == 0);
  CHECK(folder.files() == parts);
  const auto g = gguf_model::open(folder / gguf_split_name("kept", 0, parts));
  REQUIRE_MESSAGE(g, g.error().message);
  REQUIRE(g->tensors().size() == parts);
  CHECK(g->map(g->tensors()[149])->bytes()[0] == 149);
}

TEST_CASE("where a part cannot be written or named, no part is there") {
  const scratch_folder folder;
  {
    std::filesystem::create_directories(folder / gguf_split_name("m", 2, 3));  // in the way of the third
    auto w = begin_parts(folder / "m", 2);
    CHECK(w);
    w = begin_parts(folder / "m", 3);
    REQUIRE(w);
    REQUIRE(w->append(bytes(4, 1)));
    REQUIRE(w->append(bytes(4, 2)));
    const status s = w->append(bytes(4, 3));
    REQUIRE(!s);
    CHECK(s.error().message.find("m-00003-of-00003.gguf") != std::string::npos);
    std::filesystem::remove(folder / gguf_split_name("m", 2, 3));
    REQUIRE(w->append(bytes(4, 3)));
    std::filesystem::create_directories(folder / gguf_split_name("m", 1, 3));  // when the first is renamed already
    const status renamed = w->commit();
    REQUIRE(!renamed);
    CHECK(renamed.error().message.find("m-00002-of-00003.gguf") != std::string::npos);
    CHECK(!std::filesystem::exists(folder / gguf_split_name("m", 0, 3)));
  }
  std::filesystem::remove(folder / gguf_split_name("m", 1, 3));
  CHECK(folder.files() == 0);

  // A file of at most 1 MiB stands for a full disk.
  {
    auto w = begin_parts(folder / "m", 3, 1 << 20);
    REQUIRE(w);
    REQUIRE(w->append(bytes(4, 1)));
    REQUIRE(w->append(bytes(4, 2)));
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    const rlimit full{1 << 20, before.rlim_max};
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ::setrlimit(RLIMIT_FSIZE, &full);
    const status s = w->append(bytes(4 << 20, 3));
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, handler);
    CHECK(!s);
  }
  CHECK(folder.files() == 0);
  CHECK(gguf_split_writer::create(folder / "m", {}, {{"w", 0, {1}, {}}, {"w", 0, {1}, {}}}, 4).error().message.find("'w' is declared twice") != std::string::npos);
  CHECK(!gguf_split_writer::create(folder / "m", {}, {{"w", 0, {1}, {}}, {std::string(64, 'n'), 0, {1}, {}}}, 4));
  CHECK(folder.files() == 0);
}

TEST_CASE("the number of parts may be of any type of integer, and is never taken for none") {
  const scratch_folder folder;
  const auto write = [&](std::size_t i, auto part, auto parts) {
    gguf_metadata m;
    m.set("split.no", part);
    m.set("split.count", parts);
    m.set("split.tensors.count", std::int32_t{2});
    auto w = gguf_writer::create(folder / gguf_split_name("m", i, 2), m, {{"t" + std::to_string(i), 24, {1}, {}}});
    REQUIRE(w);
    REQUIRE(w->append(bytes(1, 1)));
    REQUIRE(w->commit());
  };
  const auto first = folder / gguf_split_name("m", 0, 2);
  write(0, std::uint8_t{0}, std::uint64_t{2});
  write(1, std::uint32_t{1}, std::uint8_t{2});
  const auto g = gguf_model::open(first);
  REQUIRE_MESSAGE(g, g.error().message);
  CHECK(g->parts() == 2);
  const auto fails = [&](auto parts, const std::string& says) {
    write(0, std::uint16_t{0}, parts);
    const auto bad = gguf_model::open(first);
    REQUIRE_MESSAGE(!bad, says);
    CHECK_MESSAGE(bad.error().message.find(says) != std::string::npos, bad.error().message);
    CHECK(bad.error().message.find(first.filename().string()) != std::string::npos);
  };
  fails(std::uint32_t{65538}, "is the first of 65538 parts");  // 2 in 16 bits
  fails(std::uint64_t{UINT64_MAX}, "is the first of 18446744073709551615 parts");
  fails(std::int32_t{-2}, "'split.count'");
  fails(2.0f, "'split.count'");
  fails(std::string("2"), "'split.count'");
}

TEST_CASE("parts that are missing, strange, or out of place are refused by name") {
  const scratch_folder folder;
  write_split(folder / "m", 1);
  write_split(folder / "n", 48);
  const auto name = [&](std::size_t i) { return folder / gguf_split_name("m", i, 3); };
  const auto fails = [&](const std::filesystem::path& path, errc kind, const std::string& says) {
    const auto g = gguf_model::open(path);
    REQUIRE_MESSAGE(!g, says);
    CHECK_MESSAGE(g.error().kind == kind, g.error().message);
    CHECK_MESSAGE(g.error().message.find(says) != std::string::npos, g.error().message);
  };
  fails(name(1), errc::unsupported, "open its first part");
  std::filesystem::copy_file(name(0), folder / "other.gguf");
  fails(folder / "other.gguf", errc::malformed, "is not named ...-00001-of-00003.gguf");
  std::filesystem::rename(name(2), folder / "kept");
  fails(name(0), errc::io, "m-00003-of-00003.gguf");
  std::filesystem::copy_file(name(1), name(2));
  fails(name(0), errc::malformed, "'b' is in another part too");
  std::filesystem::remove(name(2));
  std::filesystem::copy_file(folder / gguf_split_name("n", 1, 2), name(2));
  fails(name(0), errc::malformed, "is not part 2 of 3");
  std::filesystem::remove(name(2));
  gguf_metadata m;
  m.set("split.no", std::uint16_t{2});
  m.set("split.count", std::uint16_t{3});
  auto w = gguf_writer::create(name(2), m, {});
  REQUIRE(w);
  REQUIRE(w->commit());
  fails(name(0), errc::malformed, "the parts hold 2");
}

TEST_CASE("a header longer than what is mapped of it at first is read, and a cut one is not") {
  const scratch_folder folder;
  gguf_metadata m;
  m.set("tokens", std::vector<std::string>(100000, std::string(40, 'x')));
  auto w = gguf_writer::create(folder / "m.gguf", m, {{"a", 0, {1}, {}}});
  REQUIRE(w);
  REQUIRE(w->append(bytes(4, 9)));
  REQUIRE(w->commit());
  const auto g = gguf_model::open(folder / "m.gguf");
  REQUIRE(g);
  CHECK(g->metadata().find_array<std::string>("tokens")->size() == 100000);
  CHECK(g->map(g->tensors()[0])->bytes()[3] == 9);
  std::filesystem::resize_file(folder / "m.gguf", 3 << 20);
  CHECK(gguf_model::open(folder / "m.gguf").error().kind == errc::truncated);
  CHECK(gguf_model::open(folder / "none.gguf").error().kind == errc::io);
}
