// Models larger than the memory that a process may have are quantised and converted all the same: sparse files of gigabytes under a limit of
// 400 MB, and one of a gigabyte, 400 MB of it a single tensor, under 300 MB.
#include "../instrumented.hpp"
#include "../io/files.hpp"
#include "files/names.hpp"
#include "tiny_model.hpp"

#include <lowbit/core/bits.hpp>
#include <lowbit/io/gguf.hpp>

#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include <sys/wait.h>

namespace {

using namespace lowbit::test;

template <class T>
void put_key(std::string& s, const std::string& name, std::int32_t type, T value) {
  put_string(s, name);
  put(s, type);
  put(s, value);
}

struct dimensions { std::uint32_t hidden, intermediate, heads, kv_heads, layers; };
constexpr dimensions wide{4096, 14336, 32, 8, 1}, deep{1024, 4096, 16, 8, 10};
constexpr std::uint32_t positions = 128;

struct shape { std::string name; std::uint64_t cols, rows; };  // rows 0: a vector
std::uint64_t floats_of(const shape& t) { return t.cols * std::max<std::uint64_t>(1, t.rows); }

/// The tensors of a Llama, in GGUF's names.
std::vector<shape> shapes(const dimensions& d, std::uint64_t vocabulary) {
  const std::uint64_t keys = d.hidden / d.heads * d.kv_heads;
  std::vector<shape> all{{"token_embd.weight", d.hidden, vocabulary}, {"output_norm.weight", d.hidden, 0}};
  for (std::uint32_t i = 0; i < d.layers; ++i)
    for (const shape& t : {shape{"attn_norm", d.hidden, 0}, {"attn_q", d.hidden, d.hidden}, {"attn_k", d.hidden, keys}, {"attn_v", d.hidden, keys},
                           {"attn_output", d.hidden, d.hidden}, {"ffn_norm", d.hidden, 0}, {"ffn_gate", d.hidden, d.intermediate},
                           {"ffn_up", d.hidden, d.intermediate}, {"ffn_down", d.intermediate, d.hidden}})
      all.push_back({"blk." + std::to_string(i) + '.' + t.name + ".weight", t.cols, t.rows});
  return all;
}

/// A file of zeros, float32, after `head`, but for 128 ones at the end of the first tensor, the embedding. Returns its size.
std::size_t write_sparse(const std::filesystem::path& path, const std::string& head, const dimensions& d, std::uint64_t vocabulary,
                         std::uint64_t more_floats = 0) {
  write_all(path, head);
  std::uint64_t floats = more_floats;
  for (const shape& t : shapes(d, vocabulary)) floats += floats_of(t);
  const std::size_t size = head.size() + floats * sizeof(float);
  std::filesystem::resize_file(path, size);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const std::vector<float> ones(128, 1.0f);
  file.seekp(static_cast<std::streamoff>(head.size() + (d.hidden * vocabulary - ones.size()) * sizeof(float)));
  file.write(reinterpret_cast<const char*>(ones.data()), static_cast<std::streamsize>(ones.size() * sizeof(float)));
  return size;
}

std::size_t write_gguf(const std::filesystem::path& path, const dimensions& d, std::uint64_t vocabulary) {
  std::string keys;
  std::uint64_t count = 0;
  const auto number = [&](const std::string& name, std::uint32_t v) { ++count, put_key(keys, name, 4, v); };
  const auto text = [&](const std::string& name, const std::string& v) { ++count, put_string(keys, name), put<std::int32_t>(keys, 8), put_string(keys, v); };
  text("general.architecture", "llama");
  number("llama.block_count", d.layers);
  number("llama.context_length", positions);
  number("llama.embedding_length", d.hidden);
  number("llama.feed_forward_length", d.intermediate);
  number("llama.attention.head_count", d.heads);
  number("llama.attention.head_count_kv", d.kv_heads);
  ++count, put_key(keys, "llama.attention.layer_norm_rms_epsilon", 6, 1e-5f);
  text("tokenizer.ggml.model", "gpt2");
  text("tokenizer.ggml.pre", "gpt-2");
  ++count, put_string(keys, "tokenizer.ggml.tokens"), put<std::int32_t>(keys, 9), put<std::int32_t>(keys, 8), put<std::uint64_t>(keys, 1), put_string(keys, "a");

  const std::vector<shape> tensors = shapes(d, vocabulary);
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
    offset += floats_of(t) * sizeof(float);
  }
  head.resize(lowbit::round_up(head.size(), 32), '\0');
  return write_sparse(path, head, d, vocabulary);
}

