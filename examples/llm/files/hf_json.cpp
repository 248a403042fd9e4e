#include "hf_json.hpp"

#include <lowbit/io/safetensors.hpp>

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace llm {
namespace {

using nlohmann::json;

lowbit::failure fail(lowbit::errc kind, std::string_view path, std::string_view what) {
  return {kind, std::string{path} + ": " + std::string{what}};
}

// A value that is not what its key asks for, and what it is instead.
struct wrong_value {
  std::string key, is = "of another kind than expected";
};

// Runs a reader; what nlohmann throws (a key missing, a value of another type) becomes a failure.
template <class F>
auto guarded(std::string_view path, F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const wrong_value& e) {
    return fail(lowbit::errc::malformed, path, "the value of '" + e.key + "' is " + e.is);
  } catch (const json::exception& e) {
    return fail(lowbit::errc::malformed, path, e.what());
  }
}

template <class T>
T value_or(const json& j, const char* key, T otherwise) {
  const auto found = j.find(key);
  if (found == j.end() || found->is_null()) return otherwise;
  // 1e300 is no integer; asked for one, the parser would convert it all the same.
  if (std::is_integral_v<T> && found->is_number_float()) throw wrong_value{key};
  try {
    return found->template get<T>();
  } catch (const json::exception&) {
    throw wrong_value{key};
  }
}

// Llama 3's stretching of long wavelengths (Llama 3.1, 2024), as divisors of each pair's frequency; nothing where its numbers make no sense.
std::vector<float> llama3_divisors(const json& s, double base, std::size_t head_dim) {
  const auto number = [&](const char* key) {
    const auto found = s.find(key);
    if (found == s.end() || !found->is_number()) throw wrong_value{key, found == s.end() ? "missing" : "not a number"};
    return found->get<double>();
  };
  const double factor = number("factor"), low = number("low_freq_factor"), high = number("high_freq_factor");
  const double original = number("original_max_position_embeddings");
  std::vector<float> divisors;
  if (!(factor > 0.0 && low > 0.0 && high > low && original > 0.0)) return divisors;
  for (std::size_t i = 0; i < head_dim / 2; ++i) {
    const double wavelength = 2.0 * 3.14159265358979323846 * std::pow(base, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double divisor = 1.0;
    if (wavelength > original / low) {
      divisor = factor;
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      divisor = 1.0 / ((1.0 - smooth) / factor + smooth);
    }
    divisors.push_back(static_cast<float>(divisor));
  }
  return divisors;
}

// A token named as a string or as {"content": "..."}: its id, or -1.
int named_token(const json& settings, const char* key, const std::unordered_map<std::string, int>& ids) {
  const auto found = settings.is_object() ? settings.find(key) : settings.end();
  if (!settings.is_object() || found == settings.end() || found->is_null()) return -1;
  const auto id = ids.find(found->is_object() ? found->at("content").get<std::string>() : found->get<std::string>());
  return id == ids.end() ? -1 : id->second;
}

bool is_type(const json& j, std::string_view type) { return j.is_object() && value_or<std::string>(j, "type", "") == type; }

// A template, or of several named ones the one for plain chats.
std::string chat_template_of(const json& settings) {
  if (!settings.is_object()) return "";
  const json templates = value_or(settings, "chat_template", json());
  if (templates.is_array())
    for (const json& named : templates)
      if (named.is_object() && value_or<std::string>(named, "name", "") == "default") return value_or<std::string>(named, "template", "");
  return templates.is_array() ? "" : value_or<std::string>(settings, "chat_template", "");
}

// The steps of a normalizer or pre_tokenizer, a lone one as a list of one.
std::vector<json> steps_of(const json& j, const char* list) {
  if (j.is_null()) return {};
  if (is_type(j, "Sequence")) return j.at(list).get<std::vector<json>>();
  return {j};
}

lowbit::result<pretokeniser> read_pretokeniser(std::string_view path, const json& tokeniser) {
  const auto steps = steps_of(tokeniser.value("pre_tokenizer", json{}), "pretokenizers");
  const auto plain = [](const json& s) {
    return is_type(s, "ByteLevel") && !value_or(s, "add_prefix_space", true) && value_or(s, "use_regex", true);
  };
  if (steps.size() == 1 && plain(steps[0])) return pretokeniser::gpt2;
  if (steps.size() == 2 && is_type(steps[0], "Digits") && value_or(steps[0], "individual_digits", false) && plain(steps[1]))
    return pretokeniser::smollm;
  return fail(lowbit::errc::unsupported, path, "only the pre-tokenizers of GPT-2 and SmolLM are supported");
}

}  // namespace

lowbit::result<json> parse_json(std::string_view path, std::string_view text) {
  auto j = lowbit::detail::parse_json<json>(text, std::string{path}, 64);
  if (j && !j->is_object()) return fail(lowbit::errc::malformed, path, "is not a JSON object");
  return j;
}

lowbit::result<model_config> read_hf_config(std::string_view path, const json& j) {
  return guarded(path, [&]() -> lowbit::result<model_config> {
    if (const auto type = value_or<std::string>(j, "model_type", ""); type != "llama")
      return fail(lowbit::errc::unsupported, path, "the model is of type \"" + type + "\", not \"llama\"");
    if (value_or(j, "attention_bias", false) || value_or(j, "mlp_bias", false))
      return fail(lowbit::errc::unsupported, path, "biases are not supported");
    if (value_or<std::string>(j, "hidden_act", "silu") != "silu") return fail(lowbit::errc::unsupported, path, "only silu is supported");
    const auto extent = [&](const char* key, std::size_t otherwise) {
      if (const auto found = j.find(key); found != j.end() && found->is_number_integer() && *found < 0) throw wrong_value{key, found->dump()};
      return value_or(j, key, otherwise);
    };
    model_config c;
    c.vocabulary = extent("vocab_size", 0);
    c.hidden = extent("hidden_size", 0);
    c.intermediate = extent("intermediate_size", 0);
    c.layers = extent("num_hidden_layers", 0);
    c.heads = extent("num_attention_heads", 0);
    c.kv_heads = extent("num_key_value_heads", c.heads);
    c.head_dim = extent("head_dim", c.heads == 0 ? 0 : c.hidden / c.heads);
    c.context = extent("max_position_embeddings", 2048);
    c.norm_epsilon = value_or(j, "rms_norm_eps", 1e-6f);
    c.rope = rope_order::halves;
    const json rope = value_or(j, "rope_parameters", value_or(j, "rope_scaling", json::object()));  // the newer name has the base too
    if (!rope.is_object()) return fail(lowbit::errc::malformed, path, "the RoPE scaling is not an object");
    c.rope_base = value_or(rope, "rope_theta", value_or(j, "rope_theta", 10000.0f));
    if (lowbit::status valid = check(c); !valid) return fail(valid.error().kind, path, valid.error().message);
    const auto scaling = value_or(rope, "rope_type", value_or<std::string>(rope, "type", "default"));
    if (scaling == "llama3") {
      c.rope_divisors = llama3_divisors(rope, static_cast<double>(c.rope_base), c.head_dim);
      if (c.rope_divisors.empty()) return fail(lowbit::errc::bad_value, path, "the numbers of RoPE scaling \"llama3\" make no sense");
    } else if (scaling != "default") {
      return fail(lowbit::errc::unsupported, path, "RoPE scaling \"" + scaling + "\" is not supported");
    }
    return c;
  });
}

lowbit::result<bool> is_tied(std::string_view path, const json& j) {
  return guarded(path, [&]() -> lowbit::result<bool> { return value_or(j, "tie_word_embeddings", false); });
}

lowbit::result<vocabulary> read_hf_tokeniser(std::string_view path, const json& j, const json& settings, const json& config) {
  return guarded(path, [&]() -> lowbit::result<vocabulary> {
    const json& model = j.at("model");
    if (value_or<std::string>(model, "type", "BPE") != "BPE") return fail(lowbit::errc::unsupported, path, "only BPE tokenizers are supported");
    vocabulary v;
    v.kind = value_or(model, "byte_fallback", false) ? vocabulary_kind::sentencepiece : vocabulary_kind::byte_level;

    const json& words = model.at("vocab");
    if (!words.is_object()) return fail(lowbit::errc::malformed, path, "the vocabulary is not an object");
    const json added = value_or(j, "added_tokens", json::array());
    const std::size_t limit = words.size() + added.size();  // ids are dense; so a huge one costs no memory
    std::unordered_map<std::string, int> ids;
    const auto put = [&](const std::string& piece, std::int64_t id, piece_kind kind) {
      if (id < 0 || static_cast<std::size_t>(id) >= limit) return false;
      const auto i = static_cast<std::size_t>(id);
      if (i >= v.pieces.size()) v.pieces.resize(i + 1), v.kinds.resize(i + 1, piece_kind::unused);
      v.pieces[i] = piece;
      v.kinds[i] = kind;
      ids[piece] = static_cast<int>(id);
      return true;
    };
    const bool sentence = v.kind == vocabulary_kind::sentencepiece;
    for (const auto& [piece, id] : words.items()) {
      const bool byte = sentence && piece.size() == 6 && piece.starts_with("<0x") && piece.ends_with('>');
      if (!id.is_number_integer() || !put(piece, id.get<std::int64_t>(), byte ? piece_kind::byte : piece_kind::normal))
        return fail(lowbit::errc::malformed, path, "token id " + id.dump() + " is out of range");
    }
    for (const json& token : added) {
      const json& id = token.at("id");
      const piece_kind kind = value_or(token, "special", false) ? piece_kind::control : piece_kind::user_defined;
      if (!id.is_number_integer() || !put(token.at("content"), id.get<std::int64_t>(), kind))
        return fail(lowbit::errc::malformed, path, "token id " + id.dump() + " is out of range");
    }
    for (const json& merge : model.at("merges"))
      v.merges.push_back(merge.is_string() ? merge.get<std::string>() : merge.at(0).get<std::string>() + ' ' + merge.at(1).get<std::string>());

    if (sentence) {  // a piece's score is the place of the first merge that makes it
      v.scores.assign(v.pieces.size(), 0.0f);
      for (std::size_t rank = v.merges.size(); rank-- > 0;) {
        std::string whole = v.merges[rank];
        if (const auto space = whole.find(' '); space != whole.npos) whole.erase(space, 1);
        if (const auto id = ids.find(whole); id != ids.end()) v.scores[static_cast<std::size_t>(id->second)] = -static_cast<float>(rank);
      }
      v.merges.clear();
      for (const json& step : steps_of(j.value("normalizer", json{}), "normalizers")) v.add_space_prefix |= is_type(step, "Prepend");
      for (const json& step : steps_of(j.value("pre_tokenizer", json{}), "pretokenizers"))
        v.add_space_prefix |= is_type(step, "Metaspace") && value_or<std::string>(step, "prepend_scheme", "always") != "never";
    } else {
      auto cut = read_pretokeniser(path, j);
      if (!cut) return std::move(cut).error();
      v.words = *cut;
    }
    const auto special = [&](const char* name, const char* id_name) {
      if (const int id = named_token(settings, name, ids); id >= 0) return id;
      const auto id = config.find(id_name);
      return id == config.end() || !id->is_number_integer() ? -1 : static_cast<int>(std::clamp<std::int64_t>(*id, -1, 1 << 30));
    };
    v.bos = special("bos_token", "bos_token_id");
    v.eos = special("eos_token", "eos_token_id");
    v.unknown = named_token(model, "unk_token", ids);
    v.add_bos = settings.is_object() && value_or(settings, "add_bos_token", sentence);
    v.chat_template = chat_template_of(settings);
    return v;
  });
}

json hf_config(const model_config& c, const vocabulary& v, bool tied) {
  json j{{"architectures", {"LlamaForCausalLM"}}, {"model_type", "llama"}, {"hidden_act", "silu"},
         {"vocab_size", c.vocabulary}, {"hidden_size", c.hidden}, {"intermediate_size", c.intermediate},
         {"num_hidden_layers", c.layers}, {"num_attention_heads", c.heads}, {"num_key_value_heads", c.kv_heads},
         {"head_dim", c.head_dim}, {"max_position_embeddings", c.context}, {"rms_norm_eps", c.norm_epsilon},
         {"rope_theta", c.rope_base}, {"tie_word_embeddings", tied}, {"torch_dtype", "float32"}};
  if (v.bos >= 0) j["bos_token_id"] = v.bos;
  if (v.eos >= 0) j["eos_token_id"] = v.eos;
  return j;
}

json hf_tokeniser(const vocabulary& v) {
  const bool sentence = v.kind == vocabulary_kind::sentencepiece;
  json words = json::object(), added = json::array(), merges = v.merges;
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < v.pieces.size(); ++i) {
    words[v.pieces[i]] = i;
    ids.try_emplace(v.pieces[i], i);
    const bool special = v.kinds[i] == piece_kind::control || v.kinds[i] == piece_kind::unknown;
    if (special || v.kinds[i] == piece_kind::user_defined)
      added.push_back({{"id", i}, {"content", v.pieces[i]}, {"special", special}, {"single_word", false}, {"lstrip", false},
                       {"rstrip", false}, {"normalized", false}});
  }
  json normaliser, cut, decoder{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  if (sentence) {  // every pair that makes a piece is a merge, the best piece first
    struct split { std::size_t whole; std::string text; };
    std::vector<split> splits;
    for (std::size_t i = 0; i < v.pieces.size(); ++i) {
      const std::string_view piece = v.pieces[i];
      for (std::size_t at = 1; at < piece.size(); ++at)
        if (v.kinds[i] == piece_kind::normal && ids.contains(piece.substr(0, at)) && ids.contains(piece.substr(at)))
          splits.push_back({i, std::string{piece.substr(0, at)} + ' ' + std::string{piece.substr(at)}});
    }
    std::stable_sort(splits.begin(), splits.end(), [&](const split& a, const split& b) { return v.scores[a.whole] > v.scores[b.whole]; });
    merges = json::array();
    for (const split& s : splits) merges.push_back(s.text);
    const std::string block = "\xe2\x96\x81";
    json steps = json::array();
    if (v.add_space_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", block}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", block}});
    normaliser = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
    json undo{{{"type", "Replace"}, {"pattern", {{"String", block}}}, {"content", " "}}, {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
    if (v.add_space_prefix) undo.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    decoder = {{"type", "Sequence"}, {"decoders", std::move(undo)}};
  } else {
    cut = decoder;
    if (v.words == pretokeniser::smollm)
      cut = {{"type", "Sequence"}, {"pretokenizers", json::array({json{{"type", "Digits"}, {"individual_digits", true}}, decoder})}};
  }
  const json unknown = v.unknown >= 0 ? json(v.pieces[static_cast<std::size_t>(v.unknown)]) : json();
  return {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", std::move(added)},
          {"normalizer", std::move(normaliser)}, {"pre_tokenizer", std::move(cut)}, {"post_processor", nullptr}, {"decoder", std::move(decoder)},
          {"model", {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", unknown}, {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr}, {"fuse_unk", sentence}, {"byte_fallback", sentence}, {"vocab", std::move(words)},
                     {"merges", std::move(merges)}}}};
}

json hf_tokeniser_settings(const vocabulary& v) {
  json j{{"tokenizer_class", "PreTrainedTokenizerFast"}, {"add_bos_token", v.add_bos}, {"add_eos_token", false}};
  if (v.bos >= 0) j["bos_token"] = v.pieces[static_cast<std::size_t>(v.bos)];
  if (v.eos >= 0) j["eos_token"] = v.pieces[static_cast<std::size_t>(v.eos)];
  if (!v.chat_template.empty()) j["chat_template"] = v.chat_template;
  return j;
}

}  // namespace llm
