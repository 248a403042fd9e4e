// Adapter files: bytes laid out by hand from the formats' descriptions, round trips, and one bad file for each thing that can be wrong.
#include "files.hpp"

#include <lowbit/io/gguf_adapter.hpp>
#include <lowbit/io/peft_adapter.hpp>

#include <doctest/doctest.h>

#include <csignal>
#include <functional>
#include <limits>

#include <sys/resource.h>

using namespace lowbit;
using namespace lowbit::test;

namespace {

std::string floats(std::initializer_list<float> values) {
  std::string s;
  for (const float v : values) put(s, v);
  return s;
}

const std::string q_proj = "base_model.model.model.layers.0.self_attn.q_proj";

/// What PEFT writes, any part of which a test can spoil: A [2, 3] and B [4, 2] of one module.
struct peft_recipe {
  std::string config = R"({"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["q_proj"],"bias":"none","fan_in_fan_out":false,"modules_to_save":null,"init_lora_weights":"gaussian"})";
  std::string a_name = q_proj + ".lora_A.weight", b_name = q_proj + ".lora_B.weight", a_shape = "[2,3]", b_shape = "[4,2]", dtype = "F32";
  std::string a = floats({1, 2, 3, 4, 5, 6}), b = floats({1, -1, 2, -2, 3, -3, 4, -4}), extra;

  [[nodiscard]] result<adapter> read() const {
    const std::string first = std::to_string(a.size()), last = std::to_string(a.size() + b.size());
    std::string file;
    std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
    if (!a_name.empty()) header += ",\"" + a_name + R"(":{"dtype":")" + dtype + R"(","shape":)" + a_shape + R"(,"data_offsets":[0,)" + first + "]}";
    if (!b_name.empty()) header += ",\"" + b_name + R"(":{"dtype":")" + dtype + R"(","shape":)" + b_shape + R"(,"data_offsets":[)" + first + "," + last + "]}";
    put_string(file, header + extra + "}");
    file += a + b;
    const scratch_folder folder;
    write_all(folder / "adapter_config.json", config);
    write_all(folder / "adapter_model.safetensors", file);
    return read_peft_adapter(folder / "");
  }
};

std::string key_text(const std::string& name, const std::string& value) {
  std::string k;
  put_string(k, name);
  put<std::int32_t>(k, 8);
  put_string(k, value);
  return k;
}
std::string key_float(const std::string& name, float value) {
  std::string k;
  put_string(k, name);
  put<std::int32_t>(k, 6);
  put(k, value);
  return k;
}

/// What convert_lora_to_gguf.py writes of the same factors.
struct gguf_recipe {
  std::vector<std::string> keys{key_text("general.type", "adapter"), key_text("general.architecture", "llama"), key_text("adapter.type", "lora"),
                                key_float("adapter.lora.alpha", 8)};
  struct info {
    std::string name;
    std::vector<std::uint64_t> dims;
    std::uint32_t type;
    std::string data;
  };
  std::vector<info> tensors{{"blk.0.attn_q.weight.lora_a", {3, 2}, 0, floats({1, 2, 3, 4, 5, 6})},
                            {"blk.0.attn_q.weight.lora_b", {2, 4}, 0, floats({1, -1, 2, -2, 3, -3, 4, -4})}};

  [[nodiscard]] result<adapter> read() const {
    std::string f = "GGUF", data;
    put<std::uint32_t>(f, 3);
    put<std::uint64_t>(f, tensors.size());
    put<std::uint64_t>(f, keys.size());
    for (const auto& k : keys) f += k;
    for (const auto& t : tensors) {
      put_string(f, t.name);
      put(f, static_cast<std::uint32_t>(t.dims.size()));
      for (const auto d : t.dims) put(f, d);
      put(f, t.type);
      put<std::uint64_t>(f, data.size());
      data += t.data;
      data.resize(round_up(data.size(), 32));
    }
    f.resize(round_up(f.size(), 32));
    f += data;
    return read_gguf_adapter(span_of(f));
  }
};

