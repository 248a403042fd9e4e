// The executable `lowbit`, run as a user runs it.
#include "../instrumented.hpp"
#include "command.hpp"
#include "tiny_model.hpp"

#include <lowbit/io/checkpoint.hpp>

#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include <cstdio>
#include <map>
#include <set>

namespace {

// For run(): sends a signal as soon as a file is there, whatever the speed of the machine. (A file that never comes ends the wait as well.)
std::string stopped_at(const std::string& pattern, const std::string& signal) {
  return "sh -c '\"$0\" \"$@\" & p=$!; while ! ls " + pattern + " && kill -0 $p; do sleep 0.01; done > /dev/null 2>&1; kill -" + signal + " $p; wait $p' ";
}

}  // namespace

TEST_CASE("every subcommand explains itself") {
  CHECK(run("--help").code == 0);
  check_refused("bogus", {"bogus", "quantise", "verify"});
  for (const char* command : {"inspect", "verify", "quantise", "imatrix", "convert", "merge", "evaluate", "generate", "compare"}) {
    const outcome o = run(std::string{command} + " --help");
    CHECK(o.code == 0);
    CHECK(o.out.find("--threads") != std::string::npos);
    CHECK(o.out.find("--json") != std::string::npos);
  }
}

TEST_CASE("an importance matrix is written, both kinds, and quantised by") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), text = folder / "text.txt";
  std::string words;
  for (int i = 0; i < 400; ++i) words += "abcdefghij klmno"[i * 7 % 16];
  write_bytes(text, words);
  const std::string calibration = " --calibration-length 32 --calibration " + text, with = " --format q4_0 --imatrix ";
  REQUIRE(run("imatrix " + model + " " + folder / "m.gguf" + calibration).code == 0);
  REQUIRE(run("imatrix --dat " + model + " " + folder / "m.dat" + calibration).code == 0);
  REQUIRE(run("quantise " + model + " " + folder / "new.gguf" + with + folder / "m.gguf").code == 0);
  REQUIRE(run("quantise " + model + " " + folder / "old.gguf" + with + folder / "m.dat").code == 0);
  REQUIRE(run("quantise " + model + " " + folder / "rtn.gguf" + " --format q4_0").code == 0);
  const auto hashes = [&](const std::string& name) {
    std::map<std::string, std::string> all;
    const auto j = nlohmann::json::parse(run("verify --json " + folder / name).out);
    for (const auto& t : j["tensors"]) all[t["name"]] = t["sha256"];
    return all;
  };
  const auto fresh = hashes("new.gguf"), nearest = hashes("rtn.gguf");
  CHECK(fresh == hashes("old.gguf"));
  for (const auto& entry : fresh) {
    const std::string& name = entry.first;
    CAPTURE(name);
    CHECK((entry.second != nearest.at(name)) == (name.find("blk.") == 0 && name.find("norm") == std::string::npos));
  }
  // A budget chooses formats by itself.
  const outcome within = run("quantise --json " + model + " " + folder / "within.gguf" + " --budget 7" + calibration);
  CAPTURE(within.err);
  REQUIRE(within.code == 0);
  const auto spent = nlohmann::json::parse(within.out);
  CHECK(spent["arithmetic_bytes"].get<double>() <= 7.0 / 8 * spent["parameters"].get<double>());
  check_refused("imatrix " + model + " " + folder / "x.gguf", {"--calibration"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + with + folder / "missing", {"missing"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + with + text, {"text.txt"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + with + folder / "m.gguf" + " --method gptq", {"--imatrix", "gptq"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + with + folder / "m.gguf" + calibration, {"--imatrix", "--calibration"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + with + folder / "rtn.gguf", {"rtn.gguf"});
}

TEST_CASE("verify hashes good files and names what is wrong with bad ones") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder);
  REQUIRE(run("quantise " + model + " " + folder / "m.gguf" + " --format q8_0").code == 0);
  const outcome good = run("verify --json " + folder / "m.gguf");
  REQUIRE(good.code == 0);
  const auto j = nlohmann::json::parse(good.out);
  CHECK(j["findings"].empty());
  for (const auto& t : j["tensors"]) CHECK(t["sha256"].get<std::string>().size() == 64);

  std::string bytes = read_bytes(folder / "m.gguf");  // the last tensor's last block: 34 bytes, of which the first two are its scale
  const std::size_t last_norm = 64 * sizeof(float);   // output_norm.weight comes last
  bytes.replace(bytes.size() - last_norm, 4, std::string("\0\0\x80\x7f", 4));
  write_bytes(folder / "bad.gguf", bytes);
  const outcome bad = run("verify " + folder / "bad.gguf");
  CHECK(bad.code == 2);
  CHECK(bad.err == "lowbit: " + folder / "bad.gguf" + ": 1 finding in 20 tensors\n");
  CHECK(bad.out.find("output_norm.weight: 1 weights are NaN or infinite, the first at row 0, column 0") != std::string::npos);

  std::string zeros = read_bytes(folder / "m.gguf");
  std::fill_n(zeros.end() - static_cast<std::ptrdiff_t>(last_norm), last_norm, '\0');  // as vectors may be
  write_bytes(folder / "zero.gguf", zeros);
  CHECK(run("verify " + folder / "zero.gguf").code == 0);
  std::fill_n(zeros.end() - static_cast<std::ptrdiff_t>(last_norm) - 34, 34, '\0');  // the last block of the matrix before
  write_bytes(folder / "zero.gguf", zeros);
  CHECK(run("verify " + folder / "zero.gguf").code == 2);
  CHECK(run("verify --allow-zero-blocks " + folder / "zero.gguf").code == 0);
  REQUIRE(run("quantise " + model + " " + folder / "hf" + " --format nf4").code == 0);
  CHECK(run("verify " + folder / "hf").code == 0);
  check_refused("verify " + model, {"tiny.bin", "not a GGUF file"});
  std::string named = read_bytes(folder / "m.gguf");
  named[named.find("output_norm.weight") + 6] = '\n';
  named.resize(named.size() - 4);
  write_bytes(folder / "named.gguf", named);
  const outcome cut = run("verify " + folder / "named.gguf");
  CHECK(cut.code == 2);
  CHECK(lines(cut.err) == 1);
  CHECK(cut.err.find("output\\x0anorm.weight") != std::string::npos);
  for (const char* const command : {"verify ", "inspect --json "})
    CHECK(WEXITSTATUS(std::system(("\"" LOWBIT_CLI "\" " + (command + folder / "m.gguf") + " > /dev/full 2> /dev/null").c_str())) == 2);
  CHECK(!std::filesystem::exists(folder / "parts"));
}

TEST_CASE("verify looks at quantised weights in folders: what lowbit writes is good, and a weight whose parts do not fit is named") {
  const temporary_folder folder;
  const std::string source = write_tiny_model(folder);
  for (const std::string_view layout : lowbit::layout_names()) {
    const std::string name{layout}, out = folder / name;
    CAPTURE(name);
    REQUIRE(run("convert " + source + ' ' + out + " --to " + name).code == 0);
    const outcome good = run("verify " + out);
    CHECK_MESSAGE(good.code == 0, good.out);
    std::string bytes = read_bytes(out + "/model.safetensors");
    for (const std::string part : {"q_proj.scales\"", "q_proj.weight_scale\"", "q_proj.SCB\"", "q_proj.weight.absmax\"", "q_proj_scales\""})
      if (const std::size_t at = bytes.find(part); at != bytes.npos) bytes[at + part.size() - 2] = '_';  // one part has another name
    write_bytes(out + "/model.safetensors", bytes);
    const outcome bad = run("verify " + out);
    CHECK(bad.code == 2);
    CHECK_MESSAGE(bad.out.find("q_proj") != std::string::npos, bad.out);
  }
  // Codes without their scales' partner: the codes' tensor is missing.
  const std::string out = folder / "gptq_v2";
  std::string bytes = read_bytes(out + "/model.safetensors");
  bytes[bytes.find("up_proj.qweight\"") + 14] = '_';
  write_bytes(out + "/model.safetensors", bytes);
  CHECK(run("verify " + out).out.find("belongs to a weight whose codes are missing") != std::string::npos);
}

TEST_CASE("a cache of panels is made, used, and made again when the model changes") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), gguf = folder / "m.gguf", cache = folder / "m.gguf.panels";
  REQUIRE(run("quantise " + model + " " + gguf + " --format q4_0").code == 0);
  const std::string generate = "generate --temperature 0 -n 20 --prompt abc " + gguf;
  const auto text = [&](const std::string& arguments) {
    const outcome o = run(arguments + " --json");
    REQUIRE(o.code == 0);
    return nlohmann::json::parse(o.out)["text"].get<std::string>();
  };
  const std::string expected = text(generate);
  CHECK(!std::filesystem::exists(cache));
  CHECK(text(generate + " --cache") == expected);
  REQUIRE(std::filesystem::exists(cache));
  // The second start takes the panels from the cache: with other panels in it, the model says something else.
  const std::string good = read_bytes(cache);
  std::string other = good;
  for (std::size_t i = other.size() / 2; i < other.size(); i += 3) other[i] = static_cast<char>(other[i] ^ 0x15);
  CHECK(run("verify " + cache).code == 0);
  write_bytes(cache, other);
  CHECK(text(generate + " --cache") != expected);
  const outcome damaged = run("verify " + cache);
  CHECK(damaged.code == 2);
  CHECK(damaged.out.find("its panels are damaged") != std::string::npos);
  write_bytes(cache, good.substr(0, good.size() / 2));  // cut: not used, written anew
  CHECK(text(generate + " --cache") == expected);
  CHECK(read_bytes(cache) == good);
  REQUIRE(run("quantise " + model + " " + gguf + " --format q8_0").code == 0);
  const std::string changed = text(generate);
  CHECK(text(generate + " --cache") == changed);
  CHECK(read_bytes(cache) != good);
  // Of the model as stored only: weights that are quantised as they are loaded neither come from it nor go into it.
  const std::string before = read_bytes(cache);
  CHECK(text(generate + " --quantise q4_0 --cache") == text(generate + " --quantise q4_0"));
  CHECK(read_bytes(cache) == before);
}

