// Every reader of the library against its corpus: bad files refused, good ones read, cut ones refused at every byte, and never more memory
// than a small multiple of the bytes that are there.
#include "corpus.hpp"

#include <lowbit/io/gguf.hpp>
#include <lowbit/io/safetensors.hpp>

#include <cstdlib>
#include <malloc.h>
#include <new>

using namespace lowbit;
using namespace lowbit::test;

namespace {
// What operator new has given out and not got back, and the most that it ever was.
std::size_t in_use = 0, most_in_use = 0;

/// The most memory that f() has in use beyond what was in use before.
template <class F>
std::size_t memory_of(F&& f) {
  const std::size_t before = in_use;
  most_in_use = in_use;
  f();
  return most_in_use - before;
}
std::string_view text_of(const bytes& b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

// Fixed costs, and how many bytes are allocated for one of the input: an empty string takes 8 bytes of a GGUF file and 32 of memory, a JSON
// number two bytes of text and 16 of memory, each twice while a vector grows.
constexpr std::size_t fixed = std::size_t{64} << 10, factor = 48;
}  // namespace

void* operator new(std::size_t size) {
  void* const p = std::malloc(size != 0 ? size : 1);
  if (p == nullptr) std::abort();
  in_use += ::malloc_usable_size(p);
  most_in_use = std::max(most_in_use, in_use);
  return p;
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return operator new(size); }  // a sanitiser's would not fit our delete
void operator delete(void* p) noexcept {
  in_use -= ::malloc_usable_size(p);
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { operator delete(p); }

TEST_CASE("GGUF: the bad files of the corpus are refused, the good ones are read, cut ones are not") {
  for_each_in_corpus("gguf", [&](const std::string&, const bytes& file, bool is_bad) {
    std::size_t data_end = 0;
    const std::size_t memory = memory_of([&] {
      const auto g = read_gguf(file);
      CHECK(g.ok() == !is_bad);
      if (!g) return check_message(g.error());
      for (const gguf_tensor& t : g->tensors) data_end = std::max(data_end, t.offset + t.bytes);
      if (g->tensors.empty()) data_end = file.size() - 31;  // what is after the header of no tensors is padding
    });
    CHECK(memory <= fixed + factor * file.size());
    for (std::size_t n = 0; n < data_end && file.size() < 4096; ++n) REQUIRE(!read_gguf(first_of(file, n)));
  });
}

TEST_CASE("safetensors: the bad files of the corpus are refused, the good ones are read, cut ones are not") {
  for_each_in_corpus("safetensors", [&](const std::string&, const bytes& file, bool is_bad) {
    const std::size_t memory = memory_of([&] {
      const auto s = read_safetensors(file);
      CHECK(s.ok() == !is_bad);
      if (!s) check_message(s.error());
    });
    CHECK(memory <= fixed + factor * file.size());
    for (std::size_t n = 0; n < file.size() && !is_bad; ++n) REQUIRE(!read_safetensors(first_of(file, n)));
  });
}

TEST_CASE("shard indexes: the bad files of the corpus are refused, the good one is read, cut ones are not") {
  for_each_in_corpus("shard_index", [&](const std::string&, const bytes& file, bool is_bad) {
    const auto where = read_shard_index(text_of(file), "index");
    CHECK(where.ok() == !is_bad);
    if (!where) check_message(where.error());
    for (std::size_t n = 0; n < file.size() && !is_bad; ++n) REQUIRE(!read_shard_index(text_of(first_of(file, n)), "index"));
  });
}

TEST_CASE("files of nothing but small things take memory in proportion, and no more time than that") {
  std::string strings = "GGUF";  // an array of a million empty strings
  put<std::uint32_t>(strings, 3);
  put<std::uint64_t>(strings, 0);
  put<std::uint64_t>(strings, 1);
  put_string(strings, "k");
  put<std::int32_t>(strings, 9);
  put<std::int32_t>(strings, 8);
  put<std::uint64_t>(strings, 1000000);
  strings.resize(strings.size() + 8000000);
  CHECK(memory_of([&] { CHECK(read_gguf(span_of(strings))); }) <= fixed + factor * strings.size());

  std::string shape = R"({"a":{"dtype":"U8","shape":[)";  // a tensor of half a million dimensions
  for (int i = 0; i < 500000; ++i) shape += "1,";
  shape += R"(1],"data_offsets":[0,1]}})";
  std::string file;
  put_string(file, shape);
  file += '\0';
  CHECK(memory_of([&] { CHECK(read_safetensors(span_of(file))); }) <= fixed + factor * file.size());

  std::string many = "{";  // 100,000 tensors: looking each name up one by one would take minutes
  for (int i = 0; i < 100000; ++i)
    many += (i == 0 ? "\"t" : ",\"t") + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  file.clear();
  put_string(file, many + "}");
  CHECK(memory_of([&] { CHECK(read_safetensors(span_of(file))); }) <= fixed + factor * file.size());
}
