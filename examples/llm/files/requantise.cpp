#include "requantise.hpp"

#include "names.hpp"

#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/quantise/allocate_mix.hpp>

namespace llm {

using lowbit::format_id;
using lowbit::id_of;

lowbit::result<format_id> format_named(const std::string& name) {
  if (const auto id = lowbit::find_format(name)) {
    if (lowbit::spec_of_id(*id).is_writable()) return *id;
    return lowbit::failure{lowbit::errc::unsupported, "format '" + name + "' is only read, not written"};
  }
  std::string known;
  for (const lowbit::format_spec* s : lowbit::readable_formats::specs)
    if (s->name.find("_g") == s->name.npos && s->is_writable()) known.append(s->name).append(", ");
  return lowbit::failure{lowbit::errc::unsupported, "unknown format '" + name + "'; there are " + known +
                                                        "and s<b>_g<n> and u<b>_g<n> (symmetric and asymmetric) with 1 to 8 bits in groups of 32, 64 or 128"};
}

format_id target_format(const tensor& t, format_id wanted) {
  if (t.is_vector) return id_of<lowbit::f32>();
  wanted = t.wanted.value_or(wanted);
  if (!in_gguf(wanted)) {
    if (!is_vocabulary_matrix(t.name)) return wanted;
    if (t.spec == &lowbit::spec_of<lowbit::bfloat16>) return id_of<lowbit::bfloat16>();
    return t.spec == &lowbit::spec_of<lowbit::f32> ? id_of<lowbit::f32>() : id_of<lowbit::float16>();
  }
  return lowbit::fallback_format(wanted, t.cols);
}

namespace {

/// The weights as stored, checked, with their rows in order.
lowbit::result<weights> read_in_order(const tensor& t, const requantisation& how, thread_pool& threads) {
  auto source = t.read();
  if (!source) return source;
  if (lowbit::status finite = check_finite(t.name, source->view(), threads); !finite) return std::move(finite).error();
  if (how.reorder && (is_query(t.name) || is_key(t.name))) {
    auto in_order = reorder_rows(source->view(), how.head_dim, *how.reorder);
    if (!in_order) return in_tensor(t.name, in_order.error());
    source = weights{*std::move(in_order)};
  }
  return source;
}

/// The same as floats that lie aligned; what does already stays where it is.
weights as_aligned_floats(weights source, thread_pool& threads) {
  const lowbit::packed_view from = source.view();
  if (from.spec == &lowbit::spec_of<lowbit::f32> && from.inputs == nullptr && from.factor == 1.0 && reinterpret_cast<std::uintptr_t>(from.data) % alignof(float) == 0) return source;
  lowbit::packed_matrix floats{lowbit::spec_of<lowbit::f32>, from.rows, from.cols};
  lowbit::dequantise(from, {reinterpret_cast<float*>(floats.bytes().data()), from.rows, from.cols}, threads);
  return weights{std::move(floats)};
}

}  // namespace

lowbit::result<weights> read_floats(const tensor& t, const requantisation& how, thread_pool& threads) {
  auto source = read_in_order(t, how, threads);
  if (!source) return source;
  return as_aligned_floats(*std::move(source), threads);
}

namespace {
bool has_target_format(const lowbit::packed_view& w, format_id target) {
  return w.spec == &lowbit::spec_of_id(target) && w.inputs == nullptr && w.factor == 1.0;
}
}  // namespace

lowbit::result<std::optional<weights>> kept_as_stored(const tensor& t, const requantisation& how, thread_pool& threads) {
  const format_id target = target_format(t, how.format);
  if (t.spec != &lowbit::spec_of_id(target)) return std::optional<weights>();
  auto source = read_in_order(t, how, threads);
  if (!source) return std::move(source).error();
  return has_target_format(source->view(), target) ? std::optional<weights>(*std::move(source)) : std::nullopt;
}

lowbit::result<weights> requantise(const tensor& t, const requantisation& how, thread_pool& threads, const lowbit::imatrix* importance) {
  auto source = read_in_order(t, how, threads);
  if (!source) return source;
  const format_id target = target_format(t, how.format);
  if (has_target_format(source->view(), target)) return source;
  weights floats = as_aligned_floats(*std::move(source), threads);
  if (target == id_of<lowbit::f32>()) return floats;
  const lowbit::packed_view from = floats.view();
  const lowbit::matrix_view<const float> values{reinterpret_cast<const float*>(from.data), from.rows, from.cols};
  const auto packed = [&]() -> lowbit::result<weights> {
    if (const lowbit::imatrix_entry* const known = importance != nullptr ? importance->find(t.name) : nullptr; known != nullptr) {
      const auto means = known->importance(from.cols);
      if (!means) return means.error();
      auto q = lowbit::quantise(target, values, lowbit::given_importance(*means), threads);
      if (!q) return std::move(q).error();
      return weights{std::move(q->weights)};
    }
    auto q = lowbit::quantise(target, how.method, values, threads);
    if (!q) return std::move(q).error();
    return weights{*std::move(q)};
  };
  auto out = packed();
  if (!out) return lowbit::failure{out.error().kind, "tensor " + t.name + ": " + out.error().message};
  return out;
}

}  // namespace llm
