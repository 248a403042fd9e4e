// Adapters in the example engine: run beside a model, merged into it, kept where merging loses them; and every way in which one may not fit.
#include "command.hpp"

#include "files/adapter.hpp"
#include "files/names.hpp"

#include <lowbit/io/gguf_adapter.hpp>
#include <lowbit/io/peft_adapter.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <limits>

using namespace llm;

namespace {

/// An adapter of all matrices of the tiny model, GGUF's names and order of rows. With `pool`, the same over so many inputs.
lowbit::adapter tiny_adapter(std::size_t rank = 3, float scale = 0.1f, std::size_t pool = 1) {
  const tiny_shape s;
  const auto dim = static_cast<std::size_t>(s.dim), hidden = static_cast<std::size_t>(s.hidden), kv = static_cast<std::size_t>(s.dim / s.heads * s.kv_heads);
  std::minstd_rand random{7};
  const auto floats = [&](std::size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(random()) / static_cast<float>(random.max()) - 0.5f;
    return v;
  };
  lowbit::adapter a;
  const std::tuple<const char*, std::size_t, std::size_t> shapes[] = {{"attn_q.weight", dim, dim}, {"attn_k.weight", kv, dim}, {"attn_v.weight", kv, dim}, {"attn_output.weight", dim, dim},
                                                                      {"ffn_gate.weight", hidden, dim}, {"ffn_up.weight", hidden, dim}, {"ffn_down.weight", dim, hidden}};
  for (std::size_t layer = 0; layer < 2; ++layer)
    for (const auto& [part, rows, cols] : shapes) {
      lowbit::low_rank_factors f{rows, cols, rank, floats(rank * cols), floats(rows * rank), scale};
      for (std::size_t k = 0; k < rank; ++k)
        for (std::size_t c = 0; c < cols; ++c) f.a[k * cols + c] = f.a[k * cols + c / pool * pool];
      a.weights.emplace(layer_name(layer, part), std::move(f));
    }
  return a;
}

/// The same with Hugging Face's names and order: row s * d/2 + i of a head is GGUF's row 2i + s.
lowbit::adapter as_hf(const lowbit::adapter& a) {
  lowbit::adapter out;
  constexpr std::size_t d = 16;  // head size
  for (const auto& [name, f] : a.weights) {
    lowbit::low_rank_factors g = f;
    if (is_query(name) || is_key(name))
      for (std::size_t r = 0; r < f.rows; ++r) {
        const std::size_t head = r / d, s = r % d % 2, i = r % d / 2;
        for (std::size_t k = 0; k < f.rank; ++k) g.b[(head * d + s * d / 2 + i) * f.rank + k] = f.b[r * f.rank + k];
      }
    out.weights.emplace(*hf_name(name), g);
  }
  return out;
}

nlohmann::json json_of(const std::string& arguments) {
  const outcome o = run(arguments + " --json");
  CAPTURE(arguments);
  REQUIRE_MESSAGE(o.code == 0, o.err);
  return nlohmann::json::parse(o.out);
}

/// A tiny model, a text and an adapter of every kind.
struct scene {
  temporary_folder folder;
  std::string model = write_tiny_model(folder), text = folder / "text.txt", gguf = folder / "a.gguf", peft = folder / "peft";

  explicit scene(const lowbit::adapter& a = tiny_adapter()) {
    std::string words;
    for (int i = 0; i < 400; ++i) words += static_cast<char>('a' + (i * i + i / 7) % 26);
    write_bytes(text, words);
    REQUIRE(lowbit::write_gguf_adapter(gguf, a).ok());
    REQUIRE(lowbit::write_peft_adapter(peft, as_hf(a), "tiny").ok());
  }
  [[nodiscard]] double nll(const std::string& arguments) const { return json_of("evaluate " + arguments + " --activations exact --text " + text)["nll"].get<double>(); }
  [[nodiscard]] double kl(const std::string& arguments, const std::string& reference) const {
    return json_of("evaluate " + arguments + " --activations exact --text " + text + " --reference " + reference)["kl_mean"].get<double>();
  }
};

}  // namespace

