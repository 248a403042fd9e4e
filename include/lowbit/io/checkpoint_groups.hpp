// A weight of any checkpoint_family between its tensors and a packed_matrix: codes, scales and zero-points by groups of inputs.
//
// Groups that are not in the order of the inputs (act-order) are brought together, by a stable sort, and the order is kept with the matrix.
#pragma once

#include <lowbit/io/checkpoint_family.hpp>
#include <lowbit/io/safetensors.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/matrix/row_codes.hpp>

#include <cmath>
#include <numeric>
#include <optional>

namespace lowbit {

/// What a configuration says of a weight; nothing where it says nothing.
struct checkpoint_hints {
  unsigned bits = 0;
  std::size_t group = 0;            ///< 0: unknown; one group a row says itself
  std::optional<bool> symmetric{};
  bool no_other_width = false;      ///< `bits` is the only width to try
  bool reordered = false;           ///< inputs are in groups by an index, without which they cannot be read
};

namespace detail {

inline failure bad_part(const safetensor& t, const std::string& what, errc kind = errc::shape) { return {kind, "tensor '" + t.name + "': " + what}; }

inline std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string s = "[";
  for (const std::uint64_t d : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(d);
  return s + "]";
}

/// How a dtype's numbers are scales; none where they are not.
inline number scale_number(std::string_view dtype, const format_spec* table) noexcept {
  if (table != nullptr) return dtype == "F8_E4M3" ? number::e4m3_half : dtype == "U8" ? number::e8m0_half : number::none;
  return dtype == "F16" ? number::f16 : dtype == "BF16" ? number::bf16 : dtype == "F32" ? number::f32 : number::none;
}

/// A weight on its way from tensors to a packed_matrix.
struct grouped_weight {
  const checkpoint_family* family = nullptr;
  const safetensor* codes = nullptr;
  const safetensor* scales = nullptr;
  unsigned bits = 0;
  std::size_t rows = 0, cols = 0, groups = 0, scale_groups = 0;  // groups, and the extent of that dimension, padding included
  std::size_t block = 0;                       // stored columns that share a scale
  std::vector<std::uint32_t> inputs;           // of each stored column; empty: their order
  std::vector<std::uint32_t> group_of;         // of each block; empty: its own number
  std::vector<std::uint8_t> zeros;             // [rows, groups], empty where all are in the middle
  const format_spec* spec = nullptr;
  double factor = 1.0;

