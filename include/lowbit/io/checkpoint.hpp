// Quantised weights in safetensors, as the tools that invented each layout store them.
//
// bitsandbytes 4-bit (NF4, FP4; bitsandbytes functional.py, QuantState.as_dict) and compressed-tensors "pack-quantized" with its dense
// packer (uniform codes; compressed-tensors, compressors/pack_quantized). A weight becomes several tensors, its parts; a block's bytes
// are split into the arrays of a layout and joined again without loss.
#pragma once

#include <lowbit/io/safetensors.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/format/registry.hpp>


namespace lowbit {

/// One tensor of a weight's checkpoint form: name, dtype and shape, and its bytes (empty where only the declaration was asked for).
struct checkpoint_part {
  safetensor declaration;
  std::vector<std::uint8_t> bytes;
};

/// The layout that a format is saved in.
enum class checkpoint_layout : std::uint8_t { none, bitsandbytes, compressed_tensors };

namespace detail {

inline bool is_bitsandbytes(const format_spec& s) noexcept { return &s == &spec_of<nf4> || &s == &spec_of<fp4>; }
/// Evenly spaced codes as a dense stream that fills whole bytes, with f16 scales.
inline bool is_dense_uniform(const format_spec& s) noexcept {
  return !s.is_float() && s.gguf < 0 && !s.values.present() && !s.sub_scale.present() && !s.minimum.present() &&
         s.scale.type == number::f16 && s.codes.planes[0].bits == s.codes.bits() && s.unused_bits == 0 &&
         s.codes.planes[0].digits.stride[0] == static_cast<int>(s.codes.bits());
}

/// "p.weight" without its last component.
inline std::string module_of(const std::string& weight) {
  return weight.ends_with(".weight") ? weight.substr(0, weight.size() - 7) : weight;
}

}  // namespace detail

/// How a [rows, cols] weight of this format can be saved in safetensors, if at all.
inline checkpoint_layout checkpoint_layout_of(const format_spec& s, std::size_t cols) noexcept {
  if (detail::is_bitsandbytes(s) && cols % s.block == 0) return checkpoint_layout::bitsandbytes;
  if (detail::is_dense_uniform(s)) return checkpoint_layout::compressed_tensors;
  return checkpoint_layout::none;
}

/// The parts of weight `name` ("….weight"). With `data` null, their declarations only.
/// Fails (unsupported) where the format has no layout: bitsandbytes runs blocks across rows, so rows must be whole blocks.
inline result<std::vector<checkpoint_part>> checkpoint_parts(const std::string& name, const packed_view& w) {
  const format_spec& s = *w.spec;
  const std::size_t blocks = s.row_blocks(w.cols);
  const bool fill = w.data != nullptr;
  std::vector<checkpoint_part> parts;
  const auto part = [&](std::string part_name, const char* dtype, std::vector<std::uint64_t> shape, std::size_t bytes) {
    parts.push_back({{std::move(part_name), dtype, std::move(shape), {}}, std::vector<std::uint8_t>(fill ? bytes : 0)});
  };
  const auto block_at = [&](std::size_t r, std::size_t b) { return w.row(r) + b * s.bytes; };

  switch (checkpoint_layout_of(s, w.cols)) {
    case checkpoint_layout::none:
      return failure{errc::unsupported, "'" + name + "' [" + std::to_string(w.rows) + ", " + std::to_string(w.cols) + "] in format " +
                                            std::string(s.name) + " has no safetensors layout"};
    case checkpoint_layout::bitsandbytes: {
      const std::size_t count = w.rows * blocks, code_bytes = s.block / 2;
      part(name + ".absmax", "F32", {count}, count * 4);
      part(name + ".quant_map", "F32", {16}, 64);
      part(name, "U8", {count * code_bytes, 1}, count * code_bytes);
      const std::string state = "{\"quant_type\": \"" + std::string(s.name) + "\", \"blocksize\": " + std::to_string(s.block) +
                                ", \"dtype\": \"float32\", \"shape\": [" + std::to_string(w.rows) + ", " + std::to_string(w.cols) + "]}";
      part(name + ".quant_state.bitsandbytes__" + std::string(s.name), "U8", {state.size()}, state.size());
      if (!fill) break;
      std::memcpy(parts[1].bytes.data(), s.values.values.data(), 64);
      std::memcpy(parts[3].bytes.data(), state.data(), state.size());
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t* const block = w.data + i * s.bytes;
        std::memcpy(parts[0].bytes.data() + 4 * i, block + s.scale.at, 4);
        std::memcpy(parts[2].bytes.data() + code_bytes * i, block + s.codes.planes[0].base / 8, code_bytes);
      }
      break;
    }
    case checkpoint_layout::compressed_tensors: {
      const unsigned bits = s.codes.bits();
      const std::size_t words = ceil_div(w.cols * bits, 32), zero_words = ceil_div(w.rows * bits, 32), code_bytes = s.block * bits / 8;
      const std::string module = detail::module_of(name);
      part(module + ".weight_shape", "I64", {2}, 16);
      part(module + ".weight_packed", "I32", {w.rows, words}, w.rows * words * 4);
      if (s.zero_point.present()) part(module + ".weight_zero_point", "I32", {zero_words, blocks}, zero_words * blocks * 4);
      part(module + ".weight_scale", "F16", {w.rows, blocks}, w.rows * blocks * 2);
      if (!fill) break;
      const std::int64_t shape[2] = {static_cast<std::int64_t>(w.rows), static_cast<std::int64_t>(w.cols)};
      std::memcpy(parts[0].bytes.data(), shape, 16);
      std::vector<std::uint8_t>& scales = parts.back().bytes;
      for (std::size_t r = 0; r < w.rows; ++r) {
        std::uint8_t* const row = parts[1].bytes.data() + r * words * 4;
        for (std::size_t b = 0; b < blocks; ++b) {
          const std::size_t weights = std::min<std::size_t>(s.block, w.cols - b * s.block), whole = weights * bits / 8;
          const std::uint8_t* const codes = block_at(r, b) + s.codes.planes[0].base / 8;
          std::memcpy(row + b * code_bytes, codes, whole);
          if (const unsigned rest = static_cast<unsigned>(weights * bits % 8); rest != 0)
            row[b * code_bytes + whole] = static_cast<std::uint8_t>(codes[whole] & ((1u << rest) - 1));
          std::memcpy(scales.data() + (r * blocks + b) * 2, block_at(r, b) + s.scale.at, 2);
          if (s.zero_point.present())  // packed along rows: bit r * bits of column b's own stream of words
            for (unsigned i = 0; i < bits; ++i) {
              const std::size_t bit = r * bits + i;
              const unsigned value = (s.zero_point.raw(block_at(r, b), 0) >> i) & 1u;
              write_bits(parts[2].bytes.data() + (bit / 32 * blocks + b) * 4, bit % 32, 1, value);
            }
        }
      }
      break;
    }
  }
  return parts;
}

