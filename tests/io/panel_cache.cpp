// The panel cache: what is found in it runs like what was built, and nothing is found in one that does not fit.
#include "../kernel/random_weights.hpp"
#include "files.hpp"

#include <lowbit/io/panel_cache.hpp>
#include <lowbit/matrix/product.hpp>

#include <doctest/doctest.h>

using namespace lowbit;
using namespace lowbit::test;

namespace {

/// Writes a cache "c" of one matrix, "w" of 16 rows in q4_0. Returns the bytes of its panels, which begin at byte 4096.
std::size_t write_cache_of_one(const scratch_folder& folder, std::size_t cols) {
  serial_executor serial;
  const panel_matrix m = panel_matrix::from(random_blocks(spec_of<q4_0>, 16, cols, 1).view(), serial);
  const panel_cache::entry entry{"w", &m};
  REQUIRE(panel_cache::write(folder / "c", "source", std::span(&entry, 1)));
  return m.size_bytes();
}

}  // namespace

TEST_CASE("matrices in the cache are those that were written, in every kind of format") {
  const scratch_folder folder;
  serial_executor serial;
  workspace space;
  const format_spec* const specs[] = {&spec_of<q4_k>, &spec_of<float16>, &spec_of<iq2_xs>, &spec_of<nf4>, &spec_of<asymmetric<3, 64>>};
  std::vector<panel_matrix> built;
  std::vector<panel_cache::entry> entries;
  for (const format_spec* s : specs) built.push_back(panel_matrix::from(random_blocks(*s, 37, 300, 1).view(), serial));
  for (const panel_matrix& m : built) entries.push_back({std::string(m.spec().name), &m});
  REQUIRE(panel_cache::write(folder / "c", "source", entries));
  CHECK(folder.files() == 1);
  auto opened = panel_cache::open(folder / "c", "source");
  REQUIRE_MESSAGE(opened, opened.error().message);
  const panel_cache cache = *std::move(opened);
  CHECK(cache.size() == 5);
  const auto x = random_activations(300, 2);
  for (const panel_matrix& m : built) {
    CAPTURE(std::string(m.spec().name));
    auto found = cache.find(m.spec().name, m.spec(), 37, 300, kernel::best_unit());
    REQUIRE(found);
    const panel_matrix moved = std::move(*found);
    REQUIRE(moved.size_bytes() == m.size_bytes());
    CHECK(std::memcmp(moved.data(), m.data(), m.size_bytes()) == 0);
    std::vector<float> a(37), b(37);
    for (const precision p : {precision::int8, precision::exact}) {
      multiply({x.data(), 1, 300}, m, {a.data(), 1, 37}, space, p);
      multiply({x.data(), 1, 300}, moved, {b.data(), 1, 37}, space, p);
      CHECK(std::memcmp(a.data(), b.data(), 37 * sizeof(float)) == 0);
    }
    CHECK(!cache.find(m.spec().name, m.spec(), 38, 300, kernel::best_unit()));
    CHECK(!cache.find(m.spec().name, spec_of<q8_0>, 37, 300, kernel::best_unit()));
  }
  CHECK(!cache.find("none", spec_of<q4_k>, 37, 300, kernel::best_unit()));
}

TEST_CASE("a matrix that has a factor, another order of inputs or a format of its own is left out") {
  const scratch_folder folder;
  serial_executor serial;
  packed_matrix turned = random_blocks(spec_of<q8_0>, 16, 64, 1), scaled = random_blocks(spec_of<nvfp4>, 16, 64, 2);
  std::vector<std::uint32_t> order(64);
  for (std::uint32_t i = 0; i < 64; ++i) order[i] = 63 - i;
  turned.set_inputs(order);
  scaled.set_factor(0.5);
  static constexpr format_spec own = [] {
    format_spec s = spec_of<q8_0>;
    s.name = "own";
    return s;
  }();
  const panel_matrix matrices[] = {panel_matrix::from(turned.view(), serial), panel_matrix::from(scaled.view(), serial),
                                   panel_matrix::from(random_blocks(own, 16, 64, 3).view(), serial),
                                   panel_matrix::from(random_blocks(spec_of<q8_0>, 16, 64, 4).view(), serial)};
  const panel_cache::entry entries[] = {{"turned", &matrices[0]}, {"scaled", &matrices[1]}, {"own", &matrices[2]}, {"plain", &matrices[3]}};
  for (const std::size_t count : {std::size_t{4}, std::size_t{3}}) {
    REQUIRE(panel_cache::write(folder / "c", "source", std::span(entries).first(count)));
    const auto cache = panel_cache::open(folder / "c", "source");
    REQUIRE_MESSAGE(cache, cache.error().message);
    CHECK(cache->size() == count - 3);
    CHECK(!cache->find("turned", spec_of<q8_0>, 16, 64, kernel::best_unit()));
    CHECK(!cache->find("scaled", spec_of<nvfp4>, 16, 64, kernel::best_unit()));
    CHECK(cache->find("plain", spec_of<q8_0>, 16, 64, kernel::best_unit()).has_value() == (count == 4));
  }
}

