// Models through every kind of file: what comes back computes what went in, and what is damaged is refused.
#include "files/hf_json.hpp"
#include "files/save.hpp"
#include "logits.hpp"
#include "text/tokeniser.hpp"
#include "tiny_model.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <tuple>

using namespace llm;

namespace {

std::vector<float> decoded(lowbit::packed_view w) {
  std::vector<float> values(w.rows * w.cols);
  lowbit::decode(w, {values.data(), w.rows, w.cols});
  return values;
}

bool only_these(const temporary_folder& folder, const std::vector<std::string>& names) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator{folder.path()}) ++count;
  for (const std::string& n : names)
    if (!std::filesystem::exists(folder / n)) return false;
  return count == names.size();
}

}  // namespace

TEST_CASE("a model saved in any format runs from the file as it does from memory") {
  const temporary_folder folder;
  thread_pool threads{2};
  const auto original = open_checkpoint(write_tiny_model(folder));
  REQUIRE(original.ok());
  const std::vector<float> reference = logits_of(*original, as_float32(threads), threads);

  std::size_t saved_formats = 0;
  for (const lowbit::format_spec* spec : lowbit::all_formats::specs) {
    const auto format = *lowbit::find_format(spec->name);
    CAPTURE(std::string{spec->name});
    checkpoint model = *original;
    const requantisation how = plan_for(model, format, lowbit::method::rtn);
    const weight_source source = [&](const tensor& t) { return requantise(t, how, threads); };
    const std::vector<float> in_memory = logits_of(model, source, threads);
    if (spec->name == "f32") CHECK(distance(in_memory, reference) == 0.0);
    if (spec->name == "q8_0" || spec->name == "s8_g32") CHECK(distance(in_memory, reference) < 0.05);
    if (container_of(model, format) == container::none) continue;

    const bool gguf = container_of(model, format) == container::gguf;
    const std::string path = folder / (gguf ? "model.gguf" : "model");
    std::filesystem::remove_all(path);
    const auto bytes = save_model(path, model, format, source);
    REQUIRE_MESSAGE(bytes.ok(), (bytes.ok() ? "" : bytes.error().message));
    if (gguf) CHECK(*bytes == std::filesystem::file_size(path));
    const auto again = open_checkpoint(path);
    REQUIRE_MESSAGE(again.ok(), (again.ok() ? "" : again.error().message));
    CHECK(again->config.rope == (gguf ? rope_order::pairs : rope_order::halves));
    for (const tensor& t : model.tensors) {
      const tensor* const found = again->find(t.name);
      REQUIRE(found != nullptr);
      const auto expected = requantise(t, how, threads), read = found->read();
      REQUIRE((expected.ok() && read.ok()));
      CHECK(decoded(read->view()) == decoded(expected->view()));
    }
    // The order of rows within a head is not the order of the sums in attention: equal up to rounding.
    CHECK(distance(logits_of(*again, stored, threads), in_memory) < 1e-5);

    const auto words = tokeniser::from(original->words), words_again = tokeniser::from(again->words);
    REQUIRE((words.ok() && words_again.ok()));
    for (const char* text : {"hello there", "naïve  \n", ""}) CHECK(words_again->encode(text) == words->encode(text));
    ++saved_formats;
  }
  CHECK(saved_formats >= 17 + 2 + 45);  // floats and GGUF's; bitsandbytes'; uniform but for the single symmetric bit
}

