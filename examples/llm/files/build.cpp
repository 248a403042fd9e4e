#include "build.hpp"

#include "names.hpp"
#include "requantise.hpp"

#include <lowbit/format/gguf.hpp>

#include <unordered_map>

namespace llm {
namespace {

class builder {
 public:
  builder(const checkpoint& file, const weight_source& source, thread_pool& threads) : source_(source), threads_(threads) {
    for (const tensor& t : file.tensors) unused_.emplace(t.name, &t);
  }

  [[nodiscard]] bool has(const std::string& name) const { return unused_.contains(name); }

  void take(const std::string& name, std::size_t rows, std::size_t cols, lowbit::panel_matrix& out) {
    const weights w = take(name, rows, cols, false);
    if (status_) out = lowbit::panel_matrix::from(w.view(), threads_);
  }
  void take(const std::string& name, std::size_t size, std::vector<float>& out) {
    const weights w = take(name, 1, size, true);
    if (!status_) return;
    out.resize(size);
    lowbit::decode(w.view(), {out.data(), 1, size});
  }
  [[nodiscard]] bool ok() const noexcept { return status_.ok(); }
  lowbit::status finish() {
    if (status_ && !unused_.empty())
      return lowbit::failure{lowbit::errc::unsupported, "tensor " + unused_.begin()->first + " is not part of a Llama"};
    return std::move(status_);
  }

 private:
  weights take(const std::string& name, std::size_t rows, std::size_t cols, bool is_vector) {
    if (!status_) return {};
    const auto found = unused_.find(name);
    if (found == unused_.end()) return fail({lowbit::errc::not_found, "tensor " + name + " is missing"});
    const tensor& t = *found->second;
    unused_.erase(found);
    if (t.rows != rows || t.cols != cols || t.is_vector != is_vector)
      return fail({lowbit::errc::shape, "tensor " + name + " is " + std::to_string(t.rows) + " x " + std::to_string(t.cols) +
                                            ", but the configuration says " + std::to_string(rows) + " x " + std::to_string(cols)});
    lowbit::result<weights> w = is_vector ? stored(t) : source_(t);
    if (!w) return fail(std::move(w).error());
    if (lowbit::status finite = check_finite(name, w->view(), threads_); !finite) return fail(std::move(finite).error());
    return *std::move(w);
  }
  weights fail(lowbit::failure f) {
    status_ = std::move(f);
    return {};
  }

  const weight_source& source_;
  thread_pool& threads_;
  std::unordered_map<std::string, const tensor*> unused_;
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
    decode_all(v, reinterpret_cast<float*>(out.bytes().data()), threads);
    return weights{std::move(out)};
  };
}

lowbit::result<llama> build_llama(const checkpoint& file, const weight_source& source, thread_pool& threads) {
  const model_config& c = file.config;
  if (lowbit::status valid = check(c); !valid) return std::move(valid).error();
  if (file.words.pieces.size() > c.vocabulary)
    return lowbit::failure{lowbit::errc::shape, "the tokenizer has " + std::to_string(file.words.pieces.size()) +
                                                    " tokens, the model " + std::to_string(c.vocabulary)};
  llama model;
  model.config = c;
  builder b{file, source, threads};
  b.take("token_embd.weight", c.vocabulary, c.hidden, model.embedding);
  b.take("output_norm.weight", c.hidden, model.norm);
  if (b.has("output.weight")) b.take("output.weight", c.vocabulary, c.hidden, model.head.emplace());
  for (std::size_t i = 0; i < c.layers && b.ok(); ++i) {
    layer_weights& w = model.layers.emplace_back();
    const auto name = [&](std::string_view part) { return layer_name(i, part); };
    b.take(name("attn_norm.weight"), c.hidden, w.attention_norm);
    b.take(name("attn_q.weight"), c.query_size(), c.hidden, w.query);
    b.take(name("attn_k.weight"), c.kv_size(), c.hidden, w.key);
    b.take(name("attn_v.weight"), c.kv_size(), c.hidden, w.value);
    b.take(name("attn_output.weight"), c.hidden, c.query_size(), w.output);
    b.take(name("ffn_norm.weight"), c.hidden, w.mlp_norm);
    b.take(name("ffn_gate.weight"), c.intermediate, c.hidden, w.gate);
    b.take(name("ffn_up.weight"), c.intermediate, c.hidden, w.up);
    b.take(name("ffn_down.weight"), c.hidden, c.intermediate, w.down);
  }
  if (lowbit::status s = b.finish(); !s) return std::move(s).error();
  return model;
}

}  // namespace llm
