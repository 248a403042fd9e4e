// Writing a weight as the tensors of any checkpoint_family, code by code: what checkpoint_read.hpp reads, byte for byte.
#pragma once

#include <lowbit/io/checkpoint_family.hpp>
#include <lowbit/io/safetensors.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/matrix/row_codes.hpp>

#include <cmath>

namespace lowbit {

/// One tensor of a weight's checkpoint form: name, dtype and shape, and its bytes (empty where only the declaration was asked for).
struct checkpoint_part {
  safetensor declaration;
  std::vector<std::uint8_t> bytes;
};

/// Evenly spaced codes with one scale a block and no minimum, unsigned as uniform() makes them.
inline bool is_plain_uniform(const format_spec& s) noexcept {
  return !s.is_float() && s.gguf < 0 && !s.values.present() && !s.sub_scale.present() && !s.minimum.present() && !s.codes.is_signed &&
         (s.zero_point.present() || s.codes.zero == 1 << (s.codes.bits() - 1));
}

/// The dtype of scales that are stored as that number; null where safetensors has none.
inline const char* scale_dtype(number type) noexcept {
  constexpr const char* names[] = {nullptr, "F32", "F16", "BF16", "U8", "F8_E4M3"};
  return names[static_cast<std::size_t>(type)];
}

/// Why a family cannot hold a matrix of this format, shape and order, or nothing. Looks at no value.
inline std::optional<std::string> cannot_hold(const checkpoint_family& f, const packed_view& w) {
  const format_spec& s = *w.spec;
  const auto in = [&](const std::string& what) { return std::string(f.name) + " has no " + what; };
  if (f.table != nullptr) {
    if (&s != f.table) return in("weights in format " + std::string(s.name));
  } else {
    if (!is_plain_uniform(s)) return in("weights in format " + std::string(s.name));
    if (!f.has_width(s.codes.bits())) return in("codes of " + std::to_string(s.codes.bits()) + " bits");
    if (f.zero == zero_kind::none && s.zero_point.present()) return in("zero-points");
    if (s.scale.type != number::f16 && s.scale.type != number::bf16 && s.scale.type != number::f32) return in("such scales");
    if (!f.scale_dtype.empty() && f.scale_dtype != scale_dtype(s.scale.type)) return in(std::string(scale_dtype(s.scale.type)) + " scales");
    if (f.method != "compressed-tensors" && f.scale_dtype.empty() && s.scale.type == number::f32) return in("F32 scales");
    if (f.whole_rows && s.row_blocks(w.cols) != 1) return in("groups within a row");
    if (f.padded_groups && !awq_padded_groups(w.cols, s.block)) return in("groups of " + std::to_string(s.block));
    if (f.method == "awq" && w.cols % s.block != 0) return in("rows of " + std::to_string(w.cols) + " that groups of " + std::to_string(s.block) + " do not divide");
  }
  if (w.rows % f.out_multiple != 0) return in("matrices of " + std::to_string(w.rows) + " rows (multiples of " + std::to_string(f.out_multiple) + " only)");
  if (w.cols % f.in_multiple != 0) return in("rows of " + std::to_string(w.cols) + " weights (multiples of " + std::to_string(f.in_multiple) + " only)");
  if (w.inputs != nullptr && f.index.empty()) return in("way to say the order of the inputs");
  if (f.factor.empty() && w.factor != f.constant) return in("factor for a whole tensor");
  return std::nullopt;
}

namespace detail {
/// What a family has in its file for a factor of a whole tensor, where it has a place for one.
inline float factor_in_file(const checkpoint_family& f, double factor) noexcept { return static_cast<float>(f.factor_divides ? 1.0 / factor : factor); }

/// What a family with zero_kind::scaled_floats has in its file for a zero-point.
inline f16 scaled_zero(float scale, std::uint32_t zero_point) noexcept { return to_f16(-(scale * static_cast<float>(zero_point))); }
}  // namespace detail

/// A factor for a whole tensor, as whoever reads the family's file has it.
inline double stored_factor(const checkpoint_family& f, double factor) noexcept {
  if (f.factor.empty()) return factor;
  const auto stored = static_cast<double>(detail::factor_in_file(f, factor));
  return f.factor_divides ? 1.0 / stored : stored;
}

/// The weights, as float32, that a family means whose zero-points are stored as f16(-(scale * zero-point)), where that is rounded for one of
/// these; nothing where every value stays what it is. Expects what cannot_hold lets pass.
inline std::optional<packed_matrix> with_rounded_zeros(const checkpoint_family& f, const packed_view& w) {
  const format_spec& s = *w.spec;
  if (f.zero != zero_kind::scaled_floats || !s.zero_point.present()) return std::nullopt;
  packed_matrix out(spec_of<f32>, w.rows, w.cols);
  std::vector<std::uint8_t> codes(s.row_blocks(w.cols) * s.block);
  bool same = true;
  for (std::size_t r = 0; r < w.rows; ++r) {
    read_row_codes(s, w.row(r), w.cols, codes.data());
    for (std::size_t b = 0; b < s.row_blocks(w.cols); ++b) {
      const std::uint8_t* const block = w.row(r) + b * s.bytes;
      const float scale = read_scalar(s.scale, block);
      const std::uint32_t zero_point = s.zero_point.raw(block, 0);
      const float zero = to_float(detail::scaled_zero(scale, zero_point));
      same = same && zero == -(scale * static_cast<float>(zero_point));
      for (std::size_t c = b * s.block; c < std::min<std::size_t>((b + 1) * s.block, w.cols); ++c) {
        const float value = scale * static_cast<float>(codes[c]) + zero;
        std::memcpy(out.row(r) + c * sizeof value, &value, sizeof value);
      }
    }
  }
  if (same) return std::nullopt;
  return out;
}

/// The tensors of weight `module` (without ".weight"). With `w.data` null, their declarations only. Fails (unsupported) as cannot_hold
/// says, and (bad_value) where a zero-point has no stored form: 0 in GPTQ's first version, a product with its scale that f16 cannot hold.
inline result<std::vector<checkpoint_part>> checkpoint_parts(const std::string& module, const packed_view& w, const checkpoint_family& f) {
  const format_spec& s = *w.spec;
  if (const auto why = cannot_hold(f, w)) return failure{errc::unsupported, "'" + module + "': " + *why};
  const bool fill = w.data != nullptr, split = s.sub_number != number::none;
  const unsigned bits = s.codes.bits(), half = 1u << (bits - 1);
  const std::size_t groups = f.table != nullptr ? w.cols / s.sub_block() : s.row_blocks(w.cols);
  const std::size_t scale_groups = f.padded_groups ? *awq_padded_groups(w.cols, s.block) : groups;
  std::vector<checkpoint_part> parts;
  parts.reserve(7);
  const auto part = [&](std::string_view suffix, std::string_view dtype, std::vector<std::uint64_t> shape, std::size_t bytes) -> std::uint8_t* {
    parts.push_back({{module + std::string(suffix), std::string(dtype), std::move(shape), {}}, std::vector<std::uint8_t>(fill ? bytes : 0)});
    return parts.back().bytes.data();
  };
  const auto matrix_shape = [](std::array<std::uint64_t, 2> a) { return std::vector<std::uint64_t>{a[0], a[1]}; };

  const integer_layout layout = f.codes.layout(bits);
  std::vector<std::uint64_t> shape = matrix_shape(layout.shape(w.rows, w.cols));
  if (f.merged == 2) shape = {w.rows, groups, s.sub_block() / 2};
  std::uint8_t* const codes = part(f.codes.suffix, f.codes.dtype, shape, layout.bytes(w.rows, w.cols));
  const bool has_zeros = f.zero != zero_kind::none && (f.zero != zero_kind::optional || s.zero_point.present());
  const bool floats = f.zero == zero_kind::scaled_floats;
  const auto scale_shape = f.whole_rows                    ? std::vector<std::uint64_t>{w.rows}
                           : f.scale_last == axis::in ? std::vector<std::uint64_t>{w.rows, scale_groups}
                                                      : std::vector<std::uint64_t>{scale_groups, w.rows};
  const number scale_type = split ? s.sub_number : s.scale.type;
  const std::size_t scale_size = size_of(scale_type);
  const integer_layout zero_layout = has_zeros && !floats ? f.zeros.layout(bits) : integer_layout{};
  std::uint8_t* const zeros = !has_zeros ? nullptr
                              : floats   ? part(f.zeros.suffix, f.zeros.dtype, scale_shape, w.rows * scale_groups * 2)
                                         : part(f.zeros.suffix, f.zeros.dtype, matrix_shape(zero_layout.shape(w.rows, scale_groups)),
                                                zero_layout.bytes(w.rows, scale_groups));
  std::uint8_t* const scales = part(f.scales, f.table != nullptr ? f.scale_dtype : scale_dtype(scale_type), scale_shape, w.rows * scale_groups * scale_size);
  const bool indexed = !f.index.empty() && (f.index_always || w.inputs != nullptr);
  std::uint8_t* const index = indexed ? part(f.index, "I32", {w.cols}, w.cols * 4) : nullptr;
  std::uint8_t* const extents = !f.shape.empty() ? part(f.shape, "I64", {2}, 16) : nullptr;
  std::uint8_t* const factor = !f.factor.empty() ? part(f.factor, "F32", f.factor_divides ? std::vector<std::uint64_t>{1} : std::vector<std::uint64_t>{}, 4) : nullptr;
  if (!f.marker.empty()) part(f.marker, "U8", {}, 1);
  if (!fill) return parts;

  if (index != nullptr)
    for (std::size_t c = 0; c < w.cols; ++c) {
      const auto group = static_cast<std::uint32_t>(c / s.block);
      std::memcpy(index + 4 * (w.inputs != nullptr ? w.inputs[c] : c), &group, 4);
    }
  if (extents != nullptr) {
    const std::int64_t both[2] = {static_cast<std::int64_t>(w.rows), static_cast<std::int64_t>(w.cols)};
    std::memcpy(extents, both, 16);
  }
  if (factor != nullptr) {
    const float value = detail::factor_in_file(f, w.factor);
    std::memcpy(factor, &value, 4);
  }

  constexpr std::size_t together = 64;  // rows of whole tiles
  std::vector<std::uint8_t> row(s.row_blocks(w.cols) * s.block), plain(std::min(together, w.rows) * w.cols), all_zeros(zeros != nullptr && !floats ? w.rows * scale_groups : 0);
  for (std::size_t r0 = 0; r0 < w.rows; r0 += together) {
    const std::size_t r1 = std::min(r0 + together, w.rows);
    for (std::size_t r = r0; r < r1; ++r) {
      read_row_codes(s, w.row(r), w.cols, row.data());
      std::uint8_t* const to = plain.data() + (r - r0) * w.cols;
      for (std::size_t c = 0; c < w.cols; ++c)
        to[w.inputs != nullptr ? w.inputs[c] : c] = static_cast<std::uint8_t>(f.is_signed ? row[c] - half : row[c]);
      for (std::size_t g = 0; g < groups; ++g) {
        const std::uint8_t* const block = w.row(r) + (split ? g / s.sub_blocks() : g) * s.bytes;
        const std::size_t at = f.scale_last == axis::in ? r * scale_groups + g : g * w.rows + r;
        const std::uint32_t scale = split ? s.sub_scale.raw(block, g % s.sub_blocks()) : read_bits_of(s.scale, block);
        std::memcpy(scales + at * scale_size, &scale, scale_size);
        if (zeros == nullptr) continue;
        const unsigned zero = s.zero_point.present() ? s.zero_point.raw(block, 0) : half;
        const float step = floats ? number_value(number::f16, scale) : 0.0f;
        const f16 product = detail::scaled_zero(step, zero);
        if (zero >= 2 * half || zero < f.zero_bias || (std::isinf(to_float(product)) && std::isfinite(step)))
          return failure{errc::bad_value, "'" + module + "': row " + std::to_string(r) + ", group " + std::to_string(g) + " has zero-point " +
                                              std::to_string(zero) + ", which " + std::string(f.name) + " cannot store"};
        if (floats) {
          std::memcpy(zeros + at * 2, &product, 2);
        } else {
          all_zeros[r * scale_groups + g] = static_cast<std::uint8_t>(f.is_signed ? zero - half : zero - f.zero_bias);
        }
      }
    }
    write_integers(layout, codes, w.rows, w.cols, r0, r1, plain.data(), w.cols);
  }
  if (zeros != nullptr && !floats) write_integers(zero_layout, zeros, w.rows, scale_groups, 0, w.rows, all_zeros.data(), scale_groups);
  return parts;
}

}  // namespace lowbit
