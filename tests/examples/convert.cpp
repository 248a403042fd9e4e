// Conversions between kinds of file: the verdict of every tensor, what the new file computes, and what is refused.
#include "files/convert.hpp"
#include "logits.hpp"
#include "text/tokeniser.hpp"
#include "tiny_model.hpp"

#include <lowbit/quantise/by_id.hpp>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

using namespace llm;

namespace {

/// Converts a file; gives the verdicts by tensor.
std::map<std::string, verdict> convert(const std::string& from, const std::string& to, const std::string& target, const char* format, thread_pool& threads) {
  checkpoint model = opened(from);
  conversion how{target, {}};
  if (format != nullptr) how.format = *lowbit::find_format(format);
  const auto plan = conversion_plan::make(model, how, threads);
  REQUIRE_MESSAGE(plan.ok(), (plan.ok() ? "" : plan.error().message));
  const auto bytes = plan->save(to, model, threads, {});
  REQUIRE_MESSAGE(bytes.ok(), (bytes.ok() ? "" : bytes.error().message));
  std::map<std::string, verdict> all;
  for (const verdict& v : plan->verdicts()) all.emplace(v.tensor, v);
  return all;
}

/// |b - a| / |a| of a tensor, as it is read from two files.
double error_between(const std::string& a, const std::string& b, const char* name, thread_pool& threads) {
  const auto floats = [&](const std::string& path) {
    const checkpoint file = opened(path);
    auto w = as_float32(threads)(*file.find(name));
    REQUIRE_MESSAGE(w.ok(), (w.ok() ? "" : w.error().message));
    const auto* const from = reinterpret_cast<const float*>(w->view().data);
    return std::vector<double>(from, from + w->view().rows * w->view().cols);
  };
  const std::vector<double> x = floats(a), y = floats(b);
  REQUIRE(x.size() == y.size());
  double difference = 0.0, size = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += (y[i] - x[i]) * (y[i] - x[i]);
    size += x[i] * x[i];
  }
  return std::sqrt(difference / size);
}

constexpr const char* query = "blk.0.attn_q.weight";
constexpr const char* down = "blk.1.ffn_down.weight";

}  // namespace

TEST_CASE("a model is written in every layout, read again and run, and its floats come back through plain Hugging Face files") {
  const temporary_folder folder;
  thread_pool threads{2};
  const std::string original = write_tiny_model(folder);
  const std::vector<float> reference = logits_of(opened(original), stored, threads);
  for (const std::string_view target : lowbit::layout_names()) {
    CAPTURE(std::string{target});
    if (target == "compressed-tensors-padded") continue;  // the same for four bits
    const std::string out = folder / std::string{target};
    const auto verdicts = convert(original, out, std::string{target}, nullptr, threads);
    CHECK(verdicts.at(query).kind == fidelity::requantised);
    CHECK(verdicts.at(query).error > 0.0);
    CHECK(verdicts.at(query).error < 0.2);
    // (Of zero-points that are stored as their products with scales, the verdict has the rounding, and what is read has not.)
    const bool has_scaled_zeros = target == "awq_gemv_fast" || target == "llm_awq";
    CHECK(verdicts.at(down).error == doctest::Approx(error_between(original, out, down, threads)).epsilon(has_scaled_zeros ? 1e-3 : 1e-6));
    CHECK(verdicts.at("token_embd.weight").kind == fidelity::exact);
    const checkpoint again = opened(out);
    CHECK(again.layout == (target == "bitsandbytes-nested" ? "bitsandbytes" : target));
    CHECK(again.warnings.empty());
    const std::vector<float> logits = logits_of(again, stored, threads);
    CHECK(distance(reference, logits) < 0.7);
    // Plain floats have the same values.
    const std::string floats = folder / (std::string{target} + "-floats");
    for (const auto& entry : convert(out, floats, "hf", nullptr, threads)) {
      CAPTURE(entry.first);
      CHECK(entry.second.kind != fidelity::requantised);
    }
    CHECK(distance(logits, logits_of(opened(floats), stored, threads)) < (has_scaled_zeros ? 1e-2 : 1e-5));  // the floats have the rounding
    // So has the same layout, written from what was read.
    if (target == "bitsandbytes-nested") continue;
    for (const auto& [name, v] : convert(out, folder / (std::string{target} + "-2"), std::string{target}, nullptr, threads)) CHECK(v.kind == fidelity::exact);
    CHECK(read_bytes(out + "/model.safetensors") == read_bytes(folder / (std::string{target} + "-2") + "/model.safetensors"));
    CHECK(read_bytes(out + "/tokenizer.json") == read_bytes(folder / (std::string{target} + "-2") + "/tokenizer.json"));
  }
}