TEST_CASE("rows that blocks do not divide fall back as in llama.cpp, and still save") {
  const temporary_folder folder;
  thread_pool threads{1};
  tiny_shape shape;
  shape.hidden = 172;  // stories260K's
  const auto model = open_checkpoint(write_tiny_model(folder, shape));
  REQUIRE(model.ok());
  const auto target = [&](const char* name, const char* format) {
    return std::string{lowbit::spec_of_id(target_format(*model->find(name), *lowbit::find_format(format))).name};
  };
  CHECK(target("blk.0.ffn_down.weight", "q4_0") == "f16");
  CHECK(target("blk.0.ffn_up.weight", "q4_0") == "q4_0");
  CHECK(target("blk.0.ffn_up.weight", "q2_k") == "q4_0");
  CHECK(target("blk.0.ffn_up.weight", "q3_k") == "q4_0");
  CHECK(target("blk.0.ffn_up.weight", "q4_k") == "q5_0");
  CHECK(target("blk.0.ffn_up.weight", "q5_k") == "q5_1");
  CHECK(target("blk.0.ffn_up.weight", "q6_k") == "q8_0");
  CHECK(target("blk.0.ffn_up.weight", "iq4_xs") == "iq4_nl");
  CHECK(target("blk.0.ffn_up.weight", "mxfp4") == "mxfp4");
  CHECK(target("blk.0.ffn_norm.weight", "q4_0") == "f32");
  CHECK(target("token_embd.weight", "nf4") == "f32");
  CHECK(container_of(*model, *lowbit::find_format("nf4")) == container::none);
  checkpoint changed = *model;
  const requantisation how = plan_for(changed, *lowbit::find_format("q4_0"), lowbit::method::rtn);
  const auto source = [&](const tensor& t) { return requantise(t, how, threads); };
  REQUIRE(save_model(folder / "ragged.gguf", changed, how.format, source).ok());
  const auto again = open_checkpoint(folder / "ragged.gguf");
  REQUIRE(again.ok());
  CHECK(logits_of(*again, stored, threads) == logits_of(changed, source, threads));
}

TEST_CASE("a matrix comes in runs of rows, queries and keys in runs of whole heads") {
  const std::size_t head_dim = 96, rows = 5 * head_dim, cols = 3;
  std::vector<float> values(rows * cols);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const lowbit::packed_view whole{&lowbit::spec_of<lowbit::f32>, rows, cols, reinterpret_cast<const std::uint8_t*>(values.data())};
  tensor t{"blk.0.attn_q.weight", false, rows, cols, whole.spec, whole.size_bytes(), {}};
  t.read_rows = [&](std::size_t first, std::size_t count) -> lowbit::result<weights> { return weights{whole.middle_rows(first, count)}; };
  const std::vector<float> turned = decoded(reorder_rows(whole, head_dim, rope_order::pairs)->view());
  for (const auto& [together, most, runs] : {std::tuple{head_dim, std::size_t{250} * 3, std::size_t{3}}, {head_dim, std::size_t{1}, std::size_t{5}}, {std::size_t{1}, std::size_t{250} * 3, std::size_t{2}},
                                             {head_dim, std::size_t{481} * 3, std::size_t{1}}}) {
    t.together = together;
    const std::vector<tensor> all = runs_of(t, most);
    CHECK(all.size() == runs);
    std::vector<float> read, in_order;
    for (const tensor& run : all) {
      CHECK(run.first_row * cols == read.size());
      const auto w = all.size() == 1 ? t.read_rows(0, rows) : run.read();
      const std::vector<float> v = decoded(w->view());
      CHECK(v.size() == run.rows * cols);
      read.insert(read.end(), v.begin(), v.end());
      const auto part = reorder_rows(w->view(), head_dim, rope_order::pairs);
      CHECK(part.ok() == (run.rows % head_dim == 0));
      if (!part) continue;
      const std::vector<float> moved = decoded(part->view());
      in_order.insert(in_order.end(), moved.begin(), moved.end());
    }
    CHECK(read == values);
    if (together == head_dim) CHECK(in_order == turned);
  }
  const temporary_folder folder;
  const checkpoint model = opened(write_tiny_model(folder));
  for (const tensor& m : model.tensors) CHECK(m.together == (m.name.find("attn_q.") != m.name.npos || m.name.find("attn_k.") != m.name.npos ? model.config.head_dim : 1));
  CHECK(model.config.head_dim > 1);
}

TEST_CASE("a model that has a tensor twice, its floats beside its codes, is refused by the tensor's name") {
  const temporary_folder folder;
  thread_pool threads{1};
  auto model = open_checkpoint(write_tiny_model(folder));
  REQUIRE(model.ok());
  REQUIRE(check_model(*model).ok());
  model->tensors.push_back(model->tensors[3]);
  const auto built = build_llama(*model, stored, threads);
  REQUIRE(!built.ok());
  CHECK(built.error().kind == lowbit::errc::malformed);
  CHECK(built.error().message == "tensor " + model->tensors[3].name + " is there twice");
}