void check_factors(const low_rank_factors& f, float scale) {
  CHECK(f.rows == 4);
  CHECK(f.cols == 3);
  CHECK(f.rank == 2);
  CHECK(f.a == std::vector<float>{1, 2, 3, 4, 5, 6});
  CHECK(f.b == std::vector<float>{1, -1, 2, -2, 3, -3, 4, -4});
  CHECK(f.scale == scale);
}

template <class Recipe>
void check_refused(const std::function<void(Recipe&)>& spoil, errc kind, const std::vector<std::string>& words) {
  Recipe r;
  spoil(r);
  const auto read = r.read();
  REQUIRE_MESSAGE(!read.ok(), words[0]);
  CAPTURE(read.error().message);
  CHECK(read.error().kind == kind);
  for (const auto& w : words) CHECK(read.error().message.find(w) != std::string::npos);
}

/// Two weights of other ranks and scales.
adapter two_weights(const std::string& first, const std::string& second) {
  adapter a;
  a.weights[first] = {4, 3, 2, {1, 2, 3, 4, 5, 6}, {1, -1, 2, -2, 3, -3, 4, -4}, 4.0f};
  a.weights[second] = {2, 4, 1, {0.1f, 0.2f, 0.3f, 0.4f}, {7, 8}, 0.7f};
  a.bases[second] = "q4_0 1234";
  return a;
}

void check_same_products(const adapter& a, const adapter& b) {
  REQUIRE(a.weights.size() == b.weights.size());
  CHECK(a.bases == b.bases);
  for (const auto& [name, f] : a.weights) {
    const low_rank_factors& g = b.weights.at(name);
    REQUIRE(f.rank == g.rank);
    CHECK(f.a == g.a);
    REQUIRE(f.b.size() == g.b.size());
    for (std::size_t i = 0; i < f.b.size(); ++i) CHECK(f.b[i] * f.scale == g.b[i] * g.scale);
  }
}

}  // namespace

TEST_CASE("what PEFT writes is read, in every float type, with its scales") {
  peft_recipe r;
  const auto plain = r.read();
  REQUIRE_MESSAGE(plain.ok(), plain.error().message);
  REQUIRE(plain->weights.size() == 1);
  check_factors(plain->weights.at("model.layers.0.self_attn.q_proj.weight"), 4.0f);
  const auto scale_with = [&](const std::string& config) {
    peft_recipe s;
    s.config = config;
    const auto read = s.read();
    REQUIRE_MESSAGE(read.ok(), read.error().message);
    return read->weights.begin()->second.scale;
  };
  CHECK(scale_with(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"use_rslora":true})") == static_cast<float>(8 / std::sqrt(2.0)));
  CHECK(scale_with(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"q_proj":3},"target_modules":"all-linear"})") == 1.5f);
  CHECK(scale_with(R"({"peft_type":"LORA","r":5,"lora_alpha":8,"rank_pattern":{"self_attn.q_proj":2}})") == 4.0f);
  CHECK(scale_with(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"_proj":3,"attn.q_proj":3}})") == 4.0f);  // ends of names, not of words
  // Where several ends match, the first in the file counts (PEFT's get_pattern_key), whatever the alphabet says.
  CHECK(scale_with(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"self_attn.q_proj":3,"q_proj":5}})") == 1.5f);
  CHECK(scale_with(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"q_proj":5,"self_attn.q_proj":3}})") == 2.5f);
  CHECK(scale_with(R"({"peft_type":"LORA","r":5,"lora_alpha":8,"rank_pattern":{"self_attn.q_proj":2,"q_proj":3}})") == 4.0f);
  r.dtype = "BF16";
  r.a = std::string("\x80\x3f\x00\x40\x40\x40\x80\x40\xa0\x40\xc0\x40", 12);
  r.b = std::string("\x80\x3f\x80\xbf\x00\x40\x00\xc0\x40\x40\x40\xc0\x80\x40\x80\xc0", 16);
  const auto half = r.read();
  REQUIRE_MESSAGE(half.ok(), half.error().message);
  check_factors(half->weights.begin()->second, 4.0f);
}

