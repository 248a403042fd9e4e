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

/// Takes values out of metadata, as the types that are wanted: integers of any width where they fit, integers for floats too. A key that may
/// be missing may not hold something else. What was wrong first, failed() says.
class value_reader {
 public:
  explicit value_reader(const lowbit::gguf_metadata& m) : metadata_(m) {}

  template <class T>
  T need(std::string_view key) {
    if constexpr (std::is_same_v<T, float>)
      if (const auto whole = metadata_.find<std::int64_t>(key)) return static_cast<float>(*whole);
    auto value = metadata_.get<T>(key);
    if (value) return *std::move(value);
    fail(std::move(value).error());
    return {};
  }
  template <class T>
  T take(std::string_view key, T otherwise) {
    return has(key) ? need<T>(key) : otherwise;
  }
  /// Null where the key is missing.
  template <class T>
  const std::vector<T>* take_array(std::string_view key) {
    const auto* const values = metadata_.find_array<T>(key);
    if (values == nullptr && has(key)) fail({errc::bad_value, "metadata key '" + std::string(key) + "' is no list of the type that it has to be"});
    return values;
  }
  [[nodiscard]] bool has(std::string_view key) const { return metadata_.find(key) != nullptr; }
  void fail(failure f) {
    if (!failed_) failed_ = std::move(f);
  }
  [[nodiscard]] const std::optional<failure>& failed() const noexcept { return failed_; }

 private:
  const lowbit::gguf_metadata& metadata_;
  std::optional<failure> failed_;
};

/// Fails where positions are scaled. As in llama.cpp the scaling is linear unless its type says something else, its factor may be under an
/// older name, and one of 0 is none.
void refuse_scaling(value_reader& values) {
  const auto scaling = values.take<std::string>("llama.rope.scaling.type", "linear");
  if (scaling == "none") return;
  if (scaling != "linear") return values.fail({errc::unsupported, "RoPE scaling \"" + scaling + "\" is not supported"});
  const char* const key = values.has("llama.rope.scaling.factor") ? "llama.rope.scaling.factor" : "llama.rope.scale_linear";
  if (const float factor = values.take(key, 1.0f); factor != 0.0f && factor != 1.0f)
    values.fail({errc::unsupported, "linear RoPE scaling is not supported: metadata key '" + std::string(key) + "' is " + std::to_string(factor)});
}

lowbit::result<model_config> read_config(const lowbit::gguf_metadata& m) {
  value_reader values{m};
  const auto architecture = values.need<std::string>("general.architecture");
  if (values.failed()) return *values.failed();
  if (architecture != "llama") return failure{errc::unsupported, "the architecture is \"" + architecture + "\", not \"llama\""};
  model_config c;
  c.layers = values.need<std::size_t>("llama.block_count");
  c.context = values.need<std::size_t>("llama.context_length");
  c.hidden = values.need<std::size_t>("llama.embedding_length");
  c.intermediate = values.need<std::size_t>("llama.feed_forward_length");
  c.heads = values.need<std::size_t>("llama.attention.head_count");
  c.norm_epsilon = values.need<float>("llama.attention.layer_norm_rms_epsilon");
  c.kv_heads = values.take("llama.attention.head_count_kv", c.heads);
  c.head_dim = values.take("llama.attention.key_length", c.heads == 0 ? 0 : c.hidden / c.heads);
  c.rope_base = values.take("llama.rope.freq_base", 10000.0f);
  c.rope = rope_order::pairs;
  if (values.take("llama.rope.dimension_count", c.head_dim) != c.head_dim)
    values.fail({errc::unsupported, "RoPE on a part of each head is not supported"});
  if (values.take("llama.attention.value_length", c.head_dim) != c.head_dim)
    values.fail({errc::unsupported, "values of another size than keys are not supported"});
  refuse_scaling(values);
  if (values.failed()) return *values.failed();
  return c;
}

lowbit::result<vocabulary> read_vocabulary(const lowbit::gguf_metadata& m) {
  value_reader values{m};
  const auto model = values.need<std::string>("tokenizer.ggml.model");
  if (values.failed()) return *values.failed();
  vocabulary v;
  if (model == "gpt2") {
    v.kind = vocabulary_kind::byte_level;
    const auto pre = values.take<std::string>("tokenizer.ggml.pre", "default");
    if (pre == "gpt-2") v.words = pretokeniser::gpt2;
    else if (pre == "smollm") v.words = pretokeniser::smollm;
    else values.fail({errc::unsupported, "the pre-tokenizer \"" + pre + "\" is not supported (gpt-2 and smollm are)"});
  } else if (model == "llama") {
    v.kind = vocabulary_kind::sentencepiece;
  } else {
    return failure{errc::unsupported, "the tokenizer model \"" + model + "\" is not supported (gpt2 and llama are)"};
  }
  const bool sentence = v.kind == vocabulary_kind::sentencepiece;
  if (const auto* const pieces = values.take_array<std::string>("tokenizer.ggml.tokens")) v.pieces = *pieces;
  else values.fail({errc::not_found, "metadata key 'tokenizer.ggml.tokens' is missing"});
  if (const auto* kinds = values.take_array<std::int32_t>("tokenizer.ggml.token_type"))
    for (const std::int32_t k : *kinds) {
      if (k < 0 || k > 6) return failure{errc::bad_value, "token type " + std::to_string(k) + " is unknown"};
      v.kinds.push_back(k == 0 ? piece_kind::normal : static_cast<piece_kind>(k));
    }
  if (sentence) {
    if (const auto* scores = values.take_array<float>("tokenizer.ggml.scores")) v.scores = *scores;
  } else if (const auto* merges = values.take_array<std::string>("tokenizer.ggml.merges")) {
    v.merges = *merges;
  }
  const auto id = [&](const char* key) {
    if (!values.has(key)) return -1;
    const auto value = values.need<std::uint32_t>(key);
    if (value >= v.pieces.size())
      values.fail({errc::bad_value, "metadata key '" + std::string(key) + "' is " + std::to_string(value) + ", the vocabulary has " +
                                        std::to_string(v.pieces.size()) + " tokens"});
    return static_cast<int>(value);
  };
  v.bos = id("tokenizer.ggml.bos_token_id");
  v.eos = id("tokenizer.ggml.eos_token_id");
  v.unknown = id("tokenizer.ggml.unknown_token_id");
  v.add_bos = values.take("tokenizer.ggml.add_bos_token", sentence) && v.bos >= 0;
  v.add_space_prefix = sentence && values.take("tokenizer.ggml.add_space_prefix", true);
  v.chat_template = values.take<std::string>("tokenizer.chat_template", "");
  if (values.failed()) return *values.failed();
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
  value_reader names{model->metadata()};
  c.name = names.take<std::string>("general.name", "");
  if (names.failed()) return in_file(*names.failed());
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