TEST_CASE("bad input gets one line and exit code 2") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), text = folder / "text.txt";
  write_bytes(text, "a small text to be predicted");
  REQUIRE(run("quantise " + model + " " + folder / "m.gguf" + " --format q8_0").code == 0);
  const std::string gguf = read_bytes(folder / "m.gguf");
  const auto variant = [&](const std::string& name, const std::string& bytes) {
    write_bytes(folder / name, bytes);
    return folder / name;
  };

  check_refused("", {"subcommand"});
  check_refused("frobnicate", {"frobnicate", "quantise"});
  check_refused("quantise " + model + " " + folder / "x.gguf", {"--format"});
  check_refused("inspect " + folder / "missing.gguf", {"missing.gguf", "No such file"});
  check_refused("generate " + folder / "missing.bin", {"missing.bin"});
  check_refused("generate " + folder / "", {"config.json"});
  check_refused("inspect " + variant("empty.gguf", ""), {"empty.gguf"});
  check_refused("inspect " + variant("magic.gguf", "GGML" + gguf.substr(4)), {"magic.gguf", "not a GGUF file"});
  check_refused("evaluate " + variant("cut.gguf", gguf.substr(0, gguf.size() - 1)) + " --text " + text, {"cut.gguf", "tensor"});
  check_refused("inspect " + variant("cut.safetensors", std::string("\x40\0\0\0\0\0\0\0{", 9)), {"cut.safetensors"});

  std::string typed = gguf;  // the type of the first tensor follows its name, rank and two dimensions
  const std::size_t at = typed.find("token_embd.weight") + 17 + 4 + 16;
  typed[at] = 99;
  check_refused("generate " + variant("type.gguf", typed), {"type.gguf", "token_embd.weight", "99"});
  std::string shaped = gguf;  // head_count 4 becomes 8: then the heads are too small for the matrices
  shaped[shaped.find("llama.attention.key_length") + 26 + 4] = 8;
  check_refused("generate " + variant("shape.gguf", shaped), {"shape.gguf"});

  std::string nan = tiny_checkpoint({});
  nan.replace(28 + 4 * 1000, 4, std::string("\0\0\xc0\x7f", 4));
  write_bytes(folder / "nan-tok.bin", tiny_tokeniser(270));
  check_refused("quantise " + variant("nan.bin", nan) + " " + folder / "nan.gguf" + " --format q4_0", {"token_embd.weight"});
  check_refused("generate " + folder / "nan.bin", {"nan.bin", "token_embd.weight"});
  CHECK(!std::filesystem::exists(folder / "nan.gguf"));

  check_refused("evaluate " + model + " --text " + variant("latin1.txt", "na\xefve"), {"latin1.txt", "UTF-8", "2"});
  check_refused("evaluate " + model + " --text " + variant("empty.txt", ""), {"empty.txt"});
  check_refused("evaluate " + model + " --text " + folder / "missing.txt", {"missing.txt"});
  check_refused("generate " + model + " --prompt '\xff'", {"UTF-8"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + " --format q9_9", {"q9_9", "q4_0", "iq4_nl", "nf4", "u<b>_g<n>"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + " --format q4_0 --method magic", {"magic", "rtn", "mse"});
  check_refused("compare " + model + " --formats q4_0,nope", {"nope", "q4_0"});

  for (const char* nonsense : {"--temperature nan", "--temperature -1", "--top-p 5"}) check_refused("generate " + model + " " + nonsense, {"is not between"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + " --format s4_g64", {"x.gguf", "folder"});
  REQUIRE(std::system(("mkfifo " + folder / "pipe").c_str()) == 0);
  check_refused("generate " + folder / "pipe", {"pipe", "regular"});
  check_refused("quantise " + model + " " + folder / "pipe" + " --format q4_0", {"pipe", "regular"});
  CHECK(std::filesystem::is_fifo(folder / "pipe"));
  std::filesystem::create_symlink("linked.gguf", folder / "link");
  REQUIRE(run("quantise " + model + " " + folder / "link" + " --format q4_0").code == 0);
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(std::filesystem::is_regular_file(folder / "linked.gguf"));
  // A file that may not grow: an error like a full disk, and nothing is left.
  const outcome full = run("quantise " + model + " " + folder / "full.gguf" + " --format f32", "sh -c 'ulimit -f 64; exec \"$0\" \"$@\"' ");
  CHECK(full.code == 2);
  CHECK(full.err.find("full.gguf") != std::string::npos);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) CHECK(entry.path().filename().string().find("full") == std::string::npos);

  const std::string calibrated = "quantise " + model + " " + folder / "x.gguf" + " --format q4_0 --method gptq";
  check_refused(calibrated, {"gptq", "--calibration"});
  check_refused("quantise " + model + " " + folder / "x.gguf" + " --format q4_0 --method rtn --calibration " + text, {"--calibration", "rtn"});
  check_refused(calibrated + " --calibration " + folder / "latin1.txt", {"latin1.txt", "UTF-8", "2"});
  check_refused(calibrated + " --calibration " + folder / "empty.txt", {"empty.txt", "too few"});
  check_refused(calibrated + " --calibration " + text, {"text.txt", "too few", "64"});
  check_refused(calibrated + " --calibration " + folder / "missing.txt", {"missing.txt"});
  check_refused(calibrated + " --override nosuch=q8_0 --calibration " + text, {"nosuch"});
  check_refused(calibrated + " --override token_embd.weight --calibration " + text, {"PATTERN=FORMAT"});
  check_refused("quantise " + folder / "nan.bin" + " " + folder / "nan.gguf" + " --format q4_0 --method gptq --calibration-length 8 --calibration " + text,
                {"token_embd.weight"});
  CHECK(!std::filesystem::exists(folder / ".nan.gguf.unfinished"));
  check_refused("quantise " + model + " " + folder / "no/such/folder.gguf" + " --format q4_0", {"folder.gguf"});
  check_refused("quantise " + model + " " + folder / "" + " --format q4_0", {"directory"});
  check_refused("quantise " + model + " " + model + " --format s1_g32", {"s1_g32"});
  REQUIRE(run("quantise " + model + " " + folder / "other.gguf" + " --format f16").code == 0);
  REQUIRE(run("quantise " + model + " " + folder / "hf" + " --format nf4").code == 0);
  auto config = nlohmann::json::parse(read_bytes(folder / "hf/config.json"));
  config["intermediate_size"] = config["intermediate_size"].get<int>() * 2;
  write_bytes(folder / "hf/config.json", config.dump());
  check_refused("quantise " + (folder / "hf") + " " + folder / "contradicts.gguf" + " --format q4_0", {"model.layers.0.mlp.gate_proj.weight", "configuration says"});
  CHECK(!std::filesystem::exists(folder / "contradicts.gguf"));
  write_tiny_model(folder, {.vocabulary = 280}, "larger");
  check_refused("evaluate " + model + " --reference " + folder / "larger.bin" + " --text " + text, {"vocabulary"});
}

TEST_CASE("quantise, inspect, evaluate, generate and compare speak JSON") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), out = folder / "q.gguf", text = folder / "text.txt";
  write_bytes(text, "the quick brown fox jumps over the lazy dog. the quick brown fox");
  const auto json_of = [&](const std::string& arguments) {
    const outcome o = run(arguments + " --json");
    CAPTURE(o.err);
    REQUIRE(o.code == 0);
    return nlohmann::json::parse(o.out);
  };
  const auto quantised = json_of("quantise " + model + " " + out + " --format q4_0");
  CHECK(quantised["file_bytes"] == std::filesystem::file_size(out));
  CHECK(quantised["arithmetic_bytes"] == quantised["parameters"].get<std::size_t>() * 18 / 32);

  const auto inspected = json_of("inspect " + out);
  CHECK(inspected["metadata"]["general.architecture"] == "llama");
  CHECK(inspected["types"]["q4_0"]["tensors"] == 1 + 2 * 7);
  CHECK(inspected["types"]["q4_0"]["bits_per_element"] == 4.5);
  // llama.cpp's mix of that name, whose output matrix has six bits (here eight, as 256 does not divide its rows).
  json_of("quantise " + model + " " + folder / "mixed.gguf" + " --format Q4_0");
  const auto mixed = json_of("inspect " + folder / "mixed.gguf");
  CHECK(mixed["types"]["q4_0"]["tensors"] == 2 * 7);
  CHECK(mixed["types"]["q8_0"]["tensors"] == 1);
  CHECK(mixed["metadata"]["general.file_type"] == 2);
  // Where matrices have formats of their own, the arithmetic is theirs.
  const auto all_wider = json_of("quantise " + model + " " + folder / "wider.gguf" + " --format q4_0 --override '*=q8_0'");
  CHECK(all_wider["arithmetic_bytes"] == quantised["parameters"].get<std::size_t>() * 34 / 32);

  const auto evaluated = json_of("evaluate " + out + " --reference " + model + " --text " + text);
  for (const char* key : {"tokens", "nll", "perplexity", "kl_mean", "kl_p99", "top1_agreement"}) CHECK(evaluated[key].is_number());
  CHECK(evaluated["kl_mean"].get<double>() > 0.0);
  const auto same = json_of("evaluate " + model + " --reference " + model + " --text " + text);
  CHECK(same["kl_mean"] == 0.0);
  CHECK(same["top1_agreement"] == 1.0);
  CHECK(json_of("evaluate " + model + " --text " + text + " --tokens 10")["tokens"] == 10);

  const auto greedy = json_of("generate " + model + " --prompt hello --tokens 5");
  CHECK(greedy["text"].get<std::string>().starts_with("hello"));
  CHECK(greedy["stopped_by"] == "tokens");
  // More than the model's context has room for: said, in either form.
  const std::string endless = "generate " + model + " --prompt hello --tokens 5000";
  const auto cut = json_of(endless);
  CHECK(cut["stopped_by"] == "context");
  CHECK(cut["generated_tokens"].get<std::size_t>() < 5000);
  CHECK(run(endless).err.find("context of") != std::string::npos);
  CHECK(greedy == [&] {
    auto again = json_of("generate " + model + " --prompt hello --tokens 5");
    for (const char* speed : {"prompt_tokens_per_second", "decode_tokens_per_second"}) again[speed] = greedy[speed];
    return again;
  }());

  const auto table = json_of("compare " + model + " --formats q8_0,nf4,s1_g32 --methods rtn --tokens 40 --threads 1");
  REQUIRE(table.size() == 1 + 3);
  for (const auto& row : table) {
    for (const char* key : {"bits_per_weight", "perplexity", "kl_mean", "decode_tokens_per_second", "prompt_tokens_per_second", "quantise_seconds"})
      CHECK(row[key].is_number());
    CHECK(row["needs_data"] == false);
  }
  CHECK(table[0]["format"] == "f32");
  CHECK(table[0]["kl_mean"].get<double>() < 1e-9);
  CHECK(table[1]["format"] == "q8_0");
  CHECK(table[1]["save_as"] == "gguf");
  CHECK(table[1]["file_bytes"].get<std::size_t>() < table[0]["file_bytes"].get<std::size_t>() / 2);
  CHECK(table[2]["save_as"] == "bitsandbytes");
  CHECK(table[3]["save_as"].is_null());
  CHECK(table[3]["kl_mean"].get<double>() > table[1]["kl_mean"].get<double>());
}

