// What the command line of `lowbit` is given: outputs that are inputs, numbers that are none, paths that name nothing.
#include "command.hpp"

#include <lowbit/io/mapped_file.hpp>
#include <lowbit/io/safetensors.hpp>

#include <nlohmann/json.hpp>

#include <set>

TEST_CASE("no command writes over what it reads, under whatever name") {
  const temporary_folder folder;
  const std::string source = write_tiny_model(folder), model = folder / "a.gguf", text = folder / "text.txt";
  write_bytes(text, std::string(400, 'a'));
  REQUIRE(run("quantise " + source + " " + model + " --format q8_0").code == 0);
  std::filesystem::create_symlink("a.gguf", folder / "link.gguf");
  std::filesystem::create_hard_link(model, folder / "same.gguf");
  const std::string calibration = " --calibration-length 32 --calibration " + text, bytes = read_bytes(model), words = read_bytes(folder / "tiny-tok.bin");
  for (const std::string& output : {model, folder / "./a.gguf", folder / "link.gguf", folder / "same.gguf"}) {
    check_refused("quantise " + model + " " + output + " --format q4_0", {output, "would replace", "a.gguf"});
    check_refused("convert " + model + " " + output + " --to gguf", {output, "would replace"});
    check_refused("imatrix " + model + " " + output + calibration, {output, "would replace"});
  }
  check_refused("imatrix " + model + " " + text + calibration, {"would replace", "text.txt"});
  check_refused("quantise " + model + " " + text + " --format q4_0 --method gptq" + calibration, {"would replace", "text.txt"});
  check_refused("quantise " + source + " " + folder / "tiny-tok.bin" + " --format q4_0", {"would replace", "tiny-tok.bin"});
  CHECK(read_bytes(model) == bytes);
  CHECK(read_bytes(text) == std::string(400, 'a'));
  CHECK(read_bytes(folder / "tiny-tok.bin") == words);
  CHECK(std::filesystem::is_symlink(folder / "link.gguf"));

  // Of several files every one.
  REQUIRE(run("quantise " + model + " " + folder / "parts.gguf" + " --format q8_0 --split 64K").code == 0);
  std::string first, second;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("parts-00001-of-")) first = entry.path().string();
    if (name.starts_with("parts-00002-of-")) second = entry.path().string();
  }
  const std::string part = read_bytes(second);
  check_refused("quantise " + first + " " + second + " --format q4_0", {second, "would replace"});
  check_refused("quantise " + first + " " + folder / "parts.gguf" + " --format q8_0 --split 64K", {first, "would replace"});
  CHECK(read_bytes(second) == part);
  REQUIRE(run("quantise " + first + " " + folder / "parts.gguf" + " --format q4_0").code == 0);
  REQUIRE(run("quantise " + source + " " + folder / "hf" + " --format nf4").code == 0);
  check_refused("quantise " + folder / "hf" + " " + folder / "hf/tokenizer.json" + " --format q4_0", {"would replace"});
}

TEST_CASE("a folder is written in parts of at most so many bytes, with an index that names them, and read like one in one piece") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), parts = folder / "parts", whole = folder / "whole";
  for (const char* size : {"-1", "999999999999999999999", "1.5", "G"}) check_refused("convert " + model + " " + parts + " --to hf --split=" + size, {"--split", size});
  for (const char* to : {"hf", "gptq"}) {
    CAPTURE(std::string(to));
    std::filesystem::remove_all(parts);
    std::filesystem::remove_all(whole);
    REQUIRE(run("convert " + model + " " + whole + " --to " + to).code == 0);
    REQUIRE(run("convert " + model + " " + parts + " --to " + to + " --split 20K").code == 0);
    CHECK(!std::filesystem::exists(parts + "/model.safetensors"));
    CHECK(!std::filesystem::exists(whole + "/model.safetensors.index.json"));
    const auto index = nlohmann::json::parse(read_bytes(parts + "/model.safetensors.index.json"));
    std::set<std::string> named, there;
    for (const auto& [tensor, file] : index["weight_map"].items()) named.insert(file.get<std::string>());
    for (const auto& entry : std::filesystem::directory_iterator(parts))
      if (entry.path().extension() == ".safetensors") there.insert(entry.path().filename().string());
    CHECK(named == there);
    CHECK(there.size() > 2);
    std::size_t total = 0;
    for (const std::string& name : there) {
      const std::string count = std::to_string(there.size());
      CHECK(name.ends_with("-of-" + std::string(5 - count.size(), '0') + count + ".safetensors"));
      const auto file = lowbit::mapped_file::open(parts + "/" + name);
      REQUIRE(file);
      const auto content = lowbit::read_safetensors(file->bytes());
      REQUIRE(content);
      std::size_t bytes = 0;
      for (const auto& t : content->tensors) {
        bytes += t.data.size();
        CHECK(index["weight_map"][t.name] == name);
      }
      CHECK((bytes <= 20 * 1024 || content->tensors.size() == 1));  // no quantised matrix of these has more
      total += bytes;
    }
    CHECK(index["metadata"]["total_size"] == total);
    REQUIRE(run("convert " + whole + " " + folder / "a.gguf" + " --to gguf").code == 0);
    REQUIRE(run("convert " + parts + " " + folder / "b.gguf" + " --to gguf").code == 0);
    const std::string a = read_bytes(folder / "a.gguf"), b = read_bytes(folder / "b.gguf");
    CHECK(a.substr(a.size() / 2) == b.substr(b.size() / 2));  // but for the folder's name
    CHECK(run("verify --allow-zero-blocks " + parts).code == 0);
  }
}