TEST_CASE("what keeps its codes, what needs a wider type, and what is quantised anew") {
  const temporary_folder folder;
  thread_pool threads{2};
  const std::string original = write_tiny_model(folder);
  struct { const char *layout, *format, *target, *to; fidelity kind; bool codes_kept; double error; } const cases[] = {
      {"gptq", "s4_g64", "gguf", "q4_0", fidelity::exact, true, 0.0},
      {"gptq_v2", "s8_g32", "gguf", "q8_0", fidelity::exact, true, 0.0},
      {"gptq", "s3_g32", "gguf", "q4_0", fidelity::wider, false, 0.0},
      {"gptq_v2", "u4_g64", "gguf", "q5_0", fidelity::wider, false, 0.0},
      {"awq", "u4_g32", "gguf", "q5_0", fidelity::wider, false, 0.0},
      {"gptq_v2", "u4_g64", "awq", "u4_g64", fidelity::exact, true, 0.0},
      {"awq", "u4_g64", "gptq_v2", "u4_g64", fidelity::exact, true, 0.0},
      {"awq", "u4_g64", "compressed-tensors", "u4_g64", fidelity::exact, true, 0.0},
      {"compressed-tensors", "s4_g64", "awq_gemv_fast", "s4_g64", fidelity::exact, true, 0.0},
      {"compressed-tensors", "u3_g32", "gptq_p", "u3_g32", fidelity::exact, true, 0.0},
      {"compressed-tensors-nvfp4", nullptr, "gguf", "nvfp4", fidelity::exact, true, 0.0},
      {"modelopt", nullptr, "compressed-tensors-nvfp4", "nvfp4", fidelity::exact, true, 0.0},
      {"mxfp4", nullptr, "gguf", "mxfp4", fidelity::exact, true, 0.0},
      {"compressed-tensors-mxfp4", nullptr, "mxfp4", "mxfp4", fidelity::exact, true, 0.0},
      {"bitsandbytes-int8", nullptr, "gguf", "q8_0", fidelity::requantised, true, 1e-3},
      {"bitsandbytes", nullptr, "gguf", "q4_0", fidelity::requantised, false, 0.2},
      {"bitsandbytes", nullptr, "bitsandbytes-nested", "nf4", fidelity::requantised, true, 0.05},
  };
  for (const auto& c : cases) {
    CAPTURE(std::string{c.layout});
    CAPTURE(std::string{c.target});
    const std::string from = folder / "from", to = folder / (std::string{c.target} == "gguf" ? "to.gguf" : "to");
    std::filesystem::remove_all(from);
    std::filesystem::remove_all(to);
    convert(original, from, c.layout, c.format, threads);
    const auto verdicts = convert(from, to, c.target, nullptr, threads);
    const verdict& v = verdicts.at(down);
    CHECK(v.kind == c.kind);
    CHECK(v.codes_kept == c.codes_kept);
    CHECK(v.error <= c.error);
    CHECK((c.error == 0.0) == (v.error == 0.0));
    if (c.error == 0.0) CHECK(error_between(from, to, down, threads) == 0.0);
    else CHECK(v.error == doctest::Approx(error_between(from, to, down, threads)).epsilon(1e-6));
    if (std::string{c.to} != "q4_0" || c.kind != fidelity::requantised) CHECK(v.to == c.to);
    // Queries and keys change the order of their rows on the way to GGUF.
    const bool gguf = std::string{c.target} == "gguf";
    if (gguf && c.kind == fidelity::exact) CHECK(verdicts.at(query).kind == fidelity::permuted);
    const double d = distance(logits_of(opened(from), stored, threads), logits_of(opened(to), stored, threads));
    if (c.kind == fidelity::requantised) CHECK(d < 1.0);
    else CHECK(d < 1e-5);
  }
}

