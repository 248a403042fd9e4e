// bitsandbytes' 4-bit weights, with plain and with nested scales (functional.py: QuantState.as_dict, create_dynamic_map, quantize_blockwise).
//
// Codes lie in one stream, blocks run across the ends of rows, and a JSON text says the rest. In lowbit a row is whole blocks: where
// rows are not a multiple of the block, smaller blocks repeat the scale; where even that fails, the values are read as float32.
#pragma once

#include <lowbit/io/checkpoint_read.hpp>
#include <lowbit/io/checkpoint_write.hpp>

namespace lowbit {

/// The signed 8-bit map of create_dynamic_map(): for each of 7 exponents the middles of 2^e parts of [0.1, 1], times a power of ten, with
/// either sign; 0 and 1. Ascending. The edges are torch.linspace's to the last bit: float32, from both ends, each one fused multiply-add, as
/// torch's builds for processors that have one compute them.
inline std::array<float, 256> bitsandbytes_dynamic_map() {
  std::array<float, 256> map{};
  std::size_t n = 0;
  for (int e = 0; e < 7; ++e) {
    const int parts = 1 << e;
    const auto scale = static_cast<float>(std::pow(10.0, e - 6));
    const float step = (1.0f - 0.1f) / static_cast<float>(parts);
    const auto edge = [&](int i) {
      return i < (parts + 1) / 2 ? std::fma(step, static_cast<float>(i), 0.1f) : std::fma(-step, static_cast<float>(parts - i), 1.0f);
    };
    for (int i = 0; i < parts; ++i) {
      const float middle = rounded_product((edge(i) + edge(i + 1)) / 2.0f, scale);
      map[n++] = middle;
      map[n++] = -middle;
    }
  }
  map[n++] = 0.0f;
  map[n++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

/// Scales that are quantised themselves, in blocks of 256 about their mean.
struct nested_scales {
  static constexpr std::size_t block = 256;
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;  ///< one for each 256
  std::array<float, 256> map{};
  float offset = 0.0f;

  [[nodiscard]] float value(std::size_t i) const noexcept { return rounded_product(map[codes[i]], absmax[i / block]) + offset; }

  /// Quantises scales; the nearest code, ties to the lower one.
  static nested_scales of(std::span<const float> scales) {
    nested_scales n;
    n.map = bitsandbytes_dynamic_map();
    double sum = 0.0;
    for (const float s : scales) sum += static_cast<double>(s);
    n.offset = scales.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(scales.size()));
    n.codes.resize(scales.size());
    for (std::size_t begin = 0; begin < scales.size(); begin += block) {
      const std::size_t end = std::min(begin + block, scales.size());
      float largest = 0.0f;
      for (std::size_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(scales[i] - n.offset));
      n.absmax.push_back(largest);
      for (std::size_t i = begin; i < end; ++i) {
        const float x = largest > 0.0f ? (scales[i] - n.offset) / largest : 0.0f;
        std::size_t code = static_cast<std::size_t>(std::lower_bound(n.map.begin(), n.map.end(), x) - n.map.begin());
        if (code == n.map.size() || (code > 0 && x - n.map[code - 1] <= n.map[code] - x)) --code;
        n.codes[i] = static_cast<std::uint8_t>(code);
      }
    }
    return n;
  }
};

namespace detail {

/// NF4 or FP4 in blocks of any size; null for another format.
inline const format_spec* bitsandbytes_base(const format_spec& s) noexcept {
  for (const format_spec* base : {&nf4::spec, &fp4::spec})
    if (s.name.starts_with(base->name) && s.scale.type == number::f32 && s.codes.bits() == 4 && s.values.size == 16) return base;
  return nullptr;
}

/// All scales of a matrix of such a format.
inline std::vector<float> block_scales(const packed_view& w) {
  std::vector<float> scales(w.rows * w.spec->row_blocks(w.cols));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = read_scalar(w.spec->scale, w.data + i * w.spec->bytes);
  return scales;
}

/// The block that bitsandbytes can be told: the matrix's own, or the least that is whole blocks of it (their scales must agree then).
inline std::optional<std::size_t> bitsandbytes_block(std::size_t block) noexcept {
  for (const std::size_t b : {64u, 128u, 256u, 512u, 1024u, 2048u, 4096u})
    if (b == block) return b;
  for (const std::size_t b : {64u, 128u, 256u, 512u, 1024u, 2048u, 4096u})
    if (b % block == 0) return b;
  return std::nullopt;
}

}  // namespace detail

/// The tensors of weight `module` (without ".weight") in NF4 or FP4; with `nested`, its scales quantised. With `w.data` null, their
/// declarations only. Fails (unsupported) for another format, columns out of order, and rows that are not whole blocks.
inline result<std::vector<checkpoint_part>> bitsandbytes_parts(const std::string& module, const packed_view& w, bool nested) {
  const format_spec& s = *w.spec;
  const format_spec* const base = detail::bitsandbytes_base(s);
  const auto fail = [&](const std::string& what) { return failure{errc::unsupported, "'" + module + "': bitsandbytes has no " + what}; };
  if (base == nullptr) return fail("weights in format " + std::string(s.name));
  if (w.inputs != nullptr || w.factor != 1.0) return fail("order of the inputs, and no factor");
  const auto block = detail::bitsandbytes_block(s.block);
  if (!block || w.cols % s.block != 0) return fail("rows of " + std::to_string(w.cols) + " in blocks of " + std::to_string(s.block));
  const bool fill = w.data != nullptr;
  const std::size_t weights = w.rows * w.cols, count = ceil_div(weights, *block), joined = *block / s.block;
  std::vector<checkpoint_part> parts;
  const auto part = [&](const std::string& suffix, const char* dtype, std::vector<std::uint64_t> shape, const void* from, std::size_t bytes) {
    parts.push_back({{module + ".weight" + suffix, dtype, std::move(shape), {}}, std::vector<std::uint8_t>(fill ? bytes : 0)});
    if (fill && from != nullptr) std::memcpy(parts.back().bytes.data(), from, bytes);
    return parts.back().bytes.data();
  };
  std::vector<float> scales;
  if (fill) {
    const std::vector<float> all = detail::block_scales(w);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % joined == 0) scales.push_back(all[i]);
      else if (all[i] != scales.back()) return fail("blocks of " + std::to_string(s.block));
    }
  }
  nlohmann::ordered_json state = {{"quant_type", base->name}, {"blocksize", *block}, {"dtype", "float32"}, {"shape", {w.rows, w.cols}}};
  nested_scales inner;
  if (nested) {
    inner = nested_scales::of(scales);
    state["nested_blocksize"] = nested_scales::block;
    state["nested_dtype"] = "float32";
    state["nested_offset"] = static_cast<double>(inner.offset);
    const std::size_t blocks = ceil_div(count, nested_scales::block);
    part(".absmax", "U8", {count}, inner.codes.data(), count);
    part(".nested_absmax", "F32", {blocks}, inner.absmax.data(), blocks * 4);
    part(".nested_quant_map", "F32", {256}, inner.map.data(), 1024);
  } else {
    part(".absmax", "F32", {count}, scales.data(), count * 4);
  }
  part(".quant_map", "F32", {16}, s.values.values.data(), 64);
  // As Python's json.dumps writes it: a space after each comma and colon.
  std::string text;
  for (const char c : state.dump()) text.append(1, c).append(c == ',' || c == ':' ? " " : "");
  if (nested) text.resize(320, ' ');  // the offset's digits are not known when the tensor is declared
  std::uint8_t* const codes = part("", "U8", {ceil_div(weights, 2), 1}, nullptr, ceil_div(weights, 2));
  if (fill)
    for (std::size_t b = 0; b < weights / s.block; ++b) std::memcpy(codes + b * s.block / 2, w.data + b * s.bytes + size_of(s.scale.type), s.block / 2);
  part(".quant_state.bitsandbytes__" + std::string(base->name), "U8", {text.size()}, text.data(), text.size());
  return parts;
}

