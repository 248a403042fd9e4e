// The checkpoint layouts of the field, a constant each: which tensors a weight becomes, and how integers and scales lie in them.
//
// GPTQ: GPTQModel, nn_modules/qlinear (pack_block, dequantize_weight), docs/gptq_planar.md. AWQ: AutoAWQ, awq/modules/linear; llm-awq,
// qmodule.py. compressed-tensors: compressors/pack_quantized, nvfp4, mxfp4. bitsandbytes LLM.int8: nn/modules.py, functional.py.
// ModelOpt's NVFP4 and gpt-oss' MXFP4: their published checkpoints. (bitsandbytes' 4-bit types: checkpoint_bitsandbytes.hpp.)
#pragma once

#include <lowbit/format/gguf.hpp>
#include <lowbit/io/packed_integers.hpp>

#include <optional>
#include <string>

namespace lowbit {

/// A tensor of integers. `words` gives their order for a width.
struct integer_part {
  std::string_view suffix{};                         ///< after the module's name; empty: there is none
  std::string_view dtype{};
  word_order (*words)(unsigned bits) = nullptr;
  axis packed = axis::in, last = axis::in;
  unsigned interleave = 1;

  [[nodiscard]] constexpr bool present() const noexcept { return words != nullptr; }
  [[nodiscard]] integer_layout layout(unsigned bits) const noexcept { return {words(bits), packed, last, interleave}; }
};

/// What zero-points are.
enum class zero_kind : std::uint8_t {
  none,          ///< all in the middle of the codes' range
  optional,      ///< a tensor of integers, or none
  required,      ///< a tensor of integers, always
  scaled_floats  ///< a tensor of -(scale * zero-point), as f16
};

/// How weights of one kind lie in safetensors. Scales are [out, groups] or [groups, out].
struct checkpoint_family {
  std::string_view name;                 ///< lowbit's name for it
  std::string_view method;               ///< quant_method in config.json
  integer_part codes{};
  integer_part zeros{};
  zero_kind zero = zero_kind::none;
  unsigned zero_bias = 0;                ///< stored zero-points are this much too low (GPTQ v1)
  bool is_signed = false;                ///< codes and zero-points are stored less 2^(bits - 1), as two's complement
  std::string_view scales{};
  std::string_view scale_dtype{};        ///< empty: F16, BF16 or F32
  axis scale_last = axis::in;
  bool padded_groups = false;            ///< the group dimension has AutoAWQ's padding (calculate_zeros_width)
  std::string_view index{};              ///< the group of each input, I32 [in]
  bool index_always = false;             ///< written even where groups follow each other
  std::string_view shape{};              ///< I64 [2]: out, in
  std::string_view factor{};             ///< F32 [1]: multiplies all values,
  bool factor_divides = false;           ///< or divides them
  double constant = 1.0;                 ///< multiplies all values
  const format_spec* table = nullptr;    ///< codes and block scales are those of this format; null: evenly spaced codes
  unsigned widths = 0;                   ///< bit b: codes of b bits exist
  unsigned out_multiple = 1, in_multiple = 1;
  unsigned merged = 1;                   ///< last dimensions of the codes' tensor that count as one
  bool whole_rows = false;               ///< one scale a row, [out]
  std::string_view marker{};             ///< a U8 scalar that is 0

