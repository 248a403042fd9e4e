// GGUF files of architecture "llama". Metadata keys: formats of ggml's docs/gguf.md and llama.cpp's llama-arch.cpp.
#include "load.hpp"
#include "names.hpp"

#include <lowbit/io/gguf_model.hpp>

#include <cstring>
#include <unordered_map>

namespace llm {
namespace {

using lowbit::errc;
using lowbit::failure;

lowbit::result<model_config> read_config(const lowbit::gguf_metadata& m) {
  const auto architecture = m.get<std::string>("general.architecture");
  if (!architecture) return architecture.error();
  if (*architecture != "llama") return failure{errc::unsupported, "the architecture is \"" + *architecture + "\", not \"llama\""};
  model_config c;
  std::optional<failure> problem;
  const auto need = [&](const char* key, std::size_t& out) {
    const auto v = m.get<std::uint32_t>(key);
    if (v) out = *v;
    else if (!problem) problem = v.error();
  };
  need("llama.block_count", c.layers);
  need("llama.context_length", c.context);
  need("llama.embedding_length", c.hidden);
  need("llama.feed_forward_length", c.intermediate);
  need("llama.attention.head_count", c.heads);
  const auto epsilon = m.get<float>("llama.attention.layer_norm_rms_epsilon");
  if (!epsilon && !problem) problem = epsilon.error();
  if (problem) return *problem;
  c.norm_epsilon = *epsilon;
  c.kv_heads = m.find<std::uint32_t>("llama.attention.head_count_kv").value_or(static_cast<std::uint32_t>(c.heads));
  c.head_dim = m.find<std::uint32_t>("llama.attention.key_length").value_or(static_cast<std::uint32_t>(c.heads == 0 ? 0 : c.hidden / c.heads));
  c.rope_base = m.find<float>("llama.rope.freq_base").value_or(10000.0f);
  c.rope = rope_order::pairs;
  if (const auto turned = m.find<std::uint32_t>("llama.rope.dimension_count"); turned && *turned != c.head_dim)
    return failure{errc::unsupported, "RoPE on a part of each head is not supported"};
  if (const auto size = m.find<std::uint32_t>("llama.attention.value_length"); size && *size != c.head_dim)
    return failure{errc::unsupported, "values of another size than keys are not supported"};
  if (const auto scaling = m.find<std::string>("llama.rope.scaling.type").value_or("none"); scaling != "none")
    return failure{errc::unsupported, "RoPE scaling \"" + scaling + "\" is not supported"};
  return c;
}

lowbit::result<vocabulary> read_vocabulary(const lowbit::gguf_metadata& m) {
  const auto model = m.get<std::string>("tokenizer.ggml.model");
  if (!model) return model.error();
  vocabulary v;
  if (*model == "gpt2") {
    v.kind = vocabulary_kind::byte_level;
    const auto pre = m.find<std::string>("tokenizer.ggml.pre").value_or("default");
    if (pre == "gpt-2") v.words = pretokeniser::gpt2;
    else if (pre == "smollm") v.words = pretokeniser::smollm;
    else return failure{errc::unsupported, "the pre-tokenizer \"" + pre + "\" is not supported (gpt-2 and smollm are)"};
  } else if (*model == "llama") {
    v.kind = vocabulary_kind::sentencepiece;
  } else {
    return failure{errc::unsupported, "the tokenizer model \"" + *model + "\" is not supported (gpt2 and llama are)"};
  }
  const bool sentence = v.kind == vocabulary_kind::sentencepiece;
  const auto* const pieces = m.find_array<std::string>("tokenizer.ggml.tokens");
  if (pieces == nullptr) return failure{errc::not_found, "metadata key 'tokenizer.ggml.tokens' is missing or no list of strings"};
  v.pieces = *pieces;
  if (const auto* kinds = m.find_array<std::int32_t>("tokenizer.ggml.token_type"))
    for (const std::int32_t k : *kinds) {
      if (k < 0 || k > 6) return failure{errc::bad_value, "token type " + std::to_string(k) + " is unknown"};
      v.kinds.push_back(k == 0 ? piece_kind::normal : static_cast<piece_kind>(k));
    }
  if (const auto* scores = m.find_array<float>("tokenizer.ggml.scores"); scores != nullptr && sentence) v.scores = *scores;
  if (const auto* merges = m.find_array<std::string>("tokenizer.ggml.merges"); merges != nullptr && !sentence) v.merges = *merges;
  const auto id = [&](const char* key) {
    const auto value = m.find<std::uint32_t>(key);
    return value && *value < v.pieces.size() ? static_cast<int>(*value) : -1;
  };
  v.bos = id("tokenizer.ggml.bos_token_id");
  v.eos = id("tokenizer.ggml.eos_token_id");
  v.unknown = id("tokenizer.ggml.unknown_token_id");
  v.add_bos = m.find<bool>("tokenizer.ggml.add_bos_token").value_or(sentence) && v.bos >= 0;
  v.add_space_prefix = sentence && m.find<bool>("tokenizer.ggml.add_space_prefix").value_or(true);
  return v;
}

/// What all values of a matrix are multiplied by, from the tensor that says so.
lowbit::result<double> read_factor(const lowbit::gguf_model& model, const lowbit::gguf_model::tensor& t) {
  if (t.type != 0 || t.elements() != 1) return failure{errc::shape, "tensor " + t.name + " is not one float"};
  const auto bytes = model.map(t);
  if (!bytes) return bytes.error();
  float value = 0.0f;
  std::memcpy(&value, bytes->bytes().data(), sizeof value);
  if (!(value > 0.0f && value < 3e38f)) return failure{errc::bad_value, "tensor " + t.name + " is not a positive number"};
  return static_cast<double>(value);
}

}  // namespace

lowbit::result<checkpoint> open_gguf(const std::string& path) {
  auto opened = lowbit::gguf_model::open(path);
  if (!opened) return std::move(opened).error();
  const auto model = std::make_shared<const lowbit::gguf_model>(*std::move(opened));
  const auto in_file = [&](const failure& f) { return failure{f.kind, path + ": " + f.message}; };

  checkpoint c;
  c.kind = "GGUF";
  c.name = model->metadata().find<std::string>("general.name").value_or("");
  auto config = read_config(model->metadata());
  if (!config) return in_file(config.error());
  c.config = *std::move(config);
  auto words = read_vocabulary(model->metadata());
  if (!words) return in_file(words.error());
  c.words = *std::move(words);

  std::unordered_map<std::string_view, const lowbit::gguf_model::tensor*> by_name;
  for (const auto& t : model->tensors()) by_name.emplace(t.name, &t);
  for (const lowbit::gguf_model::tensor& t : model->tensors()) {
    const auto format = lowbit::find_gguf_format(static_cast<int>(t.type));
    if (!format)
      return in_file({errc::unsupported, "tensor " + t.name + " is of type " + std::string{lowbit::find_gguf_type(t.type)->name} + ", which is not supported"});
    if (t.name.ends_with(".scale") && by_name.contains(t.name.substr(0, t.name.size() - 6) + ".weight")) continue;
    if (t.dims.empty() || t.dims.size() > 2) return in_file({errc::shape, "tensor " + t.name + " is neither a vector nor a matrix"});
    const bool is_vector = t.dims.size() == 1;
    const lowbit::format_spec& spec = lowbit::spec_of_id(*format);
    const std::size_t rows = is_vector ? 1 : static_cast<std::size_t>(t.dims[1]), cols = static_cast<std::size_t>(t.dims[0]);
    double factor = 1.0;
    if (const auto at = by_name.find(gguf_factor_name(t.name)); at != by_name.end() && !is_vector && at->second != &t) {
      const auto stored = read_factor(*model, *at->second);
      if (!stored) return in_file(stored.error());
      factor = *stored;
    }
    tensor out = mapped_tensor(t.name, is_vector, rows, cols, spec, [model, &t](std::size_t first, std::size_t bytes) { return model->map(t, first, bytes); }, factor);
    if (t.name == "rope_freqs.weight") {
      if (!is_vector || cols != c.config.head_dim / 2 || !spec.is_float()) return in_file({errc::shape, "rope_freqs.weight has another shape than RoPE"});
      const auto divisors = out.read();
      if (!divisors) return in_file(divisors.error());
      c.config.rope_divisors.resize(cols);
      lowbit::decode(divisors->view(), {c.config.rope_divisors.data(), 1, cols});
      continue;
    }
    if (t.name == "token_embd.weight") c.config.vocabulary = rows;
    c.tensors.push_back(std::move(out));
  }
  if (lowbit::status valid = check(c.config); !valid) return in_file(valid.error());
  c.metadata = {model, &model->metadata()};  // the model's own, which it keeps alive
  return c;
}

}  // namespace llm
