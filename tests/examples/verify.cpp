// `lowbit verify` on whole models, which it opens as those who run them do, and on what is none.
#include "changed_gguf.hpp"
#include "command.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>

namespace {

/// A small model in eight bits, of 20 tensors.
std::string write_tiny_gguf(const temporary_folder& folder) {
  REQUIRE(run("quantise " + write_tiny_model(folder) + " " + folder / "m.gguf" + " --format q8_0").code == 0);
  return folder / "m.gguf";
}

}  // namespace

TEST_CASE("verify finds in a whole model what keeps it from running, and still looks at every tensor") {
  const temporary_folder folder;
  const std::string good = write_tiny_gguf(folder), path = folder / "changed.gguf";
  const auto findings = [&](const std::string& file) {
    const outcome o = run("verify --json " + file);
    const auto j = nlohmann::json::parse(o.out);
    CHECK(j["tensors"].size() == 20);
    const auto is_error = [](const nlohmann::json& f) { return f["is_error"] == true; };
    CHECK(o.code == (std::any_of(j["findings"].begin(), j["findings"].end(), is_error) ? 2 : 0));
    return j["findings"];
  };
  CHECK(findings(good).empty());
  const auto one_layer_more = [](lowbit::gguf_metadata& m) { m.set("llama.block_count", std::uint32_t{3}); };
  change_metadata(good, path, one_layer_more);
  const auto missing = findings(path);
  REQUIRE(missing.size() == 1);
  CHECK(missing[0]["tensor"].is_null());
  CHECK(missing[0]["what"] == path + ": tensor blk.2.attn_norm.weight is missing");
  std::string nan = read_bytes(path);
  nan.replace(nan.size() - 64 * sizeof(float), 4, std::string("\0\0\x80\x7f", 4));  // output_norm.weight comes last
  write_bytes(path, nan);
  CHECK(findings(path).size() == 2);
  change_metadata(good, path, [](lowbit::gguf_metadata& m) { m.set("tokenizer.ggml.bos_token_id", std::uint32_t{270}); });
  CHECK(findings(path).size() == 1);
  change_metadata(good, path, [](lowbit::gguf_metadata& m) { m.set("tokenizer.ggml.merges", 1.0f), m.set("tokenizer.ggml.model", std::string("gpt2")); });
  CHECK(findings(path).size() == 1);

  // What says that it is something else is not opened as a model.
  for (const char* type : {"adapter", "imatrix", "mmproj", "model"}) {
    CAPTURE(std::string(type));
    change_metadata(good, path, [&](lowbit::gguf_metadata& m) { one_layer_more(m), m.set("general.type", std::string(type)); });
    CHECK(findings(path).size() == (type == std::string("model") ? 1 : 0));
  }
  change_metadata(good, path, [](lowbit::gguf_metadata& m) { m.erase("general.architecture"); });
  CHECK(findings(path).empty());
  const auto model = lowbit::gguf_model::open(good);
  REQUIRE(model.ok());
  auto words = lowbit::gguf_writer::create(folder / "vocabulary.gguf", model->metadata(), {});
  REQUIRE((words.ok() && words->commit().ok()));
  CHECK(run("verify " + folder / "vocabulary.gguf").code == 0);
}

TEST_CASE("verify opens a folder with its configuration, and a safetensors file without one") {
  const temporary_folder folder;
  REQUIRE(run("quantise " + write_tiny_model(folder) + " " + folder / "hf" + " --format nf4").code == 0);
  CHECK(run("verify " + folder / "hf").code == 0);
  const std::string config = read_bytes(folder / "hf/config.json");
  auto other = nlohmann::json::parse(config);
  other["intermediate_size"] = 256;
  write_bytes(folder / "hf/config.json", other.dump());
  const outcome contradicts = run("verify " + folder / "hf");
  CHECK(contradicts.code == 2);
  CHECK(contradicts.out.find("the configuration says 256 x 64") != std::string::npos);
  CHECK(run("verify " + folder / "hf/model.safetensors").code == 0);
  write_bytes(folder / "hf/config.json", config);
  std::filesystem::remove(folder / "hf/tokenizer.json");
  CHECK(run("verify " + folder / "hf").out.find("tokenizer.json") != std::string::npos);
}