  [[nodiscard]] constexpr bool has_width(unsigned bits) const noexcept { return bits <= 8 && (widths >> bits & 1u) != 0; }
};

namespace detail {
constexpr word_order awq_order(unsigned) noexcept { return awq_nibbles; }
constexpr word_order awq_fast_order(unsigned) noexcept { return awq_fast_nibbles; }
constexpr word_order nibble_order(unsigned) noexcept { return low_nibble_first; }
constexpr word_order byte_order(unsigned) noexcept { return single_bytes; }
constexpr unsigned one_bit(unsigned bits) noexcept { return 1u << bits; }

constexpr checkpoint_family gptq(std::string_view name, word_order (*words)(unsigned), unsigned bias, unsigned widths) noexcept {
  return {.name = name, .method = "gptq", .codes = {".qweight", "I32", words, axis::in, axis::out}, .zeros = {".qzeros", "I32", words, axis::out, axis::out},
          .zero = zero_kind::required, .zero_bias = bias, .scales = ".scales", .scale_last = axis::out, .index = ".g_idx", .index_always = true,
          .widths = widths, .out_multiple = 32, .in_multiple = 32};
}
constexpr checkpoint_family awq_fast(std::string_view name, std::string_view zeros) noexcept {
  return {.name = name, .method = "awq", .codes = {".qweight", "I16", awq_fast_order, axis::in, axis::in, 4}, .zeros = {zeros, "F16"},
          .zero = zero_kind::scaled_floats, .scales = ".scales", .scale_dtype = "F16", .scale_last = axis::out, .padded_groups = true,
          .widths = 0b1'0000, .out_multiple = 4, .in_multiple = 64};
}
}  // namespace detail

/// In the order in which an unlabelled checkpoint is tried.
inline constexpr std::array<checkpoint_family, 14> checkpoint_families{{
    detail::gptq("gptq", dense_words, 1, 0b1'0001'1100),
    detail::gptq("gptq_v2", dense_words, 0, 0b1'0001'1100),
    detail::gptq("gptq_p", planar_words, 0, 0b1'1111'1100),
    {.name = "awq", .method = "awq", .codes = {".qweight", "I32", detail::awq_order, axis::out, axis::out},
     .zeros = {".qzeros", "I32", detail::awq_order, axis::out, axis::out}, .zero = zero_kind::required, .scales = ".scales", .scale_last = axis::out,
     .widths = 0b1'0000, .out_multiple = 8},
    {.name = "awq_gemv", .method = "awq", .codes = {".qweight", "I32", dense_words, axis::in, axis::in},
     .zeros = {".qzeros", "I32", dense_words, axis::in, axis::in}, .zero = zero_kind::required, .scales = ".scales", .padded_groups = true,
     .widths = 0b1'0000, .in_multiple = 32},
    detail::awq_fast("awq_gemv_fast", ".qzeros"),    // AutoAWQ's name for them
    detail::awq_fast("llm_awq", ".scaled_zeros"),
    {.name = "compressed-tensors", .method = "compressed-tensors", .codes = {".weight_packed", "I32", dense_words},
     .zeros = {".weight_zero_point", "I32", dense_words, axis::out, axis::in}, .zero = zero_kind::optional, .scales = ".weight_scale",
     .index = ".weight_g_idx", .shape = ".weight_shape", .widths = 0b1'1111'1110},
    {.name = "compressed-tensors-padded", .method = "compressed-tensors", .codes = {".weight_packed", "I32", padded_words},
     .zeros = {".weight_zero_point", "I32", padded_words, axis::out, axis::in}, .zero = zero_kind::optional, .scales = ".weight_scale",
     .index = ".weight_g_idx", .shape = ".weight_shape", .widths = 0b1'1111'1110},
    {.name = "compressed-tensors-int", .method = "compressed-tensors", .codes = {".weight", "I8", detail::byte_order},
     .zeros = {".weight_zero_point", "I8", detail::byte_order}, .zero = zero_kind::optional, .is_signed = true, .scales = ".weight_scale",
     .index = ".weight_g_idx", .widths = 0b1'1111'1110},
    {.name = "compressed-tensors-nvfp4", .method = "compressed-tensors", .codes = {".weight_packed", "U8", detail::nibble_order}, .scales = ".weight_scale",
     .scale_dtype = "F8_E4M3", .factor = ".weight_global_scale", .factor_divides = true, .table = &nvfp4::spec, .widths = 0b1'0000, .in_multiple = 16},
    {.name = "compressed-tensors-mxfp4", .method = "compressed-tensors", .codes = {".weight_packed", "U8", detail::nibble_order}, .scales = ".weight_scale",
     .scale_dtype = "U8", .table = &mxfp4::spec, .widths = 0b1'0000, .in_multiple = 32},
    {.name = "modelopt", .method = "modelopt", .codes = {".weight", "U8", detail::nibble_order}, .scales = ".weight_scale", .scale_dtype = "F8_E4M3",
     .factor = ".weight_scale_2", .table = &nvfp4::spec, .widths = 0b1'0000, .in_multiple = 16},
    {.name = "mxfp4", .method = "mxfp4", .codes = {"_blocks", "U8", detail::nibble_order}, .scales = "_scales", .scale_dtype = "U8",
     .table = &mxfp4::spec, .widths = 0b1'0000, .in_multiple = 32, .merged = 2},
}};

/// LLM.int8: the weight is code * SCB / 127, in this order of operations (functional.py, int8_vectorwise_dequant).
inline constexpr checkpoint_family bitsandbytes_int8{.name = "bitsandbytes-int8", .method = "bitsandbytes", .codes = {".weight", "I8", detail::byte_order},
    .is_signed = true, .scales = ".SCB", .scale_dtype = "F32", .constant = 7.874015718698502e-3, .widths = 0b1'0000'0000, .whole_rows = true,
    .marker = ".weight_format"};

/// The family of that name, or null.
inline const checkpoint_family* find_family(std::string_view name) noexcept {
  if (name == bitsandbytes_int8.name) return &bitsandbytes_int8;
  for (const checkpoint_family& f : checkpoint_families)
    if (f.name == name) return &f;
  return nullptr;
}

/// AutoAWQ's extent of a padded group dimension (packing_utils.py, calculate_zeros_width, in groups instead of words): nothing for groups
/// below 32 or between.
constexpr std::optional<std::size_t> awq_padded_groups(std::size_t cols, std::size_t group) noexcept {
  const std::size_t multiple = group >= 128 ? 1 : group == 64 ? 2 : group == 32 ? 4 : 0;
  if (multiple == 0) return std::nullopt;
  return 8 * round_up(ceil_div(cols / group, 8), multiple);
}

}  // namespace lowbit
