// What the metadata of a GGUF model may hold: a key that is there is read as what it is, or refused by its name.
#include "changed_gguf.hpp"
#include "files/save.hpp"
#include "tiny_model.hpp"

using namespace llm;

namespace {

using metadata = lowbit::gguf_metadata;

/// A small model as a GGUF file, opened with other metadata than it has.
class tiny_gguf {
 public:
  tiny_gguf() {
    auto model = open_checkpoint(write_tiny_model(folder_));
    REQUIRE(model.ok());
    thread_pool threads{1};
    const requantisation how = plan_for(*model, lowbit::id_of<lowbit::f32>(), lowbit::method::rtn);
    REQUIRE(save_model(folder_ / "tiny.gguf", *model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  }
  lowbit::result<checkpoint> opened_with(const std::function<void(metadata&)>& change) const {
    change_metadata(folder_ / "tiny.gguf", folder_ / "changed.gguf", change);
    return open_checkpoint(folder_ / "changed.gguf");
  }
  template <class T>
  lowbit::result<checkpoint> opened_with(std::string_view key, T value) const {
    return opened_with([&](metadata& m) { m.set(key, std::move(value)); });
  }

 private:
  temporary_folder folder_;
};

void check_refused(const lowbit::result<checkpoint>& opened, lowbit::errc kind, std::string_view what) {
  CAPTURE(std::string(what));
  REQUIRE(!opened.ok());
  CHECK(opened.error().kind == kind);
  CHECK_MESSAGE(opened.error().message.find(what) != std::string::npos, opened.error().message);
  CHECK(opened.error().message.find("changed.gguf") != std::string::npos);
}

}  // namespace

TEST_CASE("GGUF keys: a number of any type is that number where it fits, and anything else is refused by the key's name") {
  const tiny_gguf tiny;
  const auto base = [&](auto value) {
    const auto opened = tiny.opened_with("llama.rope.freq_base", value);
    REQUIRE(opened.ok());
    return opened->config.rope_base;
  };
  CHECK(base(500000.0f) == 500000.0f);
  CHECK(base(500000.0) == 500000.0f);
  CHECK(base(std::uint32_t{500000}) == 500000.0f);
  CHECK(base(std::int64_t{500000}) == 500000.0f);
  for (const auto& opened : {tiny.opened_with("llama.block_count", std::uint64_t{2}), tiny.opened_with("llama.block_count", std::int8_t{2})}) {
    REQUIRE(opened.ok());
    CHECK(opened->config.layers == 2);
  }
  const auto refused = [&](const char* key, auto value) { check_refused(tiny.opened_with(key, value), lowbit::errc::bad_value, std::string("'") + key + '\''); };
  refused("llama.rope.freq_base", std::string("500000"));
  refused("llama.block_count", std::int32_t{-1});
  refused("llama.block_count", 2.0f);
  refused("llama.attention.head_count_kv", std::vector<std::uint32_t>{2, 2});
  refused("llama.attention.key_length", 16.0f);
  refused("llama.attention.value_length", std::string("16"));
  refused("llama.rope.dimension_count", true);
  refused("llama.rope.scaling.type", std::uint32_t{0});
  refused("llama.rope.scaling.factor", std::string("2"));
  refused("tokenizer.ggml.add_bos_token", std::uint32_t{0});
  refused("tokenizer.ggml.bos_token_id", 1.0f);
  refused("tokenizer.ggml.tokens", std::string("<s>"));
  refused("tokenizer.ggml.token_type", std::vector<std::uint32_t>(270, 1));
  refused("tokenizer.ggml.scores", std::vector<double>(270, 0.0));
  refused("general.name", std::uint32_t{7});
}

TEST_CASE("GGUF keys: linear scaling of RoPE is what a file means that names no type, and is refused by the key of its factor") {
  const tiny_gguf tiny;
  const std::string type = "llama.rope.scaling.type", factor = "llama.rope.scaling.factor", older = "llama.rope.scale_linear";
  CHECK(tiny.opened_with([](metadata&) {}).ok());
  CHECK(tiny.opened_with(type, std::string("linear")).ok());
  for (const float none : {0.0f, 1.0f}) {
    CHECK(tiny.opened_with(factor, none).ok());
    CHECK(tiny.opened_with(older, none).ok());
  }
  for (const std::string& key : {factor, older}) {
    check_refused(tiny.opened_with(key, 4.0f), lowbit::errc::unsupported, '\'' + key + "' is 4");
    check_refused(tiny.opened_with(key, std::uint32_t{4}), lowbit::errc::unsupported, '\'' + key + "' is 4");
    CHECK(tiny.opened_with([&](metadata& m) { m.set(key, 4.0f), m.set(type, std::string("none")); }).ok());
  }
  // The older key counts only without the newer one.
  CHECK(tiny.opened_with([&](metadata& m) { m.set(factor, 1.0f), m.set(older, 4.0f); }).ok());
  check_refused(tiny.opened_with(type, std::string("yarn")), lowbit::errc::unsupported, "\"yarn\"");
}

TEST_CASE("GGUF keys: a special token that is not in the vocabulary is refused") {
  const tiny_gguf tiny;
  for (const std::string key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id"}) {
    CHECK(tiny.opened_with(key, std::uint32_t{269}).ok());
    check_refused(tiny.opened_with(key, std::uint32_t{270}), lowbit::errc::bad_value, '\'' + key + "' is 270, the vocabulary has 270");
    check_refused(tiny.opened_with(key, std::uint32_t{4294967295}), lowbit::errc::bad_value, key);
    CHECK(tiny.opened_with([&](metadata& m) { m.erase(key), m.set("tokenizer.ggml.add_bos_token", false); }).ok());
  }
}
