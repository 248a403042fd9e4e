// llama.cpp's adapter files. Format: llama-adapter.cpp and convert_lora_to_gguf.py.
//
// A GGUF with general.type "adapter", adapter.type "lora" and adapter.lora.alpha, in which weight W has tensors W.lora_a, dims {in, rank}, and
// W.lora_b, dims {rank, out}. Its scale is alpha / rank of the tensor itself, or 1 where alpha is 0. Rows of B for queries and keys
// stand in GGUF's order, as those of the base do. One that only certain tokens activate (adapter.alora.invocation_tokens) is refused.
#pragma once

#include <lowbit/io/adapter_file.hpp>
#include <lowbit/io/gguf_writer.hpp>

namespace lowbit {

/// An adapter from a whole file's bytes. Fails, naming the key or tensor, where it is another kind of file, a tensor is alone, of another shape
/// than its partner, or not finite.
inline result<adapter> read_gguf_adapter(std::span<const std::uint8_t> file) {
  const auto content = read_gguf(file);
  if (!content) return content.error();
  const gguf_metadata& m = content->metadata;
  for (const auto& [key, due] : {std::pair("general.type", "adapter"), std::pair("adapter.type", "lora")})
    if (const auto found = m.find<std::string>(key); found != due)
      return failure{errc::unsupported, "not a LoRA adapter: metadata key '" + std::string(key) + "' is " +
                                            (found ? "'" + *found + "'" : "missing") + ", not '" + due + "'"};
  if (constexpr std::string_view key = "adapter.alora.invocation_tokens"; m.find(key) != nullptr)
    return failure{errc::unsupported, "the adapter is activated by tokens (metadata key '" + std::string(key) + "'), which is not supported"};
  const auto alpha = m.get<float>("adapter.lora.alpha");
  if (!alpha) return alpha.error();

  std::map<std::string, detail::adapter_tensors> found;
  for (const gguf_tensor& t : content->tensors) {
    const bool is_a = t.name.ends_with(".lora_a");
    if (!is_a && !t.name.ends_with(".lora_b")) return failure{errc::unsupported, "tensor '" + t.name + "' is no part of a LoRA adapter"};
    const auto format = find_gguf_format(static_cast<int>(t.type));
    if (!format) return failure{errc::unsupported, "tensor '" + t.name + "' is of a type that is not supported"};
    if (t.dims.size() != 2) return failure{errc::shape, "tensor '" + t.name + "' is not a matrix"};
    detail::adapter_tensors& of = found[t.name.substr(0, t.name.size() - 7)];
    const auto cols = static_cast<std::size_t>(t.dims[0]), rows = static_cast<std::size_t>(t.dims[1]);
    (is_a ? of.a : of.b) = {t.name, {&spec_of_id(*format), rows, cols, t.data.data()}};
  }
  adapter out;
  out.architecture = m.find<std::string>("general.architecture").value_or("");
  for (const auto& [weight, tensors] : found) {
    auto f = detail::read_factors(weight, tensors, std::nullopt);
    if (!f) return std::move(f).error();
    const double divisor = *alpha == 0.0f ? 1.0 : static_cast<double>(f->rank);
    const auto scale = detail::checked_scale(*alpha == 0.0f ? 1.0 : static_cast<double>(*alpha), divisor, weight);
    if (!scale) return scale.error();
    f->scale = *scale;
    out.weights.emplace(weight, *std::move(f));
    if (auto base = m.find<std::string>(std::string(adapter_base_key) + weight)) out.bases.emplace(weight, *std::move(base));
  }
  if (out.weights.empty()) return failure{errc::malformed, "the adapter has no tensors"};
  return out;
}

/// Writes one whose weights have GGUF's names and order of rows, with factors in a float type. One alpha serves all: where it cannot, scales go
/// into B. Fails where the file cannot be written; it appears whole or not at all.
inline status write_gguf_adapter(const std::filesystem::path& path, const adapter& in, const format_spec& type = spec_of<f32>) {
  LOWBIT_EXPECTS(type.is_float() && type.gguf >= 0);
  double common = in.weights.empty() ? 0.0 : detail::alpha_of(in.weights.begin()->second);
  for (const auto& [weight, f] : in.weights)
    if (detail::alpha_of(f) != common) common = 0.0;
  // An alpha of 0 means no scale, and float32 holds it or the scales are written out.
  const bool written_out = common == 0.0 || static_cast<double>(static_cast<float>(common)) != common;
  gguf_metadata m;
  m.set("general.type", "adapter");
  m.set("general.architecture", std::string(in.architecture.empty() ? "llama" : in.architecture));
  m.set("adapter.type", "lora");
  m.set("adapter.lora.alpha", written_out ? 0.0f : static_cast<float>(common));
  for (const auto& [weight, base] : in.bases) m.set(std::string(adapter_base_key) + weight, base);
  std::vector<gguf_tensor> tensors;
  for (const auto& [weight, f] : in.weights) {
    tensors.push_back({weight + ".lora_a", static_cast<std::uint32_t>(type.gguf), {f.cols, f.rank}, {}, 0, 0});
    tensors.push_back({weight + ".lora_b", static_cast<std::uint32_t>(type.gguf), {f.rank, f.rows}, {}, 0, 0});
  }
  auto out = gguf_writer::create(path, m, tensors);
  if (!out) return std::move(out).error();
  for (const auto& [weight, f] : in.weights) {
    std::vector<float> b = f.b;
    if (written_out)
      for (float& v : b) v *= f.scale;
    if (status s = detail::append_floats(*out, type, f.a); !s) return s;
    if (status s = detail::append_floats(*out, type, b); !s) return s;
  }
  return out->commit();
}

}  // namespace lowbit
