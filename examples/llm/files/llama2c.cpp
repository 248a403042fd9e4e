// llama2.c's legacy checkpoint: seven int32, then float32 tensors, those of one kind for all layers together; the tokeniser is a
// file of its own (int32 longest piece; for each token float score, int32 length, bytes). Source: karpathy/llama2.c, run.c.
#include "load.hpp"
#include "names.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/io/byte_reader.hpp>
#include <lowbit/io/mapped_file.hpp>

#include <algorithm>
#include <filesystem>
#include <utility>

namespace llm {
namespace {

namespace fs = std::filesystem;

std::string tokeniser_beside(const fs::path& model, std::size_t vocabulary) {
  for (const std::string& name : {model.stem().string() + "-tok.bin", "tok" + std::to_string(vocabulary) + ".bin", std::string{"tokenizer.bin"}}) {
    std::error_code ignored;
    if (const fs::path p = model.parent_path() / name; fs::exists(p, ignored)) return p.string();
  }
  return {};
}

lowbit::result<vocabulary> read_tokeniser(const std::string& path, std::size_t count) {
  auto file = lowbit::mapped_file::open(path);
  if (!file) return std::move(file).error();
  lowbit::byte_reader in{file->bytes()};
  (void)in.read<std::int32_t>();  // the longest piece
  vocabulary v;
  v.kind = vocabulary_kind::sentencepiece;
  for (std::size_t i = 0; i < count && in.ok(); ++i) {
    v.scores.push_back(in.read<float>());
    const auto length = in.read<std::int32_t>();
    const auto bytes = in.take(length < 0 ? in.left() + 1 : static_cast<std::size_t>(length));
    std::string piece;
    for (const std::uint8_t b : bytes) b == ' ' ? piece += "\xe2\x96\x81" : piece += static_cast<char>(b);
    const bool is_byte = piece.size() == 6 && piece.starts_with("<0x") && piece.ends_with('>');
    v.kinds.push_back(i == 0 ? piece_kind::unknown : i <= 2 ? piece_kind::control : is_byte ? piece_kind::byte : piece_kind::normal);
    v.pieces.push_back(std::move(piece));
  }
  if (!in.ok()) return lowbit::failure{lowbit::errc::truncated, path + ": ends before its " + std::to_string(count) + " tokens do"};
  v.unknown = 0;
  v.bos = 1;
  v.eos = 2;
  v.add_bos = true;
  v.add_space_prefix = true;
  return v;
}

}  // namespace

lowbit::result<checkpoint> open_llama2c(const std::string& path, const std::string& tokeniser_path) {
  auto opened = lowbit::open_file::open(path);
  if (!opened) return std::move(opened).error();
  const auto file = std::make_shared<const lowbit::open_file>(*std::move(opened));
  const auto fail = [&](lowbit::errc kind, std::string what) { return lowbit::failure{kind, path + ": " + std::move(what)}; };

  std::int32_t header[7];
  const auto beginning = file->map(0, std::min(file->size(), sizeof header));
  if (!beginning) return beginning.error();
  lowbit::byte_reader in{beginning->bytes()};
  for (std::int32_t& h : header) h = in.read<std::int32_t>();
  const auto [dim, hidden, layers, heads, kv_heads, signed_vocabulary, positions] = header;
  if (!in.ok()) return fail(lowbit::errc::truncated, "ends within its header");
  for (const std::int32_t& h : header)
    if (h == 0 || h > (1 << 24) || (h < 0 && &h != &header[5])) return fail(lowbit::errc::bad_magic, "is no checkpoint of llama2.c");
  if (signed_vocabulary < -(1 << 24) || dim % heads != 0 || kv_heads > heads) return fail(lowbit::errc::bad_magic, "is no checkpoint of llama2.c");

  checkpoint c;
  c.name = fs::path(path).stem().string();
  c.kind = "llama2.c";
  const auto size = [](std::int32_t v) { return static_cast<std::size_t>(v); };
  c.config.vocabulary = size(std::abs(signed_vocabulary));
  c.config.hidden = size(dim);
  c.config.intermediate = size(hidden);
  c.config.layers = size(layers);
  c.config.heads = size(heads);
  c.config.kv_heads = size(kv_heads);
  c.config.head_dim = size(dim / heads);
  c.config.context = size(positions);
  if (lowbit::status valid = check(c.config); !valid) return fail(valid.error().kind, valid.error().message);

  const model_config& m = c.config;
  std::size_t at = sizeof header;
  bool whole = true;  // so far
  const auto take = [&](std::size_t floats) {
    whole = whole && floats <= (file->size() - at) / sizeof(float);
    return std::exchange(at, whole ? at + floats * sizeof(float) : at);
  };
  const auto add = [&](std::string name, std::size_t rows, std::size_t cols, bool is_vector) {
    const std::size_t begin = take(rows * cols);
    c.tensors.push_back(mapped_tensor(std::move(name), is_vector, rows, cols, lowbit::spec_of<lowbit::f32>,
                                      [file, begin](std::size_t first, std::size_t bytes) { return file->map(begin + first, bytes); }));
  };
  const auto add_layers = [&](std::string_view part, std::size_t rows, std::size_t cols, bool is_vector = false) {
    for (std::size_t i = 0; i < m.layers && whole; ++i) add(layer_name(i, part), rows, cols, is_vector);
  };
  add("token_embd.weight", m.vocabulary, m.hidden, false);
  add_layers("attn_norm.weight", 1, m.hidden, true);
  add_layers("attn_q.weight", m.query_size(), m.hidden);
  add_layers("attn_k.weight", m.kv_size(), m.hidden);
  add_layers("attn_v.weight", m.kv_size(), m.hidden);
  add_layers("attn_output.weight", m.hidden, m.query_size());
  add_layers("ffn_norm.weight", 1, m.hidden, true);
  add_layers("ffn_gate.weight", m.intermediate, m.hidden);
  add_layers("ffn_down.weight", m.hidden, m.intermediate);
  add_layers("ffn_up.weight", m.intermediate, m.hidden);
  add("output_norm.weight", 1, m.hidden, true);
  take(m.context * m.head_dim);  // cosines and sines of RoPE, which we compute
  if (signed_vocabulary < 0) add("output.weight", m.vocabulary, m.hidden, false);
  if (!whole) return fail(lowbit::errc::truncated, "ends before its tensors do");
  if (at != file->size()) return fail(lowbit::errc::bad_magic, "is no checkpoint of llama2.c");

  const std::string beside = tokeniser_path.empty() ? tokeniser_beside(path, m.vocabulary) : tokeniser_path;
  if (beside.empty())
    return fail(lowbit::errc::not_found, "no tokenizer is beside it; name one with --tokenizer");
  auto words = read_tokeniser(beside, m.vocabulary);
  if (!words) return std::move(words).error();
  c.words = *std::move(words);
  c.files.emplace_back(beside);
  return c;
}

}  // namespace llm
