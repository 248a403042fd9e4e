#include "requantise.hpp"

#include "names.hpp"

#include <lowbit/matrix/dequantise.hpp>

#include <utility>

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

lowbit::result<lowbit::method> method_named(const std::string& name) {
  if (const auto m = lowbit::find_method(name)) return *m;
  return lowbit::failure{lowbit::errc::unsupported, "unknown method '" + name + "'; there are rtn and mse"};
}

format_id target_format(const tensor& t, format_id wanted) {
  if (t.is_vector) return id_of<lowbit::f32>();
  if (!in_gguf(wanted)) {
    if (!is_vocabulary_matrix(t.name)) return wanted;
    if (t.spec == &lowbit::spec_of<lowbit::bfloat16>) return id_of<lowbit::bfloat16>();
    return t.spec == &lowbit::spec_of<lowbit::f32> ? id_of<lowbit::f32>() : id_of<lowbit::float16>();
  }
  const std::pair<format_id, format_id> fallbacks[] = {
      {id_of<lowbit::q2_k>(), id_of<lowbit::q4_0>()}, {id_of<lowbit::q3_k>(), id_of<lowbit::q4_0>()},
      {id_of<lowbit::tq2_0>(), id_of<lowbit::q4_0>()}, {id_of<lowbit::tq1_0>(), id_of<lowbit::q4_0>()}, {id_of<lowbit::q4_k>(), id_of<lowbit::q5_0>()},
      {id_of<lowbit::q5_k>(), id_of<lowbit::q5_1>()}, {id_of<lowbit::q6_k>(), id_of<lowbit::q8_0>()},
      {id_of<lowbit::iq4_xs>(), id_of<lowbit::iq4_nl>()}, {id_of<lowbit::nvfp4>(), id_of<lowbit::mxfp4>()},
      {id_of<lowbit::q2_0>(), id_of<lowbit::q4_0>()}, {id_of<lowbit::q1_0>(), id_of<lowbit::q4_0>()}};
  const auto fits = [&](format_id id) { return t.cols % lowbit::spec_of_id(id).block == 0; };
  if (fits(wanted)) return wanted;
  for (const auto& [from, to] : fallbacks)
    if (from == wanted && fits(to)) return to;
  return id_of<lowbit::float16>();
}

lowbit::result<weights> requantise(const tensor& t, const requantisation& how, thread_pool& threads) {
  auto source = t.read();
  if (!source) return source;
  if (lowbit::status finite = check_finite(t.name, source->view(), threads); !finite) return std::move(finite).error();
  if (how.reorder && (is_query(t.name) || is_key(t.name))) {
    const std::size_t heads = is_query(t.name) ? how.heads : how.kv_heads;
    if (t.rows % (2 * heads) != 0) return lowbit::failure{lowbit::errc::shape, "tensor " + t.name + " has rows that are not whole heads"};
    source = weights{reorder_rows(source->view(), heads, *how.reorder)};
  }
  const format_id target = target_format(t, how.format);
  const lowbit::packed_view from = source->view();
  if (from.spec == &lowbit::spec_of_id(target)) return source;

  lowbit::packed_matrix floats;  // aligned float32 sources are used where they lie
  if (from.spec != &lowbit::spec_of<lowbit::f32> || reinterpret_cast<std::uintptr_t>(from.data) % alignof(float) != 0) {
    floats = lowbit::packed_matrix{lowbit::spec_of<lowbit::f32>, from.rows, from.cols};
    lowbit::dequantise(from, {reinterpret_cast<float*>(floats.bytes().data()), from.rows, from.cols}, threads);
    source = weights{};
  }
  const auto* const values = reinterpret_cast<const float*>(floats.rows() != 0 ? floats.bytes().data() : from.data);
  if (target == id_of<lowbit::f32>()) return weights{std::move(floats)};
  auto packed = lowbit::quantise(target, how.method, lowbit::matrix_view<const float>{values, from.rows, from.cols}, threads);
  if (!packed) return lowbit::failure{packed.error().kind, "tensor " + t.name + ": " + packed.error().message};
  return weights{*std::move(packed)};
}

}  // namespace llm