  [[nodiscard]] std::size_t scale_at(std::size_t r, std::size_t g) const noexcept {
    if (scales->data.size() == size_of(scale_number(scales->dtype, family->table))) return 0;  // one for the whole tensor
    return family->scale_last == axis::in ? r * scale_groups + g : g * rows + r;
  }
  [[nodiscard]] std::uint32_t scale_bits(std::size_t r, std::size_t g) const noexcept {
    const unsigned size = size_of(scale_number(scales->dtype, family->table));
    std::uint32_t bits_of = 0;
    std::memcpy(&bits_of, scales->data.data() + scale_at(r, g) * size, size);
    return bits_of;
  }
  /// Whether every code and scale is in range; the values of rows [begin, end).
  bool read_rows(std::size_t begin, std::size_t end, packed_matrix& w) const {
    constexpr std::size_t together = 64;  // rows of whole tiles, whichever way they lie
    const integer_layout layout = family->codes.layout(bits);
    const format_spec& s = *spec;
    const std::size_t blocks = s.row_blocks(cols), row_groups = cols / std::max<std::size_t>(s.sub_block(), 1);
    std::vector<std::uint8_t> stored(std::min(together, end - begin) * cols), row(blocks * s.block);
    const unsigned half = 1u << (bits - 1);
    bool good = true;
    std::vector<std::uint8_t> sub_scale(s.sub_blocks()), sub_minimum(s.sub_blocks());
    for (std::size_t r0 = begin; r0 < end; r0 += together) {
      const std::size_t r1 = std::min(r0 + together, end);
      read_integers(layout, codes->data.data(), rows, cols, r0, r1, stored.data(), cols);
      for (std::size_t r = r0; r < r1; ++r) {
        const std::uint8_t* const from = stored.data() + (r - r0) * cols;
        for (std::size_t c = 0; c < cols; ++c) {
          const unsigned code = (from[inputs.empty() ? c : inputs[c]] + (family->is_signed ? half : 0u)) & 255u;
          good &= code < 2 * half;
          row[c] = static_cast<std::uint8_t>(code);
        }
        for (std::size_t b = 0; b < blocks; ++b) {
          const std::size_t g = group_of.empty() ? b : group_of[b];
          std::uint32_t scale = 0, minimum = 0;
          std::uint8_t zero = 0;
          if (s.sub_number != number::none) {
            for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
              const std::size_t at = b * s.sub_blocks() + j;
              sub_scale[j] = at < row_groups ? static_cast<std::uint8_t>(scale_bits(r, at)) : std::uint8_t{0};
              good &= sub_scale[j] < 0x7f;
            }
          } else {
            scale = scale_bits(r, g);
            good &= s.scale.type != number::e8m0_half || scale != 255;
            if (s.zero_point.present()) zero = zeros.empty() ? static_cast<std::uint8_t>(half) : zeros[r * groups + g];
          }
          write_header(s, {&scale, &minimum, &zero, sub_scale.data(), sub_minimum.data(), nullptr}, w.row(r) + b * s.bytes);
        }
        write_row_codes(s, row.data(), cols, w.row(r));
      }
    }
    return good;
  }
};

/// The block structure of g_idx: a stable order of the inputs by group, the block that all groups are made of, and each block's group.
inline status order_by_group(const safetensor& index, grouped_weight& w) {
  if (index.dtype != "I32" || index.shape != std::vector<std::uint64_t>{w.cols}) return bad_part(index, "is not I32 [" + std::to_string(w.cols) + "]");
  std::vector<std::uint32_t> group(w.cols), inputs(w.cols);
  for (std::size_t c = 0; c < w.cols; ++c) {
    std::int32_t g;
    std::memcpy(&g, index.data.data() + 4 * c, 4);
    if (g < 0 || static_cast<std::size_t>(g) >= w.groups)
      return bad_part(index, "input " + std::to_string(c) + " is in group " + std::to_string(g) + " of " + std::to_string(w.groups), errc::bad_value);
    group[c] = static_cast<std::uint32_t>(g);
  }
  std::iota(inputs.begin(), inputs.end(), 0u);
  const bool sorted = std::is_sorted(group.begin(), group.end());
  if (!sorted) std::stable_sort(inputs.begin(), inputs.end(), [&](std::uint32_t a, std::uint32_t b) { return group[a] < group[b]; });
  // Groups of one size but for a short last one are blocks; of any other sizes, whole numbers of a smaller block.
  std::vector<std::size_t> sizes;
  for (std::size_t c = 0; c < w.cols; ++c) {
    if (c == 0 || group[inputs[c]] != group[inputs[c - 1]]) sizes.push_back(0);
    ++sizes.back();
  }
  std::size_t block = sizes[0];
  for (std::size_t i = 1; i < sizes.size(); ++i) block = i + 1 == sizes.size() && sizes[i] < block ? block : std::gcd(block, sizes[i]);
  w.block = block;
  for (std::size_t c = 0; c < w.cols; c += block) w.group_of.push_back(group[inputs[c]]);
  bool plain = true;
  for (std::size_t b = 0; b < w.group_of.size(); ++b) plain = plain && w.group_of[b] == b;
  if (plain) w.group_of.clear();
  if (!sorted) w.inputs = std::move(inputs);
  return done{};
}

/// Extents of a tensor as a matrix, `merged` last dimensions as one.
inline std::optional<std::array<std::uint64_t, 2>> as_matrix(const safetensor& t, unsigned merged) noexcept {
  if (t.shape.size() < std::size_t{merged} + 1 || t.data.empty()) return std::nullopt;
  std::array<std::uint64_t, 2> s{1, 1};
  for (std::size_t i = 0; i < t.shape.size(); ++i) s[i + merged >= t.shape.size()] *= t.shape[i];  // no overflow: the bytes are there
  return s;
}

/// The matrix that codes of a width would make; nothing where the words do not come out even.
inline std::optional<std::array<std::size_t, 2>> extents_of(const checkpoint_family& f, std::array<std::uint64_t, 2> tensor, unsigned bits) noexcept {
  const integer_layout l = f.codes.layout(bits);
  const bool last_is_words = l.packed == l.last;
  const std::size_t words = static_cast<std::size_t>(tensor[last_is_words]), lanes = static_cast<std::size_t>(tensor[!last_is_words]);
  if (words % (std::size_t{l.order.words} * l.interleave) != 0) return std::nullopt;
  const std::size_t length = words / l.interleave / l.order.words * l.order.integers, across = lanes * l.interleave;
  return l.packed == axis::in ? std::array<std::size_t, 2>{across, length} : std::array<std::size_t, 2>{length, across};
}

/// What the zero-points of some rows would have to have added so that their weights are around zero, in steps: near what GPTQ's true version
/// adds, 0 or 1. Expects codes that lie along the input. (Of more than 4 bits, a step is too little beside what the mean of weights is.)
inline double missing_from_zeros(const grouped_weight& w, std::span<const std::uint8_t> zeros) {
  const std::size_t rows = std::min<std::size_t>(w.rows, 16);
  std::vector<std::uint8_t> codes(rows * w.cols);
  read_integers(w.family->codes.layout(w.bits), w.codes->data.data(), w.rows, w.cols, 0, rows, codes.data(), w.cols);
  const auto mean = [](std::span<const std::uint8_t> v) { return static_cast<double>(std::accumulate(v.begin(), v.end(), std::uint64_t{0})) / static_cast<double>(v.size()); };
  return mean(codes) - mean(zeros.first(rows * w.groups));
}

/// Reads zero-points, checks GPTQ's label against them, and drops them where all are in the middle and always stored.
inline status read_zeros(const safetensor& zeros, const checkpoint_hints& hints, grouped_weight& w, std::string& warning) {
  const checkpoint_family& f = *w.family;
  const unsigned mask = (1u << w.bits) - 1, half = 1u << (w.bits - 1);
  w.zeros.resize(w.rows * w.groups);
  if (f.zero == zero_kind::scaled_floats) {
    if (zeros.dtype != "F16" || zeros.shape != w.scales->shape) return bad_part(zeros, "is not F16 of the scales' shape");
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t g = 0; g < w.groups; ++g) {
        f16 product;
        std::memcpy(&product, zeros.data.data() + w.scale_at(r, g) * 2, 2);
        const float scale = number_value(number::f16, w.scale_bits(r, g)), zero = scale == 0.0f ? 0.0f : std::nearbyint(-to_float(product) / scale);
        if (!(zero >= 0.0f && zero <= static_cast<float>(mask)) || to_float(to_f16(scale * zero)) != -to_float(product))
          return bad_part(zeros, "row " + std::to_string(r) + ", group " + std::to_string(g) + " is not a whole zero-point", errc::bad_value);
        w.zeros[r * w.groups + g] = static_cast<std::uint8_t>(zero);
      }
  } else {
    const integer_layout layout = f.zeros.layout(w.bits);
    const std::size_t stored_groups = f.padded_groups ? w.scale_groups : w.groups;
    const auto shape = layout.shape(w.rows, stored_groups);
    if (zeros.dtype != f.zeros.dtype || zeros.shape != std::vector<std::uint64_t>{shape[0], shape[1]})
      return bad_part(zeros, "is " + zeros.dtype + " " + shape_text(zeros.shape) + " where " + std::string(f.zeros.dtype) + " " + shape_text({shape[0], shape[1]}) + " was due");
    std::vector<std::uint8_t> all(w.rows * stored_groups);
    read_integers(layout, zeros.data.data(), w.rows, stored_groups, 0, w.rows, all.data(), stored_groups);
    const auto all_are = [&](unsigned v) {
      for (std::size_t i = 0; i < all.size(); ++i)
        if (i % stored_groups < w.groups && all[i] != (v & mask)) return false;
      return true;
    };
    unsigned bias = f.zero_bias;
    // A symmetric checkpoint shows which convention it really follows; labels have been wrong.
    if (f.method == "gptq" && hints.symmetric.value_or(true)) {
      if (bias == 1 && all_are(half)) {
        bias = 0;
        warning = "tensor '" + zeros.name + "' holds zero-points as gptq_v2 stores them, although the checkpoint is labelled gptq; they are read as gptq_v2";
      } else if (bias == 0 && all_are(half - 1)) {
        bias = 1;
        warning = "tensor '" + zeros.name + "' holds zero-points as gptq (version 1) stores them, although the checkpoint is labelled " + std::string(f.name) +
                  "; they are read as version 1";
      }
    }
    // Zero-points of any value tell it as well, but not for certain.
    if (f.method == "gptq" && warning.empty() && w.bits <= 4 && w.cols >= 256 && !all_are(all[0])) {
      const double missing = missing_from_zeros(w, all);
      if (std::abs(missing - (1.0 - bias)) < 0.25)
        warning = "tensor '" + zeros.name + "' has zero-points that are likely to be " + (bias == 1 ? "gptq_v2's" : "gptq's (version 1)") + ", although the checkpoint is labelled " +
                  std::string(f.name) + ", as which they are read: the weights' mean is a step away from zero";
    }
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t g = 0; g < w.groups; ++g) {
        const unsigned stored = all[r * stored_groups + g];
        const unsigned value = f.is_signed ? (stored + half) & 255u : (stored + bias) & mask;
        if (value > mask) return bad_part(zeros, "a zero-point is out of range", errc::bad_value);
        w.zeros[r * w.groups + g] = static_cast<std::uint8_t>(value);
      }
  }
  if (f.zero != zero_kind::optional && std::all_of(w.zeros.begin(), w.zeros.end(), [&](std::uint8_t z) { return z == half; })) w.zeros.clear();
  return done{};
}

/// How many inputs share a scale, from the number of groups.
inline std::optional<std::size_t> group_size(std::size_t cols, std::size_t groups, std::size_t hint) noexcept {
  if (hint != 0 && ceil_div(cols, hint) == groups) return std::min(hint, cols);
  if (groups == 0 || groups > cols) return std::nullopt;
  if (cols % groups == 0) return cols / groups;
  for (const std::size_t g : {128u, 64u, 32u, 256u, 512u, 1024u, 16u, 8u})
    if (ceil_div(cols, g) == groups) return g;
  return std::nullopt;
}

}  // namespace detail

}  // namespace lowbit