TEST_CASE("what llama.cpp writes is read, with its scales") {
  gguf_recipe r;
  const auto plain = r.read();
  REQUIRE_MESSAGE(plain.ok(), plain.error().message);
  CHECK(plain->architecture == "llama");
  REQUIRE(plain->weights.size() == 1);
  check_factors(plain->weights.at("blk.0.attn_q.weight"), 4.0f);
  r.keys[3] = key_float("adapter.lora.alpha", 0);
  const auto no_alpha = r.read();
  REQUIRE(no_alpha.ok());
  CHECK(no_alpha->weights.begin()->second.scale == 1.0f);
}

TEST_CASE("adapters are written and read again in both kinds of file") {
  const scratch_folder folder;
  const adapter hf = two_weights("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight");
  const status wrote = write_peft_adapter(folder / "peft", hf, "base");
  REQUIRE_MESSAGE(wrote.ok(), wrote.error().message);
  const auto peft = read_peft_adapter(folder / "peft");
  REQUIRE_MESSAGE(peft.ok(), peft.error().message);
  check_same_products(*peft, hf);
  for (const auto& [name, f] : hf.weights) CHECK(peft->weights.at(name).scale == f.scale);

  adapter g = two_weights("blk.0.attn_q.weight", "blk.1.ffn_down.weight");
  for (const bool one_alpha : {false, true}) {
    if (one_alpha) g.weights.erase("blk.1.ffn_down.weight"), g.bases.clear();
    REQUIRE(write_gguf_adapter(folder / "a.gguf", g).ok());
    const auto gguf = read_gguf_adapter(read_all(folder / "a.gguf"));
    REQUIRE_MESSAGE(gguf.ok(), gguf.error().message);
    check_same_products(*gguf, g);
    CHECK((gguf->weights.begin()->second.scale == 4.0f) == one_alpha);  // other alphas are in B
  }
  REQUIRE(write_gguf_adapter(folder / "half.gguf", g, spec_of<float16>).ok());
  const auto half = read_gguf_adapter(read_all(folder / "half.gguf"));
  REQUIRE(half.ok());
  check_same_products(*half, g);  // small integers
  CHECK(!write_peft_adapter(folder / "none", adapter{}, "base").ok());
  CHECK(!std::filesystem::exists(folder / "none"));
}

TEST_CASE("where one of PEFT's two files cannot be written, both old ones stay") {
  const scratch_folder folder;
  adapter a = two_weights("q_proj.weight", "k_proj.weight");
  REQUIRE(write_peft_adapter(folder / "a", a, "base"));
  const bytes config = read_all(folder / "a/adapter_config.json"), weights = read_all(folder / "a/adapter_model.safetensors");
  a.weights["q_proj.weight"].scale = 1.0f;
  a.weights["q_proj.weight"].a[0] = 9.0f;
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit full{1 << 16, before.rlim_max};  // bytes: room for the weights, but not for a configuration with so long a name in it
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &full);
  const status wrote = write_peft_adapter(folder / "a", a, std::string(1 << 17, 'b'));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  REQUIRE(!wrote);
  CHECK_MESSAGE(wrote.error().message.find("adapter_config.json") != std::string::npos, wrote.error().message);
  CHECK(read_all(folder / "a/adapter_config.json") == config);
  CHECK(read_all(folder / "a/adapter_model.safetensors") == weights);
  const std::filesystem::directory_iterator files(folder / "a"), none;
  CHECK(std::distance(files, none) == 2);
}