TEST_CASE("a cache of something else, of another version, or broken anywhere is refused") {
  const scratch_folder folder;
  const std::size_t panel_bytes = write_cache_of_one(folder, 32);
  CHECK(panel_cache::open(folder / "none", "source").error().kind == errc::io);
  CHECK(panel_cache::open(folder / "c", "other").error().kind == errc::not_found);
  const bytes whole = read_all(folder / "c");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text(whole.begin(), whole.end());
    const auto at = text.find(from);
    REQUIRE(at != text.npos);
    write_all(folder / "changed", text.replace(at, from.size(), to));
    const auto c = panel_cache::open(folder / "changed", "source");
    REQUIRE(!c);
    return c.error().kind;
  };
  CHECK(changed("lowbit.panels", "lowbit.fannel") == errc::bad_magic);
  CHECK(changed(std::string("lowbit.layout\4\0\0\0\2", 18), std::string("lowbit.layout\4\0\0\0\1", 18)) == errc::unsupported);
  CHECK(changed("q4_0", "q9_9") == errc::shape);
  CHECK(changed("q4_0", "q8_0") == errc::shape);
  CHECK(changed("lowbit.rows", "lowbit.rowz") == errc::malformed);
  CHECK(changed("lowbit.checksums", "lowbit.checksumz") == errc::malformed);
  const std::string sixteen = std::string("\12\0\0\0\1\0\0\0\0\0\0\0\20\0\0\0\0\0\0\0", 20);  // rows: an array of one u64, 16
  const std::string huge = sixteen.substr(0, 12) + std::string(8, '\xff');
  CHECK(changed(sixteen, huge) == errc::shape);
  const std::size_t data_end = 4096 + panel_bytes;  // then comes padding, which nobody needs
  REQUIRE(whole.size() == 8192);
  for (std::size_t n = 0; n < data_end; n += n < 1000 ? 1 : 97) {
    write_all(folder / "cut", std::string(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)));
    REQUIRE(!panel_cache::open(folder / "cut", "source"));
  }
}

TEST_CASE("a bit that changes anywhere in the panels is found by who asks for it") {
  const scratch_folder folder;
  const std::size_t panel_bytes = write_cache_of_one(folder, 64);
  REQUIRE(panel_cache::open(folder / "c", "source")->check());
  const bytes whole = read_all(folder / "c");
  for (std::size_t at = 0; at < panel_bytes; ++at)
    for (const unsigned bit : {0u, 7u}) {
      std::string text(whole.begin(), whole.end());
      text[4096 + at] = static_cast<char>(static_cast<unsigned char>(text[4096 + at]) ^ 1u << bit);
      write_all(folder / "damaged", text);
      const auto cache = panel_cache::open(folder / "damaged", "source");
      REQUIRE(cache);
      const status checked = cache->check();
      REQUIRE(!checked);
      REQUIRE(checked.error().message.find("'w'") != std::string::npos);
    }
}

TEST_CASE("a fingerprint changes with a file's content, size and time, and with the list") {
  const scratch_folder folder;
  std::vector<std::filesystem::path> files{folder / "a", folder / "b"};
  std::string text(100000, 'x');
  write_all(files[0], text);
  write_all(files[1], "");
  const auto print = [&] { return *fingerprint(files); };
  const std::string first = print();
  CHECK(first == print());
  const auto time = std::filesystem::last_write_time(files[0]);
  text[0] = 'y';
  write_all(files[0], text);
  std::filesystem::last_write_time(files[0], time);  // the time of the change itself cannot be set back
  const std::string second = print();
  CHECK(first != second);
  std::filesystem::last_write_time(files[0], time + std::chrono::seconds(1));
  CHECK(second != print());
  files.pop_back();
  CHECK(print() != second);
  files.push_back(folder / "none");
  CHECK(fingerprint(files).error().kind == errc::io);
}