TEST_CASE("zero-points that are stored as rounded products with their scales are not called exact") {
  const temporary_folder folder;
  thread_pool threads{2};
  convert(write_tiny_model(folder), folder / "gptq", "gptq_v2", "u4_g64", threads);
  for (const char* target : {"awq_gemv_fast", "llm_awq"}) {
    CAPTURE(std::string{target});
    const verdict v = convert(folder / "gptq", folder / target, target, nullptr, threads).at(down);
    CHECK(v.kind == fidelity::requantised);
    CHECK(v.codes_kept);
    // An f16's rounding of at most 2^-11, of zero-points about as large as the weights.
    CHECK(v.error > 1e-5);
    CHECK(v.error < 0x1p-11 * 4);
    CHECK(error_between(folder / "gptq", folder / target, down, threads) == 0.0);  // read as the whole zero-points that they were
    CHECK(convert(folder / target, folder / (std::string{target} + "2"), target, nullptr, threads).at(down).kind == fidelity::exact);
    // Whole zero-points are other values than the file's, by as much; floats can be the same.
    const verdict back = convert(folder / target, folder / (std::string{target} + "3"), "gptq_v2", nullptr, threads).at(down);
    CHECK(back.kind == fidelity::requantised);
    CHECK(back.codes_kept);
    CHECK(back.error == doctest::Approx(v.error).epsilon(1e-3));
    const std::string floats = folder / (std::string{target} + "4");
    const verdict plain = convert(folder / target, floats, "hf", nullptr, threads).at(down);
    CHECK(plain.from == "u4_g64");
    CHECK(plain.to == "f32");
    CHECK(plain.kind == fidelity::wider);
    CHECK(error_between(folder / "gptq", floats, down, threads) == doctest::Approx(v.error).epsilon(1e-6));
  }
  // Where every zero-point is 8 the products are exact.
  convert(write_tiny_model(folder), folder / "symmetric", "gptq_v2", "s4_g64", threads);
  CHECK(convert(folder / "symmetric", folder / "symmetric_awq", "llm_awq", nullptr, threads).at(down).kind == fidelity::exact);
}

TEST_CASE("a layout whose format is its own refuses another") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  struct { const char *target, *format; bool fine; } const cases[] = {{"modelopt", "mxfp4", false}, {"modelopt", "nvfp4", true}, {"mxfp4", "nvfp4", false},
                                                                      {"mxfp4", "mxfp4", true}, {"bitsandbytes-int8", "s8_g128", false},
                                                                      {"gptq", "f16", false}, {"bitsandbytes", "bf16", false}, {"hf", "f16", true}};
  for (const auto& c : cases) {
    const auto plan = conversion_plan::make(model, {c.target, *lowbit::find_format(c.format)}, threads);
    CHECK(plan.ok() == c.fine);
    if (!c.fine) CHECK(plan.error().message.find(c.format) != std::string::npos);
  }
}

TEST_CASE("matrices of more rows than are converted at once, and groups that divide all of them") {
  const temporary_folder folder;
  thread_pool threads{2};
  tiny_shape shape;
  shape.layers = 1;
  shape.hidden = 65568;  // the down projection is cut into 63 rows and one, and its rows are no multiple of 64
  const std::string original = write_tiny_model(folder, shape);
  for (const char* target : {"gptq", "awq"}) {
    const auto verdicts = convert(original, folder / target, target, nullptr, threads);
    const char* const expected = std::string_view(target) == "gptq" ? "s4_g32" : "u4_g32";
    for (const char* name : {query, "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"}) CHECK(verdicts.at(name).to == expected);
    CHECK(read_bytes(folder / target + "/config.json").find("\"group_size\": 32") != std::string::npos);
  }
  CHECK(convert(folder / "gptq", folder / "v2", "gptq_v2", nullptr, threads).at("blk.0.ffn_down.weight").kind == fidelity::exact);
}