TEST_CASE("adapters of both kinds of file are the same beside a model, and merged into its floats") {
  const scene s;
  const double base = s.nll(s.model), gguf = s.nll(s.model + " --adapter " + s.gguf), peft = s.nll(s.model + " --adapter " + s.peft);
  CHECK(std::fabs(gguf - base) > 1e-3);
  CHECK(peft == doctest::Approx(gguf).epsilon(1e-9));
  REQUIRE(run("merge " + s.model + " " + s.peft + " " + s.folder / "f32.gguf" + " --format f32").code == 0);
  // Factors of 8 bits err by at most a 254th each: a 127th of what the adapter changes, and its square in divergence.
  const double effect = s.kl(s.model, s.folder / "f32.gguf"), beside = s.kl(s.model + " --adapter " + s.gguf, s.folder / "f32.gguf");
  CHECK(beside < effect / (127.0 * 127.0));
  CHECK(std::fabs(s.nll(s.folder / "f32.gguf") - gguf) < std::sqrt(2 * effect) / 127);  // a divergence is half the square of what log-probabilities change by

  // Twice the adapter is the adapter of twice the scale.
  REQUIRE(lowbit::write_gguf_adapter(s.folder / "twice.gguf", tiny_adapter(3, 0.2f)).ok());
  CHECK(s.nll(s.model + " --adapter " + s.gguf + " --adapter " + s.peft) == doctest::Approx(s.nll(s.model + " --adapter " + s.folder / "twice.gguf")).epsilon(1e-5));
  const auto once = json_of("generate " + s.model + " -n 12 --activations exact --prompt abc"), adapted = json_of("generate " + s.model + " -n 12 --activations exact --prompt abc --adapter " + s.peft);
  const auto merged = json_of("generate " + s.folder / "f32.gguf" + " -n 12 --activations exact --prompt abc");
  CHECK(adapted["tokens"] == merged["tokens"]);
  CHECK(adapted["tokens"] != once["tokens"]);
}

TEST_CASE("merging says what is left of the adapter, and keeps what is lost beside the output") {
  const scene s;
  REQUIRE(run("quantise " + s.model + " " + s.folder / "base.gguf" + " --format q4_0").code == 0);
  const std::string base = s.folder / "base.gguf", out = s.folder / "out.gguf", kept = s.folder / "out.adapter.gguf";
  REQUIRE(run("merge " + base + " " + s.gguf + " " + s.folder / "f32.gguf" + " --format f32").code == 0);
  const outcome weak = run("merge " + base + " " + s.gguf + " " + out + " --format q4_0");
  CHECK(weak.code == 0);
  CHECK(weak.err.find("warning") != std::string::npos);
  CHECK(weak.err.find("--keep-adapter") != std::string::npos);
  CHECK(run("merge " + base + " " + s.gguf + " " + out + " --format q4_0 --least 0").err.find("warning") == std::string::npos);
  CHECK(!std::filesystem::exists(kept));

  const std::string calibration = " --calibration-length 32 --calibration " + s.text;
  const auto rtn = json_of("merge " + base + " " + s.gguf + " " + out + " --format q4_0 --keep-adapter" + calibration);
  CHECK(rtn["matrices"].size() == 14);
  CHECK(rtn["adapter"] == kept);
  const double lost = s.kl(out, s.folder / "f32.gguf"), repaired = s.kl(out + " --adapter " + kept, s.folder / "f32.gguf");
  CHECK(repaired < lost);
  const auto gptq = json_of("merge " + base + " " + s.gguf + " " + s.folder / "gptq.gguf" + " --format q4_0 --method gptq" + calibration);
  double rtn_share = 0, gptq_share = 0;
  for (const auto& m : rtn["matrices"]) {
    CHECK(m["by_inputs"] == true);
    CHECK(m["format"] == "q4_0");
    rtn_share += m["survival"].get<double>() / 14;
  }
  for (const auto& m : gptq["matrices"]) gptq_share += m["survival"].get<double>() / 14;
  CHECK(gptq_share > rtn_share);
  CHECK(gptq["adapter"] == nullptr);

  // What was kept belongs to those codes and to no others.
  check_refused("evaluate " + s.folder / "gptq.gguf" + " --text " + s.text + " --adapter " + kept, {"out.adapter.gguf", "blk.0.attn_k.weight", "other weights"});
  check_refused("evaluate " + s.model + " --text " + s.text + " --adapter " + kept, {"blk.0.attn_k.weight", "is in f32", "made for the weights in q4_0"});

  // The same in a folder.
  const auto folder = json_of("merge " + s.model + " " + s.peft + " " + s.folder / "hf" + " --format s4_g32 --keep-adapter");
  CHECK(folder["adapter"] == s.folder / "hf.adapter");
  REQUIRE(run("merge " + s.model + " " + s.gguf + " " + s.folder / "f32.gguf" + " --format f32").code == 0);
  CHECK(s.kl(s.folder / "hf" + " --adapter " + s.folder / "hf.adapter", s.folder / "f32.gguf") < s.kl(s.folder / "hf", s.folder / "f32.gguf"));
}

TEST_CASE("merge writes over no adapter that it reads") {
  const scene s;
  const std::string beside = s.folder / "out.adapter.gguf", bytes = read_bytes(s.gguf);
  check_refused("merge " + s.model + " " + s.gguf + " " + s.gguf + " --format q4_0", {s.gguf, "would replace"});
  std::filesystem::copy_file(s.gguf, beside);
  check_refused("merge " + s.model + " " + beside + " " + s.folder / "out.gguf" + " --format q4_0 --keep-adapter", {beside, "would replace"});
  CHECK(read_bytes(s.gguf) == bytes);
  CHECK(read_bytes(beside) == bytes);
}