TEST_CASE("convert gives every tensor a verdict, and with --exact-only writes nothing that would have to be quantised anew") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder), packed = folder / "packed", normal = folder / "normal";
  REQUIRE(run("convert " + model + " " + packed + " --to compressed-tensors --format s4_g32").code == 0);
  REQUIRE(run("convert " + model + " " + normal + " --to bitsandbytes --format nf4").code == 0);
  const auto verdicts = [&](const std::string& arguments) {
    const outcome o = run("convert --json " + arguments);
    CAPTURE(o.err);
    REQUIRE(o.code == 0);
    return nlohmann::json::parse(o.out);
  };
  const auto of = [](const nlohmann::json& all, const std::string& tensor) {
    for (const auto& t : all["tensors"])
      if (t["tensor"] == tensor) return t;
    return nlohmann::json();
  };
  const auto kept = verdicts(packed + " " + folder / "gptq" + " --to gptq --exact-only");
  CHECK(kept["exact"] == true);
  CHECK(kept["target"] == "gptq");
  REQUIRE(kept["tensors"].size() == 20);
  for (const auto& t : kept["tensors"]) {
    CHECK(t["verdict"] == "exact");
    CHECK(t["relative_error"] == 0.0);
  }
  const auto moved = verdicts(packed + " " + folder / "m.gguf" + " --to gguf --exact-only");
  CHECK(of(moved, "blk.1.attn_q.weight")["verdict"] == "exact after permutation");
  CHECK(of(moved, "blk.1.attn_v.weight")["verdict"] == "exact");
  CHECK(of(moved, "blk.1.attn_v.weight")["to"] == "q4_0");
  CHECK(moved["file_bytes"] == std::filesystem::file_size(folder / "m.gguf"));

  // NF4's table is not one of GGUF's.
  check_refused("convert " + normal + " " + folder / "n.gguf" + " --to gguf --exact-only", {"blk.0.", "nf4", "has no exact form in gguf", "relative error", "nothing was written"});
  CHECK(!std::filesystem::exists(folder / "n.gguf"));
  const auto anew = verdicts(normal + " " + folder / "n.gguf" + " --to gguf --format q4_k");  // 128 columns: falls back to q5_0
  CHECK(anew["exact"] == false);
  const auto down = of(anew, "blk.0.ffn_down.weight");
  CHECK(down["verdict"] == "re-quantised");
  CHECK(down["codes_kept"] == false);
  CHECK(down["relative_error"].get<double>() > 0.001);
  CHECK(down["relative_error"].get<double>() < 0.1);
  // As text: a line for each tensor, an empty one, and the sum.
  const outcome text = run("convert " + normal + " " + folder / "n8.gguf" + " --to gguf --format q8_0");
  CHECK(text.code == 0);
  CHECK(lines(text.out) == 20 + 2);
  CHECK(text.out.find("re-quantised, relative error ") != std::string::npos);
  CHECK(text.out.find("15 re-quantised") != std::string::npos);  // the embedding is one of them

  check_refused("convert " + packed + " " + folder / "x", {"--to"});
  check_refused("convert " + packed + " " + folder / "x" + " --to nowhere", {"nowhere", "gptq_v2", "compressed-tensors"});
  check_refused("convert " + packed + " " + folder / "x" + " --to gptq --format q9_9", {"q9_9"});
  check_refused("convert " + packed + " " + folder / "x" + " --to gguf --format nf4", {"GGUF does not hold nf4"});
  check_refused("convert " + packed + " " + normal + " --to gptq", {"normal", "exists already"});
  check_refused("quantise " + packed + " " + normal + " --format s4_g32 --method gptq --calibration missing.txt", {"normal", "exists already"});  // before any work
  check_refused("quantise " + packed + " " + normal + ".gguf --format s4_g32", {".gguf", "does not hold s4_g32", "folder"});
  check_refused("convert " + folder / "missing" + " " + folder / "x" + " --to gptq", {"missing"});
  CHECK(!std::filesystem::exists(folder / "x"));
}

