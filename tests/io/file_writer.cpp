// Files appear whole or not at all.
#include "files.hpp"

#include <lowbit/io/file_writer.hpp>

#include <doctest/doctest.h>

#include <sys/wait.h>

using namespace lowbit;
using namespace lowbit::test;

TEST_CASE("a committed file has everything, an abandoned one is not there") {
  const scratch_folder folder;
  {
    auto w = file_writer::create(folder / "kept");
    REQUIRE(w);
    REQUIRE(w->append(std::string_view("abc")));
    REQUIRE(w->pad_to(8));
    const std::string large(3 << 20, 'x');
    REQUIRE(w->append(std::string_view(large)));
    CHECK(folder.files() == 1);
    CHECK(!std::filesystem::exists(folder / "kept"));
    REQUIRE(w->commit());
    auto gone = file_writer::create(folder / "gone");
    REQUIRE(gone);
    REQUIRE(gone->append(std::string_view("abc")));
  }
  CHECK(folder.files() == 1);
  const auto all = read_all(folder / "kept");
  CHECK(all.size() == (3 << 20) + 8);
  CHECK(all[4] == 0);
}

TEST_CASE("an old file stays until the new one is whole") {
  const scratch_folder folder;
  write_all(folder / "f", "old");
  {
    auto w = file_writer::create(folder / "f");
    REQUIRE(w);
    REQUIRE(w->append(std::string_view("new")));
  }
  CHECK(read_all(folder / "f") == bytes{'o', 'l', 'd'});
}

TEST_CASE("a temporary is a new file: neither a link that has its name nor another writer's is written into") {
  const scratch_folder folder;
  const std::string name = ".f.partial-" + std::to_string(::getpid());
  write_all(folder / "victim", "kept");
  std::filesystem::create_symlink(folder / "victim", folder / name);
  {
    auto one = file_writer::create(folder / "f"), two = file_writer::create(folder / "f");
    REQUIRE((one && two));
    REQUIRE(one->append(std::string_view("one")));
    REQUIRE(two->append(std::string_view("two")));
    REQUIRE(one->commit());
    CHECK(read_all(folder / "f") == bytes{'o', 'n', 'e'});
    REQUIRE(two->commit());
    CHECK(read_all(folder / "f") == bytes{'t', 'w', 'o'});
  }
  CHECK(read_all(folder / "victim") == bytes{'k', 'e', 'p', 't'});
  CHECK(folder.files() == 3);  // the link stays

  for (int i = 1; i < 100; ++i) write_all(folder / (name + "-" + std::to_string(i)), "");
  const auto full = file_writer::create(folder / "f");
  REQUIRE(!full);
  CHECK(full.error().kind == errc::io);
  CHECK_MESSAGE(full.error().message.find(name) != std::string::npos, full.error().message);
  CHECK(read_all(folder / "f") == bytes{'t', 'w', 'o'});
}

TEST_CASE("files that belong together appear together") {
  const scratch_folder folder;
  const auto files = [&](const char* second) {
    std::vector<file_writer> all;
    for (const char* name : {"one", second}) {
      auto w = file_writer::create(folder / name);
      REQUIRE(w);
      REQUIRE(w->append(std::string_view(name)));
      REQUIRE(w->finish());
      all.push_back(*std::move(w));
    }
    CHECK(!std::filesystem::exists(folder / "one"));
    return all;
  };
  auto blocked = files("two");
  std::filesystem::create_directory(folder / "two");
  const status s = file_writer::commit_all(std::move(blocked));
  REQUIRE(!s);
  CHECK_MESSAGE(s.error().message.find("two") != std::string::npos, s.error().message);
  CHECK(folder.files() == 1);  // what is in the way
  REQUIRE(file_writer::commit_all(files("three")));
  CHECK(read_all(folder / "one") == bytes{'o', 'n', 'e'});
  CHECK(read_all(folder / "three").size() == 5);
  CHECK(folder.files() == 3);
}

TEST_CASE("places that cannot be written are refused by name") {
  const scratch_folder folder;
  const auto missing = file_writer::create(folder / "no/such/folder/f");
  REQUIRE(!missing);
  CHECK(missing.error().message.find("no/such/folder/f") != std::string::npos);
  CHECK(!file_writer::create(folder / ""));  // a directory
  auto full = file_writer::create("/dev/full-is-a-device/f");
  CHECK(!full);
}

TEST_CASE("a process that ends by a signal leaves nothing when its handler says so") {
  const scratch_folder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    auto w = file_writer::create(folder / "f");
    if (!w || !w->append(std::string_view("half"))) ::_exit(1);
    remove_partial_files();  // as a signal handler would
    ::_exit(folder.files() == 0 ? 0 : 2);
  }
  int state = 0;
  ::waitpid(child, &state, 0);
  CHECK(WIFEXITED(state));
  CHECK(WEXITSTATUS(state) == 0);
  CHECK(folder.files() == 0);
}

TEST_CASE("mapped files: missing, folders, empty") {
  const scratch_folder folder;
  CHECK(mapped_file::open(folder / "none").error().kind == errc::io);
  CHECK(mapped_file::open(folder / "").error().message.find("not a regular file") != std::string::npos);
  write_all(folder / "empty", "");
  const auto empty = mapped_file::open(folder / "empty");
  REQUIRE(empty);
  CHECK(empty->bytes().empty());
}
