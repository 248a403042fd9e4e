#include "build.hpp"

#include "names.hpp"
#include "requantise.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/recode.hpp>

#include <unordered_map>

namespace llm {
namespace {

/// A tensor that a Llama of some configuration has.
struct expected {
  std::string name;
  std::size_t rows, cols;
  bool is_vector = false;
};

std::vector<expected> tensors_of(const model_config& c, bool head) {
  std::vector<expected> all{{"token_embd.weight", c.vocabulary, c.hidden}, {"output_norm.weight", 1, c.hidden, true}};
  if (head) all.push_back({"output.weight", c.vocabulary, c.hidden});
  for (std::size_t i = 0; i < c.layers; ++i) {
    const auto add = [&](std::string_view part, std::size_t rows, std::size_t cols, bool is_vector = false) {
      all.push_back({layer_name(i, part), rows, cols, is_vector});
    };
    add("attn_norm.weight", 1, c.hidden, true);
    add("attn_q.weight", c.query_size(), c.hidden);
    add("attn_k.weight", c.kv_size(), c.hidden);
    add("attn_v.weight", c.kv_size(), c.hidden);
    add("attn_output.weight", c.hidden, c.query_size());
    add("ffn_norm.weight", 1, c.hidden, true);
    add("ffn_gate.weight", c.intermediate, c.hidden);
    add("ffn_up.weight", c.intermediate, c.hidden);
    add("ffn_down.weight", c.hidden, c.intermediate);
  }
  return all;
}

using tensor_map = std::unordered_map<std::string_view, const tensor*>;

tensor_map by_name(const checkpoint& file) {
  tensor_map all;
  for (const tensor& t : file.tensors) all.emplace(t.name, &t);
  return all;
}

/// Takes the tensors of a checked model, one by one; after a failure nothing more.
class builder {
 public:
  builder(const checkpoint& file, const weight_source& source, thread_pool& threads, const lowbit::panel_cache* panels)
      : tensors_(by_name(file)), source_(source), threads_(threads), panels_(panels) {}

  [[nodiscard]] bool has(std::string_view name) const { return tensors_.contains(name); }

  void take(const std::string& name, lowbit::panel_matrix& out) {
    if (!status_) return;
    const tensor& t = *tensors_.at(name);
    if (auto ready = panels_ != nullptr ? panels_->find(name, *t.spec, t.rows, t.cols, lowbit::kernel::best_unit()) : std::nullopt) {
      out = *std::move(ready);
      return;
    }
    const weights w = take(name, source_);
    if (!status_) return;
    const auto changed = lowbit::runnable(w.view(), threads_);
    auto built = lowbit::panel_matrix::from_checked(changed ? changed->view() : w.view(), threads_);
    if (!built) return void(fail(in_tensor(name, built.error())));
    out = *std::move(built);
  }
  void take(const std::string& name, std::vector<float>& out) {
    const weights w = take(name, weight_source{stored});
    if (!status_) return;
    if (lowbit::status finite = check_finite(name, w.view(), threads_); !finite) return void(fail(std::move(finite).error()));
    out.resize(w.view().cols);
    lowbit::decode(w.view(), {out.data(), 1, out.size()});
  }
  [[nodiscard]] bool ok() const noexcept { return status_.ok(); }
  lowbit::status finish() { return std::move(status_); }

 private:
  weights take(const std::string& name, const weight_source& source) {
    if (!status_) return {};
    lowbit::result<weights> w = source(*tensors_.at(name));
    if (!w) return fail(std::move(w).error());
    return *std::move(w);
  }
  weights fail(lowbit::failure f) {
    status_ = std::move(f);
    return {};
  }