TEST_CASE("matrices of several widths are told apart in the configuration, or refused") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  model.config.rope = rope_order::halves;
  const lowbit::format_spec &four = lowbit::uniform_format(4, 64, true), &eight = lowbit::uniform_format(8, 32, true);
  const auto form_of = [&](const tensor& t) -> const lowbit::format_spec& {
    if (t.is_vector || t.name == "token_embd.weight") return lowbit::spec_of<lowbit::f32>;
    return t.name.ends_with("ffn_down.weight") ? eight : four;
  };
  const tensor_forms forms = [&](const tensor& t) { return lowbit::packed_view{&form_of(t), t.rows, t.cols}; };
  const weight_source source = [&](const tensor& t) -> lowbit::result<weights> {
    auto w = t.read();
    if (!w || form_of(t).is_float()) return w;
    std::vector<float> values(t.rows * t.cols);
    lowbit::decode(w->view(), {values.data(), t.rows, t.cols});
    auto q = lowbit::quantise(*lowbit::find_format(form_of(t).name), lowbit::method::rtn, {values.data(), t.rows, t.cols}, threads);
    if (!q) return q.error();
    return weights{*std::move(q)};
  };
  const std::vector<float> expected = logits_of(model, source, threads);
  for (const char* layout : {"compressed-tensors", "gptq", "gptq_v2", "gptq_p"}) {
    CAPTURE(std::string{layout});
    const auto written = save_hf(folder / layout, model, forms, lowbit::find_layout(layout), source, {});
    REQUIRE_MESSAGE(written.ok(), (written.ok() ? "" : written.error().message));
    const checkpoint again = opened(folder / layout);
    CHECK(again.find(down)->spec->codes.bits() == 8);
    CHECK(again.find(query)->spec->codes.bits() == 4);
    CHECK(distance(expected, logits_of(again, stored, threads)) < 1e-5);
    for (const auto& [name, v] : convert(folder / layout, folder / (std::string{layout} + "2"), layout, nullptr, threads)) CHECK(v.kind == fidelity::exact);
    CHECK(read_bytes(folder / layout + "/config.json") == read_bytes(folder / layout + "2/config.json"));
  }
  const lowbit::format_spec &narrow = lowbit::uniform_format(4, 32, false), &wide = lowbit::uniform_format(4, 64, false);
  const tensor_forms groups = [&](const tensor& t) {
    return lowbit::packed_view{form_of(t).is_float() ? &form_of(t) : t.name.ends_with("ffn_down.weight") ? &wide : &narrow, t.rows, t.cols};
  };
  const auto refused = save_hf(folder / "awq", model, groups, lowbit::find_layout("awq"), source, {});
  REQUIRE_FALSE(refused.ok());
  for (const char* word : {"awq", "q_proj", "32", "down_proj", "64"}) CHECK(refused.error().message.find(word) != std::string::npos);
  CHECK(!std::filesystem::exists(folder / "awq"));
}