TEST_CASE("quantise needs memory for the largest tensor, not for the model, and leaves nothing when it is stopped") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder, {.dim = 512, .hidden = 2048, .layers = 4, .heads = 8, .kv_heads = 8, .vocabulary = 512, .positions = 8});
  const std::string out = folder / "big.gguf";
  const outcome o = run("quantise " + model + " " + out + " --format q4_0 --threads 1 --json");
  REQUIRE(o.code == 0);
  const auto j = nlohmann::json::parse(o.out);
  const auto bytes = [&](const char* key) { return j[key].get<std::size_t>(); };
  REQUIRE(bytes("source_bytes") > 12 * bytes("largest_tensor_float_bytes"));
  if (!instrumented) CHECK(bytes("peak_memory_bytes") - bytes("memory_before_bytes") < 3 * bytes("largest_tensor_float_bytes") + (8u << 20));

  std::filesystem::remove(out);
  const outcome stopped = run("quantise " + model + " " + out + " --format iq4_nl --method mse --threads 1", stopped_at(folder / ".big.gguf.partial-*", "TERM"));
  CHECK(stopped.code != 0);
  std::set<std::string> left;
  for (const auto& e : std::filesystem::directory_iterator{folder.path()}) left.insert(e.path().filename().string());
  CHECK(left == std::set<std::string>{"tiny.bin", "tiny-tok.bin"});
}