TEST_CASE("a path to a safetensors file opens that file, with the configuration and the tokeniser of its folder") {
  const temporary_folder folder;
  thread_pool threads{1};
  const auto original = open_checkpoint(write_tiny_model(folder));
  REQUIRE(original.ok());
  for (const char* format : {"nf4", "fp4"}) {
    checkpoint model = *original;
    const requantisation how = plan_for(model, *lowbit::find_format(format), lowbit::method::rtn);
    REQUIRE(save_model(folder / format, model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  }
  std::filesystem::rename(folder / "fp4/model.safetensors", folder / "nf4/variant.safetensors");
  const auto query = [](const lowbit::result<checkpoint>& model) {
    REQUIRE_MESSAGE(model.ok(), (model.ok() ? "" : model.error().message));
    return model->find("blk.0.attn_q.weight")->spec->values.values[1];
  };
  CHECK(query(open_checkpoint(folder / "nf4")) == lowbit::spec_of<lowbit::nf4>.values.values[1]);
  CHECK(query(open_checkpoint(folder / "nf4/variant.safetensors")) == lowbit::spec_of<lowbit::fp4>.values.values[1]);
  const auto missing = open_checkpoint(folder / "nf4/missing.safetensors");
  REQUIRE(!missing.ok());
  CHECK(missing.error().message.find("nf4/missing.safetensors") != std::string::npos);
  std::filesystem::remove(folder / "nf4/model.safetensors");
  CHECK(open_checkpoint(folder / "nf4/variant.safetensors").ok());
}

TEST_CASE("a quantised weight whose file was changed in place is refused where it is read, not read in its new shape") {
  const temporary_folder folder;
  thread_pool threads{1};
  auto model = open_checkpoint(write_tiny_model(folder));
  REQUIRE(model.ok());
  const requantisation how = plan_for(*model, *lowbit::find_format("nf4"), lowbit::method::rtn);
  REQUIRE(save_model(folder / "nf4", *model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  const auto opened = open_checkpoint(folder / "nf4");
  REQUIRE(opened.ok());
  const tensor& query = *opened->find("blk.0.attn_q.weight");
  REQUIRE((query.rows == 64 && query.cols == 64 && query.read().ok()));
  const std::string path = folder / "nf4/model.safetensors";
  for (const char* other : {"[32,128]", "[128,32]", "[ oops ]"}) {  // as many weights in another shape, and none at all
    std::string bytes = read_bytes(path);
    for (std::size_t at = bytes.find("[64, 64]"); at != bytes.npos; at = bytes.find("[64, 64]")) bytes.replace(at, 8, other);
    const std::string whole = read_bytes(path);
    write_bytes(path, bytes);
    const auto read = query.read();
    REQUIRE(!read.ok());
    if (other[1] != ' ') CHECK(read.error().message == "tensor blk.0.attn_q.weight: its file has changed since it was opened");
    write_bytes(path, whole);
  }
  CHECK(query.read().ok());
}

TEST_CASE("a save that fails half-way leaves nothing behind") {
  for (const char* format : {"q4_0", "nf4"}) {
    const temporary_folder folder;
    thread_pool threads{1};
    auto model = open_checkpoint(write_tiny_model(folder));
    REQUIRE(model.ok());
    const requantisation how = plan_for(*model, *lowbit::find_format(format), lowbit::method::rtn);
    std::size_t read = 0;
    const auto source = [&](const tensor& t) -> lowbit::result<weights> {
      if (++read == 7) return lowbit::failure{lowbit::errc::cancelled, "stop"};
      return requantise(t, how, threads);
    };
    CHECK(!save_model(folder / "out", *model, how.format, source).ok());
    CHECK(only_these(folder, {"tiny.bin", "tiny-tok.bin"}));
  }
}

TEST_CASE("files that are cut off anywhere, or have a byte changed, are refused or read, never a crash") {
  const temporary_folder folder;
  thread_pool threads{1};
  const std::string bin = write_tiny_model(folder, {.dim = 32, .hidden = 64, .layers = 1, .heads = 2, .kv_heads = 1, .vocabulary = 262, .positions = 8});
  auto model = open_checkpoint(bin);
  REQUIRE(model.ok());
  for (const char* format : {"q4_0", "u4_g32"}) {
    checkpoint changed = *model;
    const requantisation how = plan_for(changed, *lowbit::find_format(format), lowbit::method::rtn);
    REQUIRE(save_model(folder / (std::string{format} == "q4_0" ? "m.gguf" : "m"), changed, how.format,
                       [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  }
  struct { std::string model, file; } const cases[] = {
      {bin, bin}, {bin, folder / "tiny-tok.bin"}, {folder / "m.gguf", folder / "m.gguf"}, {folder / "m", folder / "m/model.safetensors"},
      {folder / "m", folder / "m/config.json"}, {folder / "m", folder / "m/tokenizer.json"}};
  std::mt19937 random{5};
  for (const auto& c : cases) {
    CAPTURE(c.file);
    const std::string whole = read_bytes(c.file);
    REQUIRE(open_checkpoint(c.model).ok());
    for (int i = 0; i < 60; ++i) {
      const std::size_t length = i < 30 ? static_cast<std::size_t>(i) * std::min<std::size_t>(whole.size() - 1, 3000) / 30 : random() % (whole.size() - 1);
      write_bytes(c.file, whole.substr(0, length));
      const auto cut = open_checkpoint(c.model);
      CHECK_MESSAGE(!cut.ok(), "cut to " << length << " of " << whole.size());
      if (!cut.ok()) CHECK(cut.error().message.find('\n') == std::string::npos);
    }
    for (int i = 0; i < 200; ++i) {
      std::string damaged = whole;
      damaged[random() % std::min<std::size_t>(damaged.size(), 6000)] = static_cast<char>(random());
      write_bytes(c.file, damaged);
      if (const auto read = open_checkpoint(c.model); read.ok()) {  // a value changed: whatever it is now, it runs or is refused
        (void)tokeniser::from(read->words).ok();
        (void)build_llama(*read, stored, threads).ok();
      }
    }
    write_bytes(c.file, whole);
  }
}

TEST_CASE("extents that config.json cannot mean are reported as it has them") {
  const auto refusal = [](const std::string& key, const std::string& value) {
    const std::string text = "{\"model_type\": \"llama\", \"vocab_size\": 270, \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2, "
                             "\"num_attention_heads\": 4}";
    auto json = nlohmann::json::parse(text);
    json[key] = nlohmann::json::parse(value);
    const auto config = read_hf_config("config.json", json);
    REQUIRE(!config.ok());
    return config.error().message;
  };
  struct extent {
    const char *key, *value;
  };
  for (const extent& e : {extent{"num_hidden_layers", "1000000000000"}, extent{"vocab_size", "4611686018427387904"}, extent{"hidden_size", "-1"},
                          extent{"num_key_value_heads", "-9223372036854775808"}, extent{"max_position_embeddings", "18446744073709551615"}}) {
    CAPTURE(std::string(e.key));
    const std::string why = refusal(e.key, e.value);
    CHECK_MESSAGE(why.find(std::string(" is ") + e.value) != std::string::npos, why);
  }
}

TEST_CASE("a tensor with a NaN is named") {
  const temporary_folder folder;
  thread_pool threads{1};
  std::string bytes = tiny_checkpoint({});
  const float nan = std::nanf("");
  // Behind the header, the embedding, two attention norms and query matrices lies blk.0.attn_k.weight.
  std::memcpy(bytes.data() + 28 + 4 * (270 * 64 + 2 * 64 + 2 * 64 * 64 + 10), &nan, 4);
  const std::string bin = write_tiny_model(folder);
  write_bytes(bin, bytes);
  auto model = open_checkpoint(bin);
  REQUIRE(model.ok());
  const auto built = build_llama(*model, stored, threads);
  REQUIRE(!built.ok());
  CHECK(built.error().message.find("blk.0.attn_k.weight") != std::string::npos);
  const requantisation how = plan_for(*model, *lowbit::find_format("q4_0"), lowbit::method::rtn);
  const auto saved = save_model(folder / "nan.gguf", *model, how.format, [&](const tensor& t) { return requantise(t, how, threads); });
  REQUIRE(!saved.ok());
  CHECK(saved.error().message.find("blk.0.attn_k.weight") != std::string::npos);
  CHECK(only_these(folder, {"tiny.bin", "tiny-tok.bin"}));
}