TEST_CASE("matrices of 7 and 4 bits in the older packing are told apart by the names in the configuration") {
  const temporary_folder folder;  // four codes of 7 bits fill a word, as four of 8 bits do
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  for (tensor& t : model.tensors)
    if (t.name == query) t.wanted = *lowbit::find_format("u4_g32");
  const requantisation how = plan_for(model, *lowbit::find_format("u7_g32"), lowbit::method::rtn);
  REQUIRE(save_model(folder / "stream", model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  convert(folder / "stream", folder / "words", "compressed-tensors-padded", nullptr, threads);
  const checkpoint words = opened(folder / "words");
  CHECK(words.find(query)->spec->codes.bits() == 4);
  CHECK(words.find(down)->spec->codes.bits() == 7);
  for (const char* name : {query, down}) CHECK(error_between(folder / "stream", folder / "words", name, threads) == 0.0);
}

TEST_CASE("values that the target's numbers cannot hold are refused by name, and nothing is written") {
  const temporary_folder folder;
  thread_pool threads{1};
  for (const float value : {1e5f, 3e38f}) {
    std::string bytes = tiny_checkpoint({});
    // Behind the header, the embedding, two attention norms and query matrices lies blk.0.attn_k.weight.
    std::memcpy(bytes.data() + 28 + 4 * (270 * 64 + 2 * 64 + 2 * 64 * 64 + 3 * 64 + 5), &value, 4);
    const std::string bin = write_tiny_model(folder);
    write_bytes(bin, bytes);
    struct { const char *target, *format; bool holds_1e5; } const cases[] = {{"hf", "f16", false}, {"gguf", "q4_0", true}, {"gguf", "q4_k", true}, {"bitsandbytes-int8", nullptr, true}};
    for (const auto& c : cases) {
      if (value < 1e6f && c.holds_1e5) continue;
      CAPTURE(std::string{c.target});
      checkpoint model = opened(bin);
      conversion how{c.target, {}};
      if (c.format != nullptr) how.format = *lowbit::find_format(c.format);
      const auto plan = conversion_plan::make(model, how, threads);
      REQUIRE_FALSE(plan.ok());
      CHECK(plan.error().message.find("blk.0.attn_k.weight") != std::string::npos);
      CHECK(plan.error().message.find("too large for") != std::string::npos);
    }
    checkpoint model = opened(bin);
    const requantisation how = plan_for(model, *lowbit::find_format("f16"), lowbit::method::rtn);
    const auto saved = save_model(folder / "large.gguf", model, how.format, [&](const tensor& t) { return requantise(t, how, threads); });
    REQUIRE_FALSE(saved.ok());
    CHECK(saved.error().message == "tensor blk.0.attn_k.weight: cannot be written in f16: a weight is not finite, at row 3, column 5");
    CHECK(!std::filesystem::exists(folder / "large.gguf"));
  }
}

TEST_CASE("a GGUF file of a mix keeps its file type where its tensors stay what they are, and is known by any name") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  model.notes.set("general.file_type", std::uint32_t{15});  // Q4_K_M
  const requantisation how = plan_for(model, *lowbit::find_format("q4_0"), lowbit::method::rtn);
  REQUIRE(save_model(folder / "mix.gguf", model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  convert(folder / "mix.gguf", folder / "same.bin", "gguf", nullptr, threads);
  const auto type_of = [](const checkpoint& file) { return file.metadata->find<std::uint32_t>("general.file_type"); };
  CHECK(type_of(opened(folder / "same.bin")) == 15u);
  checkpoint again = opened(folder / "mix.gguf");
  const auto other = plan_for(again, *lowbit::find_format("q8_0"), lowbit::method::rtn);
  REQUIRE(save_model(folder / "other.gguf", again, other.format, [&](const tensor& t) { return requantise(t, other, threads); }).ok());
  CHECK(type_of(opened(folder / "other.gguf")) == 7u);
}

TEST_CASE("plain floats have the type that is asked for, and no other format") {
  const temporary_folder folder;
  thread_pool threads{2};
  const std::string original = write_tiny_model(folder);
  const auto values_of = [](const std::string& path) {
    const checkpoint model = opened(path);
    const auto w = model.find(query)->read();
    REQUIRE(w.ok());
    std::vector<float> values(w->view().rows * w->view().cols);
    lowbit::decode(w->view(), {values.data(), w->view().rows, w->view().cols});
    return values;
  };
  convert(original, folder / "f32", "hf", nullptr, threads);
  const std::vector<float> wide = values_of(folder / "f32");
  struct float_type {
    std::string format, dtype;
    int bits;
  };
  for (const float_type& f : {float_type{"f16", "\"float16\"", 11}, float_type{"bf16", "\"bfloat16\"", 8}}) {
    CAPTURE(f.format);
    const std::string out = folder / f.format;
    const auto verdicts = convert(original, out, "hf", f.format.c_str(), threads);
    CHECK(verdicts.at(query).to == f.format);
    CHECK(verdicts.at(query).kind == fidelity::requantised);
    CHECK(verdicts.at(query).error > 0.0);
    const std::vector<float> narrow = values_of(out);
    REQUIRE(narrow.size() == wide.size());
    for (std::size_t i = 0; i < wide.size(); ++i) REQUIRE(std::fabs(narrow[i] - wide[i]) <= std::ldexp(std::fabs(wide[i]), -f.bits) + 0x1p-25f);
    CHECK(std::string{read_bytes(out + "/config.json")}.find(f.dtype) != std::string::npos);
  }
  checkpoint model = opened(original);
  const auto refused = conversion_plan::make(model, {"hf", *lowbit::find_format("q4_0")}, threads);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message.find("does not hold q4_0") != std::string::npos);
}

TEST_CASE("GGUF to Hugging Face and back keeps every byte of the weights") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  const requantisation how = plan_for(model, *lowbit::find_format("q4_0"), lowbit::method::rtn);
  REQUIRE(save_model(folder / "a.gguf", model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
  // The embedding of a quantised checkpoint is floats, so only its values come back.
  for (const char* layout : {"gptq_v2", "compressed-tensors", "awq"}) {
    const std::string hf = folder / layout, back = folder / (std::string{layout} + ".gguf");
    const auto there = convert(folder / "a.gguf", hf, layout, nullptr, threads);
    CHECK(there.at(down).kind == fidelity::exact);
    CHECK(there.at(query).kind == fidelity::permuted);
    const auto again = convert(hf, back, "gguf", nullptr, threads);
    CHECK(again.at(down).to == "q4_0");
    const checkpoint a = opened(folder / "a.gguf"), b = opened(back);
    for (const tensor& t : a.tensors) {
      if (t.name == "token_embd.weight" || t.name == "output.weight") continue;
      const auto x = t.read(), y = b.find(t.name)->read();
      REQUIRE((x.ok() && y.ok()));
      REQUIRE(x->view().size_bytes() == y->view().size_bytes());
      CHECK(std::memcmp(x->view().data, y->view().data, x->view().size_bytes()) == 0);
    }
    const auto words = tokeniser::from(a.words), words_again = tokeniser::from(b.words);
    REQUIRE((words.ok() && words_again.ok()));
    CHECK(words->encode("hello there") == words_again->encode("hello there"));
  }
}

TEST_CASE("a chat template goes from file to file") {
  const temporary_folder folder;
  thread_pool threads{2};
  const std::string hf = folder / "hf", chat = "{% for m in messages %}<s>{{ m['content'] }}\n{% endfor %}";
  convert(write_tiny_model(folder), hf, "hf", nullptr, threads);
  const auto into_gguf = [&] {
    const std::string to = folder / "out.gguf";
    std::filesystem::remove(to);
    convert(hf, to, "gguf", nullptr, threads);
    return opened(to).words.chat_template;
  };
  CHECK(into_gguf().empty());
  const auto settings = [&](const nlohmann::json& value) {
    auto j = nlohmann::json::parse(read_bytes(hf + "/tokenizer_config.json"));
    j["chat_template"] = value;
    write_bytes(hf + "/tokenizer_config.json", j.dump());
  };
  settings({{{"name", "tool_use"}, {"template", "tools"}}, {{"name", "default"}, {"template", chat}}});
  CHECK(into_gguf() == chat);
  settings(nullptr);
  CHECK(into_gguf().empty());
  settings(chat);
  CHECK(into_gguf() == chat);
  convert(folder / "out.gguf", folder / "again", "hf", nullptr, threads);
  CHECK(nlohmann::json::parse(read_bytes(folder / "again/tokenizer_config.json"))["chat_template"] == chat);
  write_bytes(hf + "/chat_template.jinja", "of its own");  // counts before the settings, as in transformers
  CHECK(into_gguf() == "of its own");
}

TEST_CASE("act-order checkpoints run, and a down projection's order is folded into gate and up") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint model = opened(write_tiny_model(folder));
  std::mt19937 random{3};
  std::map<std::string, std::vector<std::uint32_t>> orders;
  const lowbit::format_spec& format = lowbit::uniform_format(4, 32, true);
  // Matrices whose columns are quantised in a random order of the inputs: only down projections, or all.
  for (const bool all : {false, true}) {
    orders.clear();
    const auto order_of = [&](const tensor& t) -> const std::vector<std::uint32_t>* {
      if (t.is_vector || t.name == "token_embd.weight" || (!all && !t.name.ends_with("ffn_down.weight"))) return nullptr;
      auto& order = orders[t.name];
      if (order.empty()) {
        order.resize(t.cols);
        std::iota(order.begin(), order.end(), 0u);
        std::shuffle(order.begin(), order.end(), random);
      }
      return &order;
    };
    const auto is_float = [](const tensor& t) { return t.is_vector || t.name == "token_embd.weight"; };
    checkpoint hf = model;
    hf.config.rope = rope_order::halves;
    const tensor_forms forms = [&](const tensor& t) {
      const auto* const order = order_of(t);
      return lowbit::packed_view{is_float(t) ? &lowbit::spec_of<lowbit::f32> : &format, t.rows, t.cols, nullptr, order != nullptr ? order->data() : nullptr};
    };
    const weight_source source = [&](const tensor& t) -> lowbit::result<weights> {
      auto w = t.read();
      if (!w || is_float(t)) return w;
      std::vector<float> values(t.rows * t.cols), moved(t.rows * t.cols);
      lowbit::decode(w->view(), {values.data(), t.rows, t.cols});
      const auto* const order = order_of(t);
      for (std::size_t r = 0; r < t.rows; ++r)
        for (std::size_t c = 0; c < t.cols; ++c) moved[r * t.cols + c] = values[r * t.cols + (order != nullptr ? (*order)[c] : c)];
      auto packed = lowbit::quantise(*lowbit::find_format("s4_g32"), lowbit::method::rtn, {moved.data(), t.rows, t.cols}, threads);
      if (!packed) return packed.error();
      if (order != nullptr) packed->set_inputs(*order);
      return weights{*std::move(packed)};
    };
    const std::string path = folder / (all ? "all" : "down");
    const auto bytes = save_hf(path, hf, forms, lowbit::find_layout("gptq"), source, {});
    REQUIRE_MESSAGE(bytes.ok(), (bytes.ok() ? "" : bytes.error().message));
    const checkpoint read = opened(path);
    const std::vector<float> logits = logits_of(read, stored, threads);
    CHECK(distance(logits_of(read, as_float32(threads), threads), logits) < 1e-5);
    CHECK(distance(logits_of(hf, source, threads), logits) < 1e-5);

    const auto same = convert(path, folder / (std::string{"again"} + (all ? "1" : "0")), "gptq_v2", nullptr, threads);
    for (const auto& [name, v] : same) CHECK(v.kind == fidelity::exact);
    const auto gguf = convert(path, folder / "act.gguf", "gguf", nullptr, threads);
    CHECK(gguf.at(down).kind == fidelity::permuted);
    CHECK(gguf.at("blk.1.ffn_gate.weight").kind == (all ? fidelity::requantised : fidelity::permuted));
    CHECK(gguf.at(down).to == "q4_0");
    CHECK(gguf.at("blk.1.ffn_gate.weight").rows_moved);
    if (!all) CHECK(distance(logits, logits_of(opened(folder / "act.gguf"), stored, threads)) < 1e-5);
    // Nothing moves for a down projection that is quantised anew: its rows and gate's are the source's.
    const std::string anew = folder / (std::string{"nf4"} + (all ? "1" : "0"));
    const auto nf4 = convert(path, anew, "bitsandbytes", nullptr, threads);
    for (const char* name : {down, "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"}) {
      CHECK(nf4.at(name).kind == fidelity::requantised);
      CHECK(!nf4.at(name).rows_moved);
      CHECK(nf4.at(name).error == doctest::Approx(error_between(path, anew, name, threads)).epsilon(1e-6));
    }
    std::filesystem::remove(folder / "act.gguf");
  }
}

TEST_CASE("a checkpoint with a wrong label is read for what it is, and says so; damaged ones are refused") {
  const temporary_folder folder;
  thread_pool threads{1};
  const std::string original = write_tiny_model(folder), gptq = folder / "gptq";
  convert(original, gptq, "gptq_v2", "s4_g64", threads);
  const std::vector<float> logits = logits_of(opened(gptq), stored, threads);
  std::string config = read_bytes(gptq + "/config.json");
  for (std::size_t at; (at = config.find("gptq_v2")) != std::string::npos;) config.replace(at, 7, "gptq");
  write_bytes(gptq + "/config.json", config);
  const checkpoint mislabelled = opened(gptq);
  REQUIRE(!mislabelled.warnings.empty());
  CHECK(mislabelled.warnings[0].find("labelled gptq") != std::string::npos);
  CHECK(logits_of(mislabelled, stored, threads) == logits);

  std::string file = read_bytes(gptq + "/model.safetensors");
  const std::size_t at = file.find("q_proj.qzeros");
  file.replace(at, 13, "q_proj.qzerox");
  write_bytes(gptq + "/model.safetensors", file);
  const auto broken = open_checkpoint(gptq);
  REQUIRE(!broken.ok());
  CHECK(broken.error().message.find("qzero") != std::string::npos);
}