TEST_CASE("an adapter that is pooled over blocks is merged into their offsets") {
  const scene s(tiny_adapter(3, 0.1f, 32));
  const std::string base = s.folder / "base.gguf", out = s.folder / "out.gguf";
  REQUIRE(run("quantise " + s.model + " " + base + " --format q4_1").code == 0);
  const auto j = json_of("merge " + base + " " + s.peft + " " + out + " --format q4_1");
  for (const auto& m : j["matrices"]) {
    CHECK(m["exact"] == true);
    CHECK(m["survival"].get<double>() == doctest::Approx(1).epsilon(1e-6));
  }
  CHECK(s.nll(out) == doctest::Approx(s.nll(base + " --adapter " + s.gguf)).epsilon(1e-3));
}

TEST_CASE("adapters that do not fit are refused by name, and nothing is written") {
  const scene s;
  const std::string out = s.folder / "out.gguf";
  const auto refused = [&](const lowbit::adapter& a, const std::vector<std::string>& words) {
    REQUIRE(lowbit::write_gguf_adapter(s.folder / "bad.gguf", a).ok());
    check_refused("merge " + s.model + " " + s.folder / "bad.gguf" + " " + out + " --format q4_0 --keep-adapter", words);
    check_refused("evaluate " + s.model + " --text " + s.text + " --adapter " + s.folder / "bad.gguf", words);
    check_refused("generate " + s.model + " --prompt a --adapter " + s.folder / "bad.gguf", words);
    CHECK(!std::filesystem::exists(out));
    CHECK(!std::filesystem::exists(s.folder / "out.adapter.gguf"));
  };
  const auto changed = [&](const auto& change) {
    lowbit::adapter a = tiny_adapter();
    change(a);
    return a;
  };
  refused(changed([](auto& a) { a.weights["blk.2.attn_q.weight"] = a.weights["blk.1.attn_q.weight"]; }), {"bad.gguf", "blk.2.attn_q.weight", "does not have"});
  refused(changed([](auto& a) { a.weights["blk.1.attn_k.weight"] = a.weights["blk.1.attn_q.weight"]; }), {"blk.1.attn_k.weight is 32 x 64", "for 64 x 64"});
  refused(changed([](auto& a) { a.weights["token_embd.weight"] = {270, 64, 1, std::vector<float>(64), std::vector<float>(270), 1.0f}; }), {"token_embd.weight", "only the matrices of layers"});
  refused(changed([](auto& a) { a.weights["blk.0.ffn_up.weight"].b[5] = std::numeric_limits<float>::quiet_NaN(); }), {"blk.0.ffn_up.weight.lora_b", "NaN at row 1, column 2"});
  refused(changed([](auto& a) { a.bases["blk.0.ffn_up.weight"] = "q4_k"; }), {"blk.0.ffn_up.weight is in f32", "q4_k"});
  refused(changed([](auto& a) { a.bases["blk.0.ffn_up.weight"] = "f32 0123"; }), {"blk.0.ffn_up.weight", "other weights"});
  refused(changed([](auto& a) { a.architecture = "gemma"; }), {"gemma"});

  const std::string merge = "merge " + s.model + " ", to = " " + out + " --format q4_0";
  check_refused(merge + s.folder / "none.gguf" + to, {"none.gguf"});
  check_refused(merge + s.model + to, {"tiny.bin"});
  std::string bytes = read_bytes(s.peft + "/adapter_config.json");
  write_bytes(s.peft + "/adapter_config.json", bytes.replace(bytes.find("\"r\": 3"), 6, "\"r\": 4"));
  check_refused(merge + s.peft + to, {"down_proj", "of rank 3", "says 4"});
  check_refused(merge + s.gguf + to + " --method gptq", {"gptq", "--calibration"});
  check_refused(merge + s.gguf + to + " --method rotate", {"rotate"});
  check_refused(merge + s.gguf + to + " --method none", {"unknown method 'none'"});
  check_refused(merge + s.gguf + " " + out + " --format q9", {"q9"});
  CHECK(!std::filesystem::exists(out));
}

TEST_CASE("the adapter that ships turns the model of plays towards articles, also on 4 bits") {
  const temporary_folder folder;
  const std::string models = LOWBIT_SOURCE_DIR "/examples/models/", text = folder / "article.txt";
  write_bytes(text, " = The Harbour Bridge = \n\n The Harbour Bridge is a steel arch bridge that was built between 1923 and 1932 . It was designed by the "
                    "Department of Public Works , and the first of its two roads was opened in March 1932 . In the following years the bridge "
                    "became the most important road into the city , with more than 11 @,@ 000 cars a day . \n");
  const auto nll = [&](const std::string& how) { return json_of("evaluate " + models + "shakespeare --text " + text + how)["nll"].get<double>(); };
  const std::string adapter = " --adapter " + models + "shakespeare_wikitext2";
  const double gain = nll("") - nll(adapter);
  CHECK(gain > 1.0);
  CHECK(nll(" --quantise q4_0") - nll(" --quantise q4_0" + adapter) > 0.9 * gain);
}
