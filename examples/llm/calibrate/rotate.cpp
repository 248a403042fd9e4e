#include "rotate.hpp"

#include "../files/names.hpp"

#include <lowbit/format/gguf.hpp>
#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/quantise/rotation.hpp>

namespace llm {
namespace {

/// What all tensors' readers share.
struct rotation_plan {
  checkpoint model;
  lowbit::rotation stream, head;
  thread_pool& threads;
};
using shared_plan = std::shared_ptr<const rotation_plan>;

/// The norm whose output a matrix takes ("" for none): its gain moves into the matrix.
std::string norm_before(std::string_view name) {
  if (name == "output.weight") return "output_norm.weight";
  if (!name.starts_with("blk.")) return {};
  const std::string layer{name.substr(0, name.find('.', 4) + 1)};
  for (const std::string_view part : {"attn_q.weight", "attn_k.weight", "attn_v.weight"})
    if (name.ends_with(part)) return layer + "attn_norm.weight";
  for (const std::string_view part : {"ffn_gate.weight", "ffn_up.weight"})
    if (name.ends_with(part)) return layer + "ffn_norm.weight";
  return {};
}

lowbit::result<lowbit::packed_matrix> floats_of(const tensor& t, thread_pool& threads) {
  const auto source = t.read();
  if (!source) return source.error();
  const lowbit::packed_view from = source->view();
  if (lowbit::status finite = check_finite(t.name, from, threads); !finite) return std::move(finite).error();
  lowbit::packed_matrix out{lowbit::spec_of<lowbit::f32>, from.rows, from.cols};
  lowbit::dequantise(from, {reinterpret_cast<float*>(out.bytes().data()), from.rows, from.cols}, threads);
  return out;
}

/// The matrix of the rotated model called `name`, made of `source`.
lowbit::result<weights> rotate(const rotation_plan& plan, const tensor& source, const std::string& name) {
  auto made = floats_of(source, plan.threads);
  if (!made) return std::move(made).error();
  auto* const values = reinterpret_cast<float*>(made->bytes().data());
  const lowbit::matrix_view<float> w{values, made->rows(), made->cols()};
  if (source.is_vector) {
    std::fill(values, values + w.cols, 1.0f);  // a norm
    return weights{*std::move(made)};
  }
  if (const std::string norm = norm_before(name); !norm.empty()) {
    const auto gain = floats_of(*plan.model.find(norm), plan.threads);
    if (!gain) return gain.error();
    lowbit::multiply_columns(w, {reinterpret_cast<const float*>(gain->bytes().data()), w.cols});
  }
  const bool is_output = name.ends_with(".attn_output.weight");
  if (is_output || name.ends_with(".ffn_down.weight")) plan.stream.rotate_columns(w, plan.threads);
  else plan.stream.rotate_rows(w, plan.threads);
  const std::size_t n = plan.head.size();
  if (is_output)
    for (std::size_t first = 0; first < w.cols; first += n) plan.head.rotate_rows({w.data + first, w.rows, n, w.stride}, plan.threads);
  if (name.ends_with(".attn_v.weight"))
    for (std::size_t first = 0; first < w.rows; first += n) plan.head.rotate_columns(w.middle_rows(first, n), plan.threads);
  return weights{*std::move(made)};
}

}  // namespace

checkpoint rotated(checkpoint model, std::uint64_t seed, thread_pool& threads) {
  checkpoint out = model;
  const model_config& c = model.config;
  const bool tied = model.find("output.weight") == nullptr;
  const auto plan = std::make_shared<const rotation_plan>(
      rotation_plan{std::move(model), lowbit::rotation{c.hidden, seed}, lowbit::rotation{c.head_dim, seed + 1}, threads});
  if (tied) {
    out.tensors.push_back(*out.find("token_embd.weight"));
    out.tensors.back().name = "output.weight";
  }
  for (tensor& t : out.tensors) {
    const tensor* source = plan->model.find(t.name);
    if (source == nullptr) source = plan->model.find("token_embd.weight");
    t.spec = &lowbit::spec_of<lowbit::f32>;
    t.bytes = t.rows * t.cols * sizeof(float);
    t.read = [plan, source, name = t.name] { return rotate(*plan, *source, name); };
    t.read_rows = nullptr;
  }
  return out;
}

}  // namespace llm