TEST_CASE("a file that is no cache of panels is not replaced by one") {
  const temporary_folder folder;
  const std::string model = folder / "m.gguf", cache = folder / "m.gguf.panels", mine = folder / "mine";
  REQUIRE(run("quantise " + write_tiny_model(folder) + " " + model + " --format q4_0").code == 0);
  const auto check_kept = [&](const std::string& file) {
    const std::string before = read_bytes(file);
    const outcome o = run("generate --cache -n 3 --prompt abc " + model);
    CHECK(o.code == 0);
    CHECK(o.err.find("no cache of panels: " + cache + " is there already") != std::string::npos);
    CHECK(read_bytes(file) == before);
  };
  for (const std::string& content : {std::string("mine"), std::string(), read_bytes(model)}) {
    write_bytes(cache, content);
    check_kept(cache);
  }
  write_bytes(mine, "mine");
  for (const char* target : {"mine", "nowhere"}) {
    std::filesystem::remove(cache);
    std::filesystem::create_symlink(target, cache);
    check_kept(mine);
    CHECK(std::filesystem::is_symlink(cache));
  }
  CHECK(!std::filesystem::exists(folder / "nowhere"));
}

TEST_CASE("whole numbers are what they say, or are refused") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), text = folder / "text.txt";
  write_bytes(text, std::string(400, 'a'));
  const std::string calibrated = "imatrix --json " + model + " " + folder / "m.gguf" + " --calibration " + text;
  for (const char* seed : {"-1", "18446744073709551616", "1e3", "0x10", "''"}) check_refused(calibrated + " --seed " + seed, {"--seed", "is not a whole number"});
  for (const char* length : {"0", "1", "-5", "18446744073709551616"}) {
    check_refused(calibrated + " --calibration-length " + length, {"--calibration-length", length, "is not a whole number from 2"});
    check_refused("evaluate " + model + " --text " + text + " --context " + length, {"--context", length, "is not a whole number from 2"});
  }
  check_refused("evaluate " + model + " --text " + text + " --tokens -1", {"--tokens", "-1"});
  CHECK(!std::filesystem::exists(folder / "m.gguf"));
  for (const auto& [given, seed] : {std::pair{"18446744073709551615", "18446744073709551615"}, {"010", "10"}}) {
    const outcome o = run(calibrated + " --calibration-length 32 --seed " + given);
    REQUIRE(o.code == 0);
    CHECK(nlohmann::json::parse(o.out)["calibrated_on"].get<std::string>().find(std::string("(seed ") + seed + ',') != std::string::npos);
  }
  // More than the model's context of 64 is that context.
  CHECK(run("evaluate " + model + " --text " + text + " --context 100000").out == run("evaluate " + model + " --text " + text + " --context 64").out);
}

TEST_CASE("an empty path is said to be empty") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder);
  for (const std::string command : {"inspect ''", "verify ''", "generate ''"}) check_refused(command, {"the path is empty"});
  check_refused("quantise " + model + " '' --format q4_0", {"out", "the path is empty"});
}