TEST_CASE("bad PEFT adapters are refused by name") {
  const auto refused = [](const std::function<void(peft_recipe&)>& spoil, errc kind, const std::vector<std::string>& words) { check_refused<peft_recipe>(spoil, kind, words); };
  const auto config = [&](const std::string& text, errc kind, const std::string& word) { refused([&](peft_recipe& r) { r.config = text; }, kind, {word}); };
  config("[]", errc::malformed, "not an object");
  config("{", errc::malformed, "not valid JSON");
  config(R"({"r":2,"lora_alpha":8})", errc::unsupported, "peft_type");
  config(R"({"peft_type":"LOHA","r":2,"lora_alpha":8})", errc::unsupported, "peft_type");
  config(R"({"peft_type":"LORA","lora_alpha":8})", errc::bad_value, "'r'");
  config(R"({"peft_type":"LORA","r":0,"lora_alpha":8})", errc::bad_value, "'r'");
  config(R"({"peft_type":"LORA","r":"2","lora_alpha":8})", errc::bad_value, "'r'");
  config(R"({"peft_type":"LORA","r":2})", errc::bad_value, "'lora_alpha'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":1e300})", errc::bad_value, "alpha that is no finite number");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"use_rslora":"yes"})", errc::bad_value, "'use_rslora'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"fan_in_fan_out":true})", errc::unsupported, "'fan_in_fan_out'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"use_dora":true})", errc::unsupported, "'use_dora'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"bias":"all"})", errc::unsupported, "bias");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"modules_to_save":["lm_head"]})", errc::unsupported, "'modules_to_save'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"trainable_token_indices":{"embed_tokens":[1]}})", errc::unsupported, "'trainable_token_indices'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"layer_replication":[[0,2],[1,3]]})", errc::unsupported, "'layer_replication'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alora_invocation_tokens":[7]})", errc::unsupported, "'alora_invocation_tokens'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"init_lora_weights":"pissa_niter_16"})", errc::unsupported, "'init_lora_weights'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"rank_pattern":{".*q_proj":2}})", errc::unsupported, "regular expression '.*q_proj'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"rank_pattern":{"q_proj":0}})", errc::bad_value, "rank_pattern.q_proj");
  config(R"({"peft_type":"LORA","r":5,"lora_alpha":8,"rank_pattern":{"q_proj":3,"self_attn.q_proj":2}})", errc::shape, "rank 2, but the configuration says 3");
  for (const char* rank : {"18446744073709551615", "18446744073709551616", "1.8446744073709552e19", "1048577", "2.0", "-2"})
    config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"rank_pattern":{"q_proj":)" + std::string(rank) + "}}", errc::bad_value, "'rank_pattern.q_proj' is not a rank");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":{"q_proj":"3"}})", errc::bad_value, "alpha_pattern.q_proj");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"alpha_pattern":3})", errc::bad_value, "'alpha_pattern'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":["q_proj","k_proj"]})", errc::not_found, "'k_proj'");
  config(R"({"peft_type":"LORA","r":2,"lora_alpha":8,"target_modules":[2]})", errc::bad_value, "'target_modules'");
  config(R"({"peft_type":"LORA","r":3,"lora_alpha":8})", errc::shape, q_proj + ".lora_A.weight' is of rank 2, but the configuration says 3");
  refused([](peft_recipe& r) { r.b_shape = "[2,4]"; }, errc::shape, {q_proj + ".lora_B.weight' is of rank 4"});
  refused([](peft_recipe& r) { r.a_shape = "[6]"; }, errc::shape, {q_proj + ".lora_A.weight' is not a matrix"});
  refused([](peft_recipe& r) { r.b_name.clear(), r.b.clear(); }, errc::not_found, {"has no B", q_proj + ".lora_A.weight"});
  refused([](peft_recipe& r) { r.a_name.clear(), r.a.clear(); }, errc::not_found, {"has no A", q_proj + ".lora_B.weight"});
  refused([](peft_recipe& r) { r.a_name.clear(), r.b_name.clear(), r.a.clear(), r.b.clear(), r.config = R"({"peft_type":"LORA","r":2,"lora_alpha":8})"; }, errc::malformed, {"no tensors"});
  refused([](peft_recipe& r) { r.a_name = q_proj + ".lora_embedding_A"; }, errc::unsupported, {"lora_embedding_A", "no part"});
  refused([](peft_recipe& r) { r.a_name = "model.q_proj.lora_A.weight"; }, errc::unsupported, {"model.q_proj.lora_A.weight"});
  refused([](peft_recipe& r) { r.dtype = "I32"; }, errc::unsupported, {q_proj, "I32"});
  refused([](peft_recipe& r) { r.b = floats({1, -1, 2, -2, 3, std::numeric_limits<float>::quiet_NaN(), 4, -4}); }, errc::bad_value,
          {q_proj + ".lora_B.weight': NaN at row 2, column 1"});
  refused([](peft_recipe& r) { r.a = floats({1, 2, std::numeric_limits<float>::infinity(), 4, 5, 6}); }, errc::bad_value, {q_proj + ".lora_A.weight': infinity at row 0, column 2"});
  const scratch_folder folder;
  CHECK(read_peft_adapter(folder / "").error().message.find("adapter_config.json") != std::string::npos);
}