TEST_CASE("a calibrated run that is stopped leaves no output, and goes on where it was") {
  const temporary_folder folder;
  const std::string model = write_tiny_model(folder, {.dim = 128, .hidden = 512, .layers = 6, .heads = 4, .kv_heads = 2}), text = folder / "text.txt";
  std::string words;
  for (int i = 0; i < 6000; ++i) words += static_cast<char>('a' + i * i % 7 + i % 11);
  write_bytes(text, words);
  const std::string options = " --format q4_0 --method gptq --threads 1 --calibration-tokens 4096 --calibration " + text, work = folder / ".out.gguf.unfinished";
  REQUIRE(run("quantise " + model + " " + folder / "whole.gguf" + options).code == 0);
  CHECK(!std::filesystem::exists(folder / ".whole.gguf.unfinished"));

  // Interrupted as soon as two steps are there.
  const outcome stopped = run("quantise " + model + " " + folder / "out.gguf" + options, stopped_at(work + "/step-1", "INT"));
  CHECK(stopped.code != 0);
  CHECK(stopped.err.find("--resume") != std::string::npos);
  CHECK(!std::filesystem::exists(folder / "out.gguf"));
  CHECK(std::filesystem::exists(work + "/step-1"));

  check_refused("quantise " + model + " " + folder / "out.gguf" + options + " --seed 43 --resume", {"another model, text or options"});
  REQUIRE(run("quantise " + model + " " + folder / "out.gguf" + options + " --resume").code == 0);
  CHECK(read_bytes(folder / "out.gguf") == read_bytes(folder / "whole.gguf"));
  CHECK(!std::filesystem::exists(work));
}