/// Finds such a weight and checks that its tensors fit together. Nothing where there is none of that name.
template <class Find>
std::optional<result<checkpoint_weight>> find_bitsandbytes(const Find& find, const std::string& module) {
  using detail::bad_part;
  const std::string name = module + ".weight";
  for (const format_spec* base : {&spec_of<nf4>, &spec_of<fp4>}) {
    const safetensor* const state = find(name + ".quant_state.bitsandbytes__" + std::string(base->name));
    if (state == nullptr) continue;
    using found = std::optional<result<checkpoint_weight>>;
    const auto json = detail::parse_json({reinterpret_cast<const char*>(state->data.data()), state->data.size()}, "tensor '" + state->name + "'", 4);
    if (!json) return found(json.error());
    const safetensor *const codes = find(name), *const absmax = find(name + ".absmax"), *const map = find(name + ".quant_map");
    for (const auto& [tensor, suffix] : {std::pair{codes, ""}, std::pair{absmax, ".absmax"}, std::pair{map, ".quant_map"}})
      if (tensor == nullptr) return found(failure{errc::not_found, "tensor '" + state->name + "': its partner '" + name + suffix + "' is missing"});
    if (!json->is_object()) return found(bad_part(*state, "is no JSON object", errc::malformed));
    if (json->contains("quant_type") && (*json)["quant_type"] != base->name) return found(bad_part(*state, "says that the codes are of another type", errc::bad_value));
    const auto size_at = [](const nlohmann::ordered_json& j, const char* key) { return j.contains(key) ? detail::json_size(j[key]).value_or(0) : 0; };
    const auto shape = json->value("shape", nlohmann::ordered_json());
    const auto rows = shape.is_array() && shape.size() == 2 ? detail::json_size(shape[0]).value_or(0) : 0;
    const auto cols = shape.is_array() && shape.size() == 2 ? detail::json_size(shape[1]).value_or(0) : 0;
    const std::uint64_t block = size_at(*json, "blocksize");
    const auto weights = checked_mul(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols));
    if (!weights || *weights == 0) return found(bad_part(*state, "no [out, in] shape is stated"));
    if (block < 2 || block > (1u << 16) || block % 2 != 0) return found(bad_part(*state, "the blocksize is " + std::to_string(block), errc::bad_value));
    if (codes->data.size() != ceil_div(*weights, 2))
      return found(bad_part(*codes, std::to_string(codes->data.size()) + " bytes are not the codes of " + std::to_string(*weights) + " weights"));
    if (map->dtype != "F32" || map->data.size() != 64) return found(bad_part(*map, "is not F32 [16]"));
    for (std::size_t i = 0; i < 16; ++i) {
      float value;
      std::memcpy(&value, map->data.data() + 4 * i, 4);
      if (!(std::abs(value - base->values.values[i]) < 1e-6f)) return found(bad_part(*map, "is not the table of " + std::string(base->name), errc::unsupported));
    }
    const std::size_t count = ceil_div(*weights, static_cast<std::size_t>(block));
    std::vector<float> scales(count);
    checkpoint_weight w;
    if (json->contains("nested_blocksize")) {
      const safetensor *const inner = find(name + ".nested_absmax"), *const inner_map = find(name + ".nested_quant_map");
      const std::uint64_t inner_block = size_at(*json, "nested_blocksize");
      const auto offset = json->value("nested_offset", nlohmann::ordered_json());
      if (inner == nullptr || inner_map == nullptr) return found(failure{errc::not_found, "tensor '" + name + "': nested_absmax or nested_quant_map is missing"});
      if (inner_block == 0 || !offset.is_number() || absmax->dtype != "U8" || absmax->data.size() != count || inner->dtype != "F32" ||
          inner->data.size() / 4 != ceil_div(count, static_cast<std::size_t>(inner_block)) || inner_map->dtype != "F32" || inner_map->data.size() != 1024)
        return found(bad_part(*absmax, "the nested scales contradict each other"));
      const auto mean = static_cast<float>(offset.template get<double>());
      for (std::size_t i = 0; i < count; ++i) {
        float level, outer;
        std::memcpy(&level, inner_map->data.data() + 4 * std::size_t{absmax->data[i]}, 4);
        std::memcpy(&outer, inner->data.data() + 4 * (i / static_cast<std::size_t>(inner_block)), 4);
        scales[i] = rounded_product(level, outer) + mean;
      }
      for (const safetensor* t : {inner, inner_map}) w.data.push_back(t->data);
    } else {
      if (absmax->dtype != "F32" || absmax->data.size() != 4 * count) return found(bad_part(*absmax, detail::shape_text(absmax->shape) + " is not F32 [" + std::to_string(count) + "]"));
      std::memcpy(scales.data(), absmax->data.data(), 4 * count);
    }
    const std::size_t own = std::gcd(static_cast<std::size_t>(cols), static_cast<std::size_t>(block));
    w.name = name;
    w.spec = own % 2 == 0 ? &blocks_of(*base, own) : &spec_of<f32>;
    w.rows = static_cast<std::size_t>(rows);
    w.cols = static_cast<std::size_t>(cols);
    for (const safetensor* t : {codes, absmax, map, state}) w.data.push_back(t->data);
    for (const auto part : w.data) w.bytes += part.size();
    w.read_rows = [codes, scales = std::move(scales), base, block = static_cast<std::size_t>(block)](std::size_t begin, std::size_t end, packed_matrix& out) {
      const format_spec& s = out.spec();
      for (std::size_t r = begin; r < end; ++r)
        for (std::size_t c = 0; c < out.cols(); c += s.block) {
          const std::size_t at = r * out.cols() + c;
          std::uint8_t* const to = out.row(r) + c / s.block * s.bytes;
          if (s.is_float()) {
            const unsigned code = at % 2 == 0 ? codes->data[at / 2] >> 4 : codes->data[at / 2] & 15u;
            const float value = rounded_product(base->values.values[code], scales[at / block]);
            std::memcpy(to, &value, 4);
          } else {
            std::memcpy(to, &scales[at / block], 4);
            std::memcpy(to + 4, codes->data.data() + at / 2, s.block / 2);
          }
        }
      return true;
    };
    return found(std::move(w));
  }
  return std::nullopt;
}

}  // namespace lowbit