  tensor_map tensors_;
  const weight_source& source_;
  thread_pool& threads_;
  const lowbit::panel_cache* panels_;
  lowbit::status status_ = lowbit::done{};
};

}  // namespace

lowbit::result<weights> stored(const tensor& t) { return t.read(); }

weight_source as_float32(thread_pool& threads) {
  return [&threads](const tensor& t) -> lowbit::result<weights> {
    auto w = t.read();
    if (!w || w->view().spec == &lowbit::spec_of<lowbit::f32>) return w;
    const lowbit::packed_view v = w->view();
    lowbit::packed_matrix out{lowbit::spec_of<lowbit::f32>, v.rows, v.cols};
    lowbit::dequantise(v, {reinterpret_cast<float*>(out.bytes().data()), v.rows, v.cols}, threads);
    return weights{std::move(out)};
  };
}

lowbit::status check_model(const checkpoint& file) {
  const model_config& c = file.config;
  const auto in_its_file = [&](const std::string& name) { return (file.kind == "safetensors" ? hf_name(name) : std::nullopt).value_or(name); };
  if (lowbit::status valid = check(c); !valid) return valid;
  if (file.words.pieces.size() > c.vocabulary)
    return lowbit::failure{lowbit::errc::shape, "the tokenizer has " + std::to_string(file.words.pieces.size()) +
                                                    " tokens, the model " + std::to_string(c.vocabulary)};
  tensor_map unused = by_name(file);
  if (unused.size() != file.tensors.size())  // a folder with a weight's floats beside its codes
    for (const tensor& t : file.tensors)
      if (unused.at(t.name) != &t) return lowbit::failure{lowbit::errc::malformed, "tensor " + in_its_file(t.name) + " is there twice"};
  // More layers than tensors: the names alone would be more than the file can hold.
  if (c.layers > file.tensors.size())
    return lowbit::failure{lowbit::errc::shape, "the configuration says " + std::to_string(c.layers) + " layers, the file has " +
                                                    std::to_string(file.tensors.size()) + " tensors"};
  for (const expected& e : tensors_of(c, unused.contains("output.weight"))) {
    const auto found = unused.find(e.name);
    if (found == unused.end()) return lowbit::failure{lowbit::errc::not_found, "tensor " + in_its_file(e.name) + " is missing"};
    const tensor& t = *found->second;
    if (t.rows != e.rows || t.cols != e.cols || t.is_vector != e.is_vector)
      return lowbit::failure{lowbit::errc::shape, "tensor " + in_its_file(e.name) + " is " + std::to_string(t.rows) + " x " + std::to_string(t.cols) +
                                                      ", but the configuration says " + std::to_string(e.rows) + " x " + std::to_string(e.cols)};
    unused.erase(found);
  }
  if (!unused.empty())
    return lowbit::failure{lowbit::errc::unsupported, "tensor " + in_its_file(std::string(unused.begin()->first)) + " is not part of a Llama"};
  return lowbit::done{};
}

std::vector<lowbit::panel_cache::entry> matrices_of(const llama& model) {
  std::vector<lowbit::panel_cache::entry> all{{"token_embd.weight", &model.embedding}};
  if (model.head) all.push_back({"output.weight", &*model.head});
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const layer_weights& w = model.layers[i];
    const auto add = [&](std::string_view part, const lowbit::panel_matrix& m) { all.push_back({layer_name(i, part), &m}); };
    add("attn_q.weight", w.query);
    add("attn_k.weight", w.key);
    add("attn_v.weight", w.value);
    add("attn_output.weight", w.output);
    add("ffn_gate.weight", w.gate);
    add("ffn_up.weight", w.up);
    add("ffn_down.weight", w.down);
  }
  return all;
}

lowbit::result<llama> build_llama(const checkpoint& file, const weight_source& source, thread_pool& threads,
                                  const lowbit::panel_cache* panels) {
  if (lowbit::status valid = check_model(file); !valid) return std::move(valid).error();
  llama model;
  model.config = file.config;
  builder b{file, source, threads, panels};
  b.take("token_embd.weight", model.embedding);
  b.take("output_norm.weight", model.norm);
  if (b.has("output.weight")) b.take("output.weight", model.head.emplace());
  for (std::size_t i = 0; i < model.config.layers && b.ok(); ++i) {
    layer_weights& w = model.layers.emplace_back();
    const auto name = [&](std::string_view part) { return layer_name(i, part); };
    b.take(name("attn_norm.weight"), w.attention_norm);
    b.take(name("attn_q.weight"), w.query);
    b.take(name("attn_k.weight"), w.key);
    b.take(name("attn_v.weight"), w.value);
    b.take(name("attn_output.weight"), w.output);
    b.take(name("ffn_norm.weight"), w.mlp_norm);
    b.take(name("ffn_gate.weight"), w.gate);
    b.take(name("ffn_up.weight"), w.up);
    b.take(name("ffn_down.weight"), w.down);
  }
  if (lowbit::status s = b.finish(); !s) return std::move(s).error();
  return model;
}

}  // namespace llm