namespace detail {

inline failure bad_part(const safetensor& t, const std::string& what) { return {errc::shape, "tensor '" + t.name + "': " + what}; }

template <class Find>
result<packed_matrix> read_bitsandbytes(const Find& find, const std::string& name, const format_spec& s, const safetensor& state) {
  const auto json = parse_json({reinterpret_cast<const char*>(state.data.data()), state.data.size()}, "tensor '" + state.name + "'", 4);
  if (!json) return json.error();
  const safetensor *const codes = find(name), *const absmax = find(name + ".absmax");
  if (codes == nullptr || absmax == nullptr) return failure{errc::not_found, "tensor '" + name + "' or its absmax is missing"};
  if (json->contains("nested_blocksize")) return failure{errc::unsupported, "tensor '" + name + "': nested quantisation is not read"};
  const auto& shape = json->contains("shape") ? (*json)["shape"] : nlohmann::ordered_json();
  const bool matrix = shape.is_array() && shape.size() == 2 && json_size(shape[0]) && json_size(shape[1]);
  const std::uint64_t rows = matrix ? json_size(shape[0]).value_or(0) : 0, cols = matrix ? json_size(shape[1]).value_or(0) : 0;
  if (!matrix || !json->contains("blocksize") || json_size((*json)["blocksize"]) != s.block || cols % s.block != 0)
    return bad_part(state, "a [rows, cols] shape of whole rows of 64-blocks is needed");
  const auto count = checked_mul(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols / s.block));
  if (!count || absmax->dtype != "F32" || absmax->data.size() / 4 != *count || codes->data.size() / (s.block / 2) != *count ||
      absmax->data.size() % 4 != 0 || codes->data.size() % (s.block / 2) != 0)
    return bad_part(*codes, "codes, absmax and shape contradict each other");
  packed_matrix w(s, static_cast<std::size_t>(rows), static_cast<std::size_t>(cols));
  for (std::size_t i = 0; i < *count; ++i) {
    std::uint8_t* const block = w.bytes().data() + i * s.bytes;
    std::memcpy(block + s.scale.at, absmax->data.data() + 4 * i, 4);
    std::memcpy(block + s.codes.planes[0].base / 8, codes->data.data() + s.block / 2 * i, s.block / 2);
  }
  return w;
}