TEST_CASE("verify says of a model that lowbit does not run that it does not, and finds nothing wrong with it") {
  const temporary_folder folder;
  change_metadata(write_tiny_gguf(folder), folder / "other.gguf", [](lowbit::gguf_metadata& m) { m.set("general.architecture", std::string("qwen2")); });
  REQUIRE(run("quantise " + write_tiny_model(folder) + " " + folder / "hf" + " --format nf4").code == 0);
  auto config = nlohmann::json::parse(read_bytes(folder / "hf/config.json"));
  config["model_type"] = "qwen2";
  write_bytes(folder / "hf/config.json", config.dump());
  for (const char* file : {"other.gguf", "hf"}) {
    const outcome o = run("verify " + folder / file);
    CHECK(o.code == 0);
    CHECK(o.out.find("\"qwen2\", not \"llama\"") != std::string::npos);
  }
}

TEST_CASE("verify looks at quantised weights wherever their folder lies") {
  const temporary_folder folder;
  const std::string inside = folder / "best-of-2";
  std::filesystem::create_directory(inside);
  REQUIRE(run("convert " + write_tiny_model(folder) + " " + inside + "/m --to compressed-tensors-mxfp4").code == 0);
  CHECK(run("verify " + inside + "/m").code == 0);
  std::string bytes = read_bytes(inside + "/m/model.safetensors");
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto where = nlohmann::json::parse(bytes.substr(8, header))["model.layers.0.self_attn.q_proj.weight_scale"]["data_offsets"][0].get<std::size_t>();
  bytes[8 + header + where] = '\xff';  // the NaN of E8M0
  write_bytes(inside + "/m/model.safetensors", bytes);
  for (const char* file : {"/m", "/m/model.safetensors"}) CHECK(run("verify " + inside + file).code == 2);
}

TEST_CASE("verify counts the bytes behind a GGUF file's last tensor that are no padding") {
  const temporary_folder folder;
  const std::string good = write_tiny_gguf(folder), path = folder / "longer.gguf";
  write_bytes(path, read_bytes(good) + "seven b");
  const outcome longer = run("verify " + path);
  CHECK(longer.code == 2);
  CHECK(longer.out.find(path + ": has bytes behind its last tensor: 7\n") != std::string::npos);

  change_metadata(good, path, [](lowbit::gguf_metadata& m) { m.set("general.alignment", std::uint32_t{4096}); });
  std::string padded = read_bytes(path);
  padded.resize(lowbit::round_up(padded.size(), 4096));
  write_bytes(path, padded);
  CHECK(run("verify " + path).code == 0);
  write_bytes(path, padded + '\0');
  CHECK(run("verify " + path).out.find("behind its last tensor: 1\n") != std::string::npos);

  REQUIRE(run("quantise " + good + " " + folder / "parts.gguf" + " --format q8_0 --split 64K").code == 0);
  std::string second;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    if (entry.path().filename().string().starts_with("parts-00002")) second = entry.path().string();
  REQUIRE(!second.empty());
  const std::string first = second.substr(0, second.rfind("parts-")) + "parts-00001" + second.substr(second.rfind("-of-"));
  CHECK(run("verify " + first).code == 0);
  write_bytes(second, read_bytes(second) + std::string(100, '\0'));
  CHECK(run("verify " + first).out.find(second + ": has bytes behind its last tensor: 100\n") != std::string::npos);
}

TEST_CASE("verify and inspect print names without what steers a terminal") {
  const temporary_folder folder;
  std::string bytes = read_bytes(write_tiny_gguf(folder));
  bytes[bytes.find("output_norm.weight") + 6] = '\x1b';
  bytes[bytes.find("general.name") + 7] = '\x1b';
  write_bytes(folder / "named.gguf", bytes);
  for (const char* command : {"verify ", "inspect "}) {
    const outcome o = run(command + folder / "named.gguf");
    CHECK(o.out.find("output\\x1bnorm.weight") != std::string::npos);
    CHECK((o.out + o.err).find('\x1b') == std::string::npos);
  }
  CHECK(run("inspect " + folder / "named.gguf").out.find("general\\x1bname") != std::string::npos);
}