TEST_CASE("bad GGUF adapters are refused by name") {
  const auto refused = [](const std::function<void(gguf_recipe&)>& spoil, errc kind, const std::vector<std::string>& words) { check_refused<gguf_recipe>(spoil, kind, words); };
  refused([](gguf_recipe& r) { r.keys[0] = key_text("general.type", "model"); }, errc::unsupported, {"general.type", "'model'"});
  refused([](gguf_recipe& r) { r.keys.erase(r.keys.begin()); }, errc::unsupported, {"general.type", "missing"});
  refused([](gguf_recipe& r) { r.keys[2] = key_text("adapter.type", "control_vector"); }, errc::unsupported, {"adapter.type"});
  refused([](gguf_recipe& r) { r.keys.pop_back(); }, errc::not_found, {"adapter.lora.alpha"});
  refused([](gguf_recipe& r) { r.keys[3] = key_float("adapter.lora.alpha", std::numeric_limits<float>::quiet_NaN()); }, errc::bad_value, {"alpha"});
  const auto invoked_by = [](std::uint32_t token) {  // an array (9) of one uint32 (4)
    std::string k;
    put_string(k, "adapter.alora.invocation_tokens");
    put<std::int32_t>(k, 9);
    put<std::int32_t>(k, 4);
    put<std::uint64_t>(k, 1);
    put(k, token);
    return k;
  };
  refused([&](gguf_recipe& r) { r.keys.push_back(invoked_by(7)); }, errc::unsupported, {"adapter.alora.invocation_tokens"});
  refused([](gguf_recipe& r) { r.tensors.pop_back(); }, errc::not_found, {"has no B", "blk.0.attn_q.weight.lora_a"});
  refused([](gguf_recipe& r) { r.tensors[1].name = "blk.0.attn_q.weight"; }, errc::unsupported, {"'blk.0.attn_q.weight'", "no part"});
  refused([](gguf_recipe& r) { r.tensors[1].dims = {4, 2}; }, errc::shape, {"blk.0.attn_q.weight.lora_b' is of rank 4", "says 2"});
  refused([](gguf_recipe& r) { r.tensors[0].dims = {6}; }, errc::shape, {"blk.0.attn_q.weight.lora_a' is not a matrix"});
  refused([](gguf_recipe& r) { r.tensors[0].type = 26; }, errc::unsupported, {"blk.0.attn_q.weight.lora_a"});
  refused([](gguf_recipe& r) { r.tensors[1].data = floats({1, -1, 2, -2, 3, -3, 4, std::numeric_limits<float>::quiet_NaN()}); }, errc::bad_value,
          {"blk.0.attn_q.weight.lora_b': NaN at row 3, column 1"});
  refused([](gguf_recipe& r) { r.tensors.clear(); }, errc::malformed, {"no tensors"});
}
