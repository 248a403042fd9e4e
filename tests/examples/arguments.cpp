// What the command line of `lowbit` is given: outputs that are inputs, numbers that are none, paths that name nothing.
#include "command.hpp"

#include <nlohmann/json.hpp>

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
