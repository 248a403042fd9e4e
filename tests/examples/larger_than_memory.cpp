// A model larger than the memory that a process may have is quantised all the same: a sparse file of 3 GB under a limit of 400 MB.
#include "../io/files.hpp"

#include <lowbit/core/bits.hpp>
#include <lowbit/io/gguf.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
constexpr bool instrumented = true;
#elif defined(__has_feature)
constexpr bool instrumented = __has_feature(address_sanitizer);
#else
constexpr bool instrumented = false;
#endif

namespace {

using namespace lowbit::test;

template <class T>
void put_key(std::string& s, const std::string& name, std::int32_t type, T value) {
  put_string(s, name);
  put(s, type);
  put(s, value);
}

/// Writes a Llama of zeros, float32, but for 128 ones at the end of the embedding. Returns its size.
std::size_t write_sparse_model(const std::filesystem::path& path) {
  constexpr std::uint32_t hidden = 4096, intermediate = 14336, vocabulary = 131072, heads = 32, kv_heads = 8;
  struct shape { std::string name; std::uint64_t cols, rows; };  // rows 0: a vector
  const std::vector<shape> tensors{{"token_embd.weight", hidden, vocabulary}, {"output_norm.weight", hidden, 0}, {"blk.0.attn_norm.weight", hidden, 0},
                                   {"blk.0.attn_q.weight", hidden, hidden}, {"blk.0.attn_k.weight", hidden, hidden / 4}, {"blk.0.attn_v.weight", hidden, hidden / 4},
                                   {"blk.0.attn_output.weight", hidden, hidden}, {"blk.0.ffn_norm.weight", hidden, 0}, {"blk.0.ffn_gate.weight", hidden, intermediate},
                                   {"blk.0.ffn_up.weight", hidden, intermediate}, {"blk.0.ffn_down.weight", intermediate, hidden}};
  std::string keys;
  std::uint64_t count = 0;
  const auto number = [&](const std::string& name, std::uint32_t v) { ++count, put_key(keys, name, 4, v); };
  const auto text = [&](const std::string& name, const std::string& v) { ++count, put_string(keys, name), put<std::int32_t>(keys, 8), put_string(keys, v); };
  text("general.architecture", "llama");
  number("llama.block_count", 1);
  number("llama.context_length", 128);
  number("llama.embedding_length", hidden);
  number("llama.feed_forward_length", intermediate);
  number("llama.attention.head_count", heads);
  number("llama.attention.head_count_kv", kv_heads);
  ++count, put_key(keys, "llama.attention.layer_norm_rms_epsilon", 6, 1e-5f);
  text("tokenizer.ggml.model", "gpt2");
  text("tokenizer.ggml.pre", "gpt-2");
  ++count, put_string(keys, "tokenizer.ggml.tokens"), put<std::int32_t>(keys, 9), put<std::int32_t>(keys, 8), put<std::uint64_t>(keys, 1), put_string(keys, "a");

  std::string head = "GGUF";
  put<std::uint32_t>(head, 3);
  put<std::uint64_t>(head, tensors.size());
  put(head, count);
  head += keys;
  std::uint64_t offset = 0;
  for (const shape& t : tensors) {
    put_string(head, t.name);
    put<std::uint32_t>(head, t.rows == 0 ? 1 : 2);
    put(head, t.cols);
    if (t.rows != 0) put(head, t.rows);
    put<std::uint32_t>(head, 0);
    put(head, offset);
    offset += t.cols * std::max<std::uint64_t>(1, t.rows) * sizeof(float);
  }
  head.resize(lowbit::round_up(head.size(), 32), '\0');
  write_all(path, head);
  std::filesystem::resize_file(path, head.size() + offset);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const std::vector<float> ones(128, 1.0f);
  file.seekp(static_cast<std::streamoff>(head.size() + std::uint64_t{hidden} * vocabulary * sizeof(float) - ones.size() * sizeof(float)));
  file.write(reinterpret_cast<const char*>(ones.data()), static_cast<std::streamsize>(ones.size() * sizeof(float)));
  return head.size() + offset;
}

}  // namespace

TEST_CASE("3 GB are quantised in 400 MB of address space") {
  if (instrumented) return;  // the sanitiser itself takes terabytes of addresses
  const scratch_folder folder;
  const std::size_t size = write_sparse_model(folder / "large.gguf");
  REQUIRE(size > 3'000'000'000u);
  const std::string command = "ulimit -v 400000 && \"" LOWBIT_CLI "\" quantise --threads 1 --format q1_0 " + (folder / "large.gguf").string() + " " +
                              (folder / "small.gguf").string() + " > /dev/null";
  REQUIRE(std::system(command.c_str()) == 0);
  const auto file = lowbit::mapped_file::open(folder / "small.gguf");
  REQUIRE(file);
  const auto content = lowbit::read_gguf(file->bytes());
  REQUIRE(content);
  const auto* const embedding = content->find("token_embd.weight");
  REQUIRE(embedding != nullptr);
  const auto block = [&](std::size_t from_end) { return embedding->data.subspan(embedding->data.size() - 18 * from_end, 18); };
  CHECK(block(1)[0] == 0x00);
  CHECK(block(1)[1] == 0x3c);  // the mean magnitude, 1
  for (std::size_t i = 2; i < 18; ++i) CHECK(block(1)[i] == 0xff);
  CHECK(block(2)[1] == 0);
}