template <class Find>
result<packed_matrix> read_compressed(const Find& find, const std::string& module, const safetensor& packed) {
  const safetensor *const scale = find(module + ".weight_scale"), *const shape = find(module + ".weight_shape"),
                   *const zero = find(module + ".weight_zero_point");
  if (scale == nullptr || shape == nullptr) return failure{errc::not_found, "tensor '" + packed.name + "' has no weight_scale or no weight_shape"};
  if (shape->dtype != "I64" || shape->data.size() != 16 || packed.dtype != "I32" || packed.shape.size() != 2 || scale->shape.size() != 2 || scale->dtype != "F16")
    return bad_part(packed, "packed, scale or shape is of a kind that is not read");
  std::int64_t size[2];
  std::memcpy(size, shape->data.data(), 16);
  if (size[0] < 0 || size[1] <= 0 || packed.shape[0] != static_cast<std::uint64_t>(size[0]) || scale->shape[0] != packed.shape[0])
    return bad_part(packed, "its shape contradicts weight_shape");
  const auto rows = static_cast<std::size_t>(size[0]), cols = static_cast<std::size_t>(size[1]), blocks = static_cast<std::size_t>(scale->shape[1]);
  if (cols > packed.data.size() * 8 && rows != 0) return bad_part(packed, "weight_shape is larger than the data");
  // Width and group follow from the shapes; where several groups fit (one group a row), they mean the same.
  const format_spec* found = nullptr;
  for (const format_spec* s : all_formats::specs)
    if (is_dense_uniform(*s) && s->zero_point.present() == (zero != nullptr) && s->row_blocks(cols) == blocks &&
        ceil_div(cols * s->codes.bits(), 32) == packed.shape[1]) {
      found = s;
      break;
    }
  if (found == nullptr) return failure{errc::unsupported, "tensor '" + packed.name + "': no uniform format has its width and group"};
  const format_spec& s = *found;
  const unsigned bits = s.codes.bits();
  if (zero != nullptr && (zero->dtype != "I32" || zero->shape != std::vector<std::uint64_t>{ceil_div(rows * bits, 32), blocks}))
    return bad_part(*zero, "its shape contradicts the weights'");
  packed_matrix w(s, rows, cols);
  const std::size_t row_bytes = static_cast<std::size_t>(packed.shape[1]) * 4, code_bytes = s.block * bits / 8;
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t b = 0; b < blocks; ++b) {
      std::uint8_t* const block = w.row(r) + b * s.bytes;
      std::memcpy(block + s.scale.at, scale->data.data() + (r * blocks + b) * 2, 2);
      std::memcpy(block + s.codes.planes[0].base / 8, packed.data.data() + r * row_bytes + b * code_bytes, std::min(code_bytes, row_bytes - b * code_bytes));
      if (zero == nullptr) continue;
      unsigned value = 0;
      for (unsigned i = 0; i < bits; ++i) {
        const std::size_t bit = r * bits + i;
        value |= read_bits(zero->data.data() + (bit / 32 * blocks + b) * 4, bit % 32, 1) << i;
      }
      s.zero_point.set_raw(block, 0, value);
    }
  return w;
}

}  // namespace detail

/// Reads weight `name` ("….weight") if it is stored in one of these layouts. `find(name)` gives a safetensor or null. Nothing where the
/// tensor is not quantised or not there.
template <class Find>
std::optional<result<packed_matrix>> read_checkpoint(const Find& find, const std::string& name) {
  for (const format_spec* s : {&spec_of<nf4>, &spec_of<fp4>})
    if (const safetensor* state = find(name + ".quant_state.bitsandbytes__" + std::string(s->name))) return detail::read_bitsandbytes(find, name, *s, *state);
  if (const safetensor* packed = find(detail::module_of(name) + ".weight_packed")) return detail::read_compressed(find, detail::module_of(name), *packed);
  return std::nullopt;
}

/// The `quantization_config` that loaders look for in config.json, as JSON text; `modules` are those left unquantised.
inline std::string quantization_config(const format_spec& s, const std::vector<std::string>& modules_not_quantised) {
  nlohmann::ordered_json c;
  if (detail::is_bitsandbytes(s)) {
    c = {{"quant_method", "bitsandbytes"},         {"load_in_4bit", true},   {"load_in_8bit", false},
         {"bnb_4bit_quant_type", s.name},          {"bnb_4bit_use_double_quant", false},
         {"bnb_4bit_compute_dtype", "float32"},    {"bnb_4bit_quant_storage", "uint8"},
         {"llm_int8_skip_modules", modules_not_quantised}};
  } else if (detail::is_dense_uniform(s)) {
    nlohmann::ordered_json weights = {{"num_bits", s.codes.bits()}, {"type", "int"}, {"symmetric", !s.zero_point.present()},
                                      {"strategy", "group"}, {"group_size", s.block}, {"dynamic", false}};
    c = {{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}, {"quantization_status", "compressed"},
         {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}, {"ignore", modules_not_quantised}};
  }
  return c.dump(2);
}

}  // namespace lowbit
