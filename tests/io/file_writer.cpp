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
