// GGUF files for llama.cpp: metadata made from the configuration and the vocabulary, or taken over from a GGUF source.
#include "names.hpp"
#include "save_formats.hpp"

#include <lowbit/io/gguf_writer.hpp>

#include <algorithm>
#include <span>

namespace llm {
namespace {

// llama.cpp's general.file_type, which says what most tensors are (llama.h, enum llama_ftype).
std::uint32_t file_type(std::string_view format) {
  struct entry { std::string_view name; std::uint32_t type; };
  constexpr entry types[] = {{"f32", 0}, {"f16", 1}, {"q4_0", 2}, {"q4_1", 3}, {"q8_0", 7}, {"q5_0", 8}, {"q5_1", 9}, {"q2_k", 10}, {"q3_k", 11},
                             {"q4_k", 14}, {"q5_k", 16}, {"q6_k", 18}, {"iq4_nl", 25}, {"iq4_xs", 30}, {"bf16", 32}, {"tq1_0", 36}, {"tq2_0", 37}, {"mxfp4", 38}};
  for (const entry& e : types)
    if (e.name == format) return e.type;
  return 1024;  // LLAMA_FTYPE_GUESSED
}

lowbit::gguf_metadata metadata_of(const checkpoint& model) {
  if (model.metadata) return *model.metadata;
  const model_config& c = model.config;
  const vocabulary& v = model.words;
  lowbit::gguf_metadata m;
  const auto number = [&](const char* key, std::size_t value) { m.set(key, static_cast<std::uint32_t>(value)); };
  m.set("general.architecture", std::string{"llama"});
  m.set("general.name", model.name);
  number("llama.block_count", c.layers);
  number("llama.context_length", c.context);
  number("llama.embedding_length", c.hidden);
  number("llama.feed_forward_length", c.intermediate);
  number("llama.attention.head_count", c.heads);
  number("llama.attention.head_count_kv", c.kv_heads);
  number("llama.attention.key_length", c.head_dim);
  number("llama.attention.value_length", c.head_dim);
  number("llama.rope.dimension_count", c.head_dim);
  number("llama.vocab_size", c.vocabulary);
  m.set("llama.rope.freq_base", c.rope_base);
  m.set("llama.attention.layer_norm_rms_epsilon", c.norm_epsilon);

  const bool sentence = v.kind == vocabulary_kind::sentencepiece;
  // A model may have more rows than its tokenizer has tokens; GGUF wants as many.
  std::vector<std::string> pieces = v.pieces;
  std::vector<std::int32_t> kinds;
  for (const piece_kind k : v.kinds) kinds.push_back(static_cast<std::int32_t>(k));
  std::vector<float> scores = v.scores;
  while (pieces.size() < c.vocabulary) {
    pieces.push_back(std::string{"[PAD"}.append(std::to_string(pieces.size())).append(1, ']'));
    kinds.push_back(static_cast<std::int32_t>(piece_kind::unused));
  }
  scores.resize(pieces.size(), 0.0f);
  m.set("tokenizer.ggml.model", std::string{sentence ? "llama" : "gpt2"});
  m.set("tokenizer.ggml.pre", std::string{sentence ? "default" : v.words == pretokeniser::smollm ? "smollm" : "gpt-2"});
  m.set("tokenizer.ggml.tokens", std::move(pieces));
  m.set("tokenizer.ggml.token_type", std::move(kinds));
  if (sentence) m.set("tokenizer.ggml.scores", std::move(scores));
  else m.set("tokenizer.ggml.merges", v.merges);
  const auto token = [&](const char* key, int id) {
    if (id >= 0) number(key, static_cast<std::size_t>(id));
  };
  token("tokenizer.ggml.bos_token_id", v.bos);
  token("tokenizer.ggml.eos_token_id", v.eos);
  token("tokenizer.ggml.unknown_token_id", v.unknown);
  m.set("tokenizer.ggml.add_bos_token", v.add_bos);
  m.set("tokenizer.ggml.add_space_prefix", v.add_space_prefix);
  if (!v.chat_template.empty()) m.set("tokenizer.chat_template", v.chat_template);
  return m;
}

/// Every tensor's bytes, in the order of their declarations, and the files made to appear. Returns the bytes written.
template <class Writer>
lowbit::result<std::size_t> write_tensors(lowbit::result<Writer> writer, const checkpoint& model, const tensor_forms& forms,
                                          const weight_source& source, const save_progress& progress) {
  if (!writer) return std::move(writer).error();
  const auto append_floats = [&](std::span<const float> values) {
    const auto bytes = std::as_bytes(values);
    return writer->append({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
  };
  if (const std::vector<float>& divisors = model.config.rope_divisors; !divisors.empty())
    if (auto s = append_floats(divisors); !s) return std::move(s).error();
  std::size_t done = 0, total = 0;
  for (const tensor& t : model.tensors) total += t.bytes;
  for (const tensor& t : model.tensors) {
    const lowbit::status written = write_runs(t, source, [&](const tensor& run, const lowbit::packed_view& w) {
      done += run.bytes;
      if (progress) progress(done, total);
      return writer->append({w.data, w.size_bytes()});
    });
    if (!written) return written.error();
    if (const double factor = forms(t).factor; factor != 1.0) {
      const auto stored = static_cast<float>(factor);
      if (auto s = append_floats({&stored, 1}); !s) return std::move(s).error();
    }
  }
  const std::size_t bytes = writer->written();
  if (auto s = writer->commit(); !s) return std::move(s).error();
  return bytes;
}

}  // namespace

lowbit::result<std::size_t> save_gguf(const std::string& path, const checkpoint& model, const tensor_forms& forms, std::string_view format,
                                      const weight_source& source, const save_progress& progress, std::size_t part_bytes) {
  lowbit::gguf_metadata metadata = metadata_of(model);
  const bool as_before = std::all_of(model.tensors.begin(), model.tensors.end(), [&](const tensor& t) { return forms(t).spec == t.spec; });
  if (!as_before || metadata.find("general.file_type") == nullptr) metadata.set("general.file_type", file_type(format));  // a mix has a type of its own
  metadata.set("general.quantization_version", std::uint32_t{2});
  for (const auto& note : model.notes.entries()) metadata.set_value(note.key, note.value);
  std::vector<lowbit::gguf_tensor> shapes;
  const auto declare = [&](const std::string& name, const lowbit::packed_view& form, bool is_vector) {
    lowbit::gguf_tensor t{name, static_cast<std::uint32_t>(form.spec->gguf), {form.cols}, {}};
    if (!is_vector) t.dims.push_back(form.rows);
    shapes.push_back(std::move(t));
  };
  const std::vector<float>& divisors = model.config.rope_divisors;
  if (!divisors.empty()) declare("rope_freqs.weight", {&lowbit::spec_of<lowbit::f32>, 1, divisors.size()}, true);
  for (const tensor& t : model.tensors) {
    const lowbit::packed_view form = forms(t);
    declare(t.name, form, t.is_vector);
    if (form.factor != 1.0) declare(gguf_factor_name(t.name), {&lowbit::spec_of<lowbit::f32>, 1, 1}, true);
  }
  if (part_bytes == 0) {
    if (lowbit::status possible = check_output(path, model); !possible) return std::move(possible).error();
    return write_tensors(lowbit::gguf_writer::create(path, metadata, shapes), model, forms, source, progress);
  }
  const std::string prefix = path.ends_with(".gguf") ? path.substr(0, path.size() - 5) : path;
  auto writer = lowbit::gguf_split_writer::create(prefix, metadata, shapes, part_bytes);
  for (std::size_t i = 0; writer && i < writer->parts(); ++i)  // nothing has appeared yet
    if (lowbit::status possible = check_output(lowbit::gguf_split_name(prefix, i, writer->parts()), model); !possible) return std::move(possible).error();
  return write_tensors(std::move(writer), model, forms, source, progress);
}

}  // namespace llm