std::size_t write_llama2c(const std::filesystem::path& path, std::int32_t vocabulary) {
  std::string head;
  for (const std::uint32_t h : {wide.hidden, wide.intermediate, 1u, wide.heads, wide.kv_heads, static_cast<std::uint32_t>(vocabulary), positions}) put(head, h);
  write_all(path.parent_path() / (path.stem().string() + "-tok.bin"), tiny_tokeniser(vocabulary));
  return write_sparse(path, head, wide, static_cast<std::uint64_t>(vocabulary), positions * (wide.hidden / wide.heads));
}

/// A Hugging Face folder, from that of a small model.
std::size_t write_folder(const std::filesystem::path& path, std::uint64_t vocabulary) {
  auto config = nlohmann::json::parse(std::ifstream(path / "config.json"));
  for (const auto& [key, value] : {std::pair<const char*, std::uint64_t>{"vocab_size", vocabulary}, {"hidden_size", wide.hidden}, {"intermediate_size", wide.intermediate},
                                   {"num_hidden_layers", 1}, {"num_attention_heads", wide.heads}, {"num_key_value_heads", wide.kv_heads}, {"head_dim", wide.hidden / wide.heads}})
    config[key] = value;
  write_all(path / "config.json", config.dump());
  nlohmann::json header;
  std::uint64_t offset = 0;
  for (const shape& t : shapes(wide, vocabulary)) {
    const std::uint64_t begin = std::exchange(offset, offset + floats_of(t) * sizeof(float));
    header[llm::hf_name(t.name).value()] = {{"dtype", "F32"}, {"shape", t.rows == 0 ? nlohmann::json{t.cols} : nlohmann::json{t.rows, t.cols}}, {"data_offsets", {begin, offset}}};
  }
  std::string head;
  put_string(head, header.dump());
  return write_sparse(path / "model.safetensors", head, wide, vocabulary);
}

/// Quantises in 400 MB of address space, and looks at what became of the embedding's end.
void check_quantised(const std::filesystem::path& model, std::size_t size, const std::filesystem::path& small) {
  CAPTURE(model.string());
  REQUIRE(size > 4 * std::size_t{400'000'000});
  const std::string command = "ulimit -v 400000 && \"" LOWBIT_CLI "\" quantise --threads 1 --format q1_0 " + model.string() + " " + small.string() + " > /dev/null";
  REQUIRE(std::system(command.c_str()) == 0);
  const auto file = lowbit::mapped_file::open(small);
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

}  // namespace

TEST_CASE("models of gigabytes are quantised in 400 MB of address space, whatever their files") {
  if (instrumented) return;  // the sanitiser itself takes terabytes of addresses
  const scratch_folder folder;
  check_quantised(folder / "large.gguf", write_gguf(folder / "large.gguf", wide, 131072), folder / "gguf.gguf");
  check_quantised(folder / "large.bin", write_llama2c(folder / "large.bin", 49152), folder / "bin.gguf");
  write_all(folder / "tiny.bin", tiny_checkpoint({}));
  write_all(folder / "tiny-tok.bin", tiny_tokeniser(270));
  REQUIRE(std::system(("\"" LOWBIT_CLI "\" convert --to hf " + (folder / "tiny.bin").string() + " " + (folder / "hf").string() + " > /dev/null").c_str()) == 0);
  check_quantised(folder / "hf", write_folder(folder / "hf", 49152), folder / "hf.gguf");
}

TEST_CASE("folders are written in bounded memory as well, floats by runs of rows and quantised matrices one at a time") {
  if (instrumented) return;
  const scratch_folder folder;
  const std::string deep_model = folder / "deep.gguf", limited = "ulimit -v 300000 && \"" LOWBIT_CLI "\" ";
  REQUIRE(write_gguf(deep_model, deep, 98304) > 3 * std::size_t{300'000'000});
  const auto succeeds = [&](const std::string& arguments) { return std::system((limited + arguments + " > /dev/null").c_str()) == 0; };
  CHECK(succeeds("convert --threads 1 --to hf --split 200M " + deep_model + ' ' + (folder / "hf").string()));
  CHECK(std::filesystem::exists(folder / "hf" / "model.safetensors.index.json"));
  CHECK(succeeds("convert --threads 1 --to gptq " + deep_model + ' ' + (folder / "gptq").string()));
  CHECK(succeeds("quantise --threads 1 --format nf4 " + deep_model + ' ' + (folder / "nf4").string()));
  // From a folder, where queries and keys are in the other order.
  CHECK(succeeds("convert --threads 1 --to gguf --format q8_0 " + (folder / "hf").string() + ' ' + (folder / "back.gguf").string()));
  CHECK(succeeds("convert --threads 1 --to compressed-tensors-nvfp4 " + (folder / "hf").string() + ' ' + (folder / "nvfp4").string()));
  CHECK(succeeds("quantise --threads 1 --format s4_g64 " + (folder / "hf").string() + ' ' + (folder / "s4").string()));
}

TEST_CASE("where there is not enough memory that is said in a line, and nothing is left behind") {
  if (instrumented) return;
  const scratch_folder folder;
  const std::string model = folder / "deep.gguf", said = folder / "said";
  write_gguf(model, deep, 98304);
  bool any = false;
  for (int kilobytes = 60000; kilobytes <= 180000; kilobytes += 10000) {
    CAPTURE(kilobytes);
    const std::string command = "ulimit -v " + std::to_string(kilobytes) + " && \"" LOWBIT_CLI "\" convert --threads 1 --to gguf --format q8_0 " + model + ' ' +
                                (folder / "out.gguf").string() + " > /dev/null 2> " + said;
    const int status = std::system(command.c_str());
    const bytes text = read_all(said);
    const std::string words(text.begin(), text.end());
    CAPTURE(words);
    if (status == 0) break;
    any = any || words.find("lowbit: there is not enough memory") == 0;
    CHECK(WIFEXITED(status));
    CHECK((WEXITSTATUS(status) == 2 || words.find("shared librar") != std::string::npos));  // too little to begin with
    CHECK(std::count(words.begin(), words.end(), '\n') == 1);
    CHECK(folder.files() == 2);
  }
  CHECK(any);
}

TEST_CASE("a model is converted a run of rows at a time, whatever its size and its largest tensor's") {
  if (instrumented) return;
  const scratch_folder folder;
  REQUIRE(write_gguf(folder / "deep.gguf", deep, 98304) > 3 * std::size_t{300'000'000});
  const std::string command = "ulimit -v 300000 && \"" LOWBIT_CLI "\" convert --threads 1 --format q8_0 --to ";
  REQUIRE(std::system((command + "gguf " + (folder / "deep.gguf").string() + ' ' + (folder / "small.gguf").string() + " > /dev/null").c_str()) == 0);
  const auto file = lowbit::mapped_file::open(folder / "small.gguf");
  REQUIRE(file);
  const auto content = lowbit::read_gguf(file->bytes());
  REQUIRE(content);
  const auto* const embedding = content->find("token_embd.weight");
  REQUIRE(embedding != nullptr);
  const auto last = embedding->data.last(34);  // of q8_0: the scale 1 / 127, and codes 127
  for (std::size_t i = 2; i < 34; ++i) CHECK(last[i] == 127);
  CHECK(content->tensors.size() == 92);
}
