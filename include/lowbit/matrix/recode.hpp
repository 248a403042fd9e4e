// The same values in another format: codes moved, scales repeated or joined, nothing rounded.
//
// GPTQ's symmetric 4-bit groups are q4_0 blocks with a scale for every 32; a 3-bit code is a 4-bit one; a 4-bit code less its zero-point
// is a level of q5_0. Whatever can be said of that follows from the two specs: a block is carried over if its scale and its levels
// exist in the target, and is then compared value by value.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/format/runtime.hpp>
#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/matrix/row_codes.hpp>

#include <atomic>
#include <cmath>

namespace lowbit {

/// Weights carried over, and whether their codes are as wide as before (then they are the same codes, perhaps with another zero).
struct recoded {
  packed_matrix weights;
  bool codes_kept = false;
};

namespace detail {

/// Carries rows over from one format of codes to another; one for each thread.
class row_recoder {
 public:
  /// Scales are multiplied by 2^exponent on the way; `rounded` accepts scales and minima that the target has to round.
  row_recoder(packed_view from, const format_spec& to, int exponent, bool rounded)
      : from_(from), to_(to), exponent_(exponent), rounded_(rounded), codes_(from.spec->row_blocks(from.cols) * from.spec->block), out_(to.row_blocks(from.cols) * to.block),
        sub_scale_(to.sub_blocks()), sub_minimum_(to.sub_blocks()) {}

  /// Whether row r exists in the target; written to `out` if so.
  bool operator()(std::size_t r, std::uint8_t* out) {
    read_row_codes(*from_.spec, from_.row(r), from_.cols, codes_.data());
    std::fill(out_.begin(), out_.end(), std::uint8_t{0});
    for (std::size_t b = 0; b < to_.row_blocks(from_.cols); ++b)
      if (!block(r, b, out + b * to_.bytes)) return false;
    write_row_codes(to_, out_.data(), from_.cols, out);
    return true;
  }

 private:
  struct group {
    affine map;
    int zero;
    bool operator==(const group& o) const noexcept {
      return map.scale == o.map.scale && map.offset == o.map.offset && zero == o.zero;
    }
  };
  [[nodiscard]] group group_at(std::size_t r, std::size_t c) const noexcept {
    const format_spec& s = *from_.spec;
    const std::uint8_t* const block = from_.row(r) + c / s.block * s.bytes;
    group g{affine_of(s, block, c % s.block / s.sub_block()), zero_point_of(s, block)};
    const float factor = rounded_ ? static_cast<float>(from_.factor) : std::ldexp(1.0f, exponent_);
    g.map.scale *= factor;
    g.map.offset *= factor;
    return g;
  }

  bool block(std::size_t r, std::size_t b, std::uint8_t* out) {
    std::uint32_t scale = 0, minimum = 0;
    std::uint8_t zero = 0;
    bool first = true;
    std::fill(sub_scale_.begin(), sub_scale_.end(), std::uint8_t{0});
    group shared{};
    for (std::size_t j = 0; j < to_.sub_blocks(); ++j) {
      const std::size_t begin = b * to_.block + j * to_.sub_block(), end = std::min(begin + to_.sub_block(), from_.cols);
      if (begin >= end) break;
      const group g = group_at(r, begin);
      for (std::size_t c = begin / from_.spec->sub_block() * from_.spec->sub_block(); c < end; c += from_.spec->sub_block())
        if (c > begin && !(group_at(r, c) == g)) return false;
      const bool own_scales = to_.sub_number != number::none;
      if (!own_scales && !first && !(g == shared)) return false;
      if (first || !(g == shared)) {
        shared = g;
        if (!map_levels(g.zero)) return false;
      }
      first = false;
      const number type = own_scales ? to_.sub_number : to_.scale.type;
      const std::uint32_t bits = number_bits(type, g.map.scale);
      if (!rounded_ && number_value(type, bits) != g.map.scale) return false;
      if (own_scales) sub_scale_[j] = static_cast<std::uint8_t>(bits);
      else scale = bits;
      zero = static_cast<std::uint8_t>(zero_);
      float offset = 0.0f;
      if (to_.minimum.present()) {
        minimum = number_bits(to_.minimum.type, g.map.offset - g.map.scale * static_cast<float>(shift_));
        offset = number_value(to_.minimum.type, minimum);
      } else if (g.map.offset != 0.0f) {
        return false;
      }
      for (std::size_t c = begin; c < end; ++c) {
        const unsigned code = codes_[c];
        if (target_[code] < 0) return false;
        out_[c] = static_cast<std::uint8_t>(target_[code]);
        const float was = rounded_product(g.map.scale, level_[code]) + g.map.offset;
        const float is = rounded_product(g.map.scale, target_level_[code]) + offset;
        if (!rounded_ && !(was == is)) return false;
      }
    }
    write_header(to_, {&scale, &minimum, &zero, sub_scale_.data(), sub_minimum_.data(), nullptr}, out);
    return true;
  }

  /// The code that each source code becomes, -1 for none, where the source's zero-point is `zero`.
  bool map_levels(int zero) {
    const format_spec& s = *from_.spec;
    const int half = 1 << (to_.codes.bits() - 1);
    // Levels of evenly spaced codes are code - shift: the target's stored zero-point, or what its minimum makes up for.
    shift_ = s.values.present() ? half : s.zero_point.present() ? zero : -s.codes.lowest();
    zero_ = to_.zero_point.present() ? shift_ : 0;
    if (zero_ > 2 * half - 1) return false;
    for (unsigned code = 0; code < s.levels(); ++code) {
      level_[code] = level_of(s, code, zero);
      target_[code] = -1;
      if (to_.values.present()) {
        for (unsigned k = 0; k < to_.values.size; ++k)
          if (to_.values.values[k] == level_[code] && (target_[code] < 0 || k == code)) target_[code] = static_cast<int>(k);
        if (target_[code] >= 0) target_level_[code] = to_.values.values[static_cast<unsigned>(target_[code])];
        continue;
      }
      const int level = static_cast<int>(level_[code]);
      if (static_cast<float>(level) != level_[code]) continue;
      const int value = level + (to_.minimum.present() ? shift_ : zero_);
      if (value < to_.codes.lowest() || value > to_.codes.highest()) continue;
      target_[code] = static_cast<int>(to_.codes.stored(value));
      target_level_[code] = static_cast<float>(value - zero_);
    }
    return true;
  }

  packed_view from_;
  const format_spec& to_;
  int exponent_;
  bool rounded_;
  std::vector<std::uint8_t> codes_, out_, sub_scale_, sub_minimum_;
  std::array<float, 256> level_{}, target_level_{};
  std::array<int, 256> target_{};
  int shift_ = 0, zero_ = 0;
};

}  // namespace detail

/// The same weights in their format's planes(). Expects a format that is not planes itself.
template <executor E>
packed_matrix in_planes(packed_view w, E& executor) {
  packed_matrix out(w.spec->planes(), w.rows, w.cols);
  if (w.inputs != nullptr) out.set_inputs({w.inputs, w.inputs + w.cols});
  out.set_factor(w.factor);
  for_parts(executor, w.rows, 4, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) recode_row(*w.spec, w.row(r), w.cols, out.row(r));
  });
  return out;
}

/// The same values in format `to`, or nothing where it does not have them all. The order of the columns and the factor are kept; a float
/// format gets the inputs' order and the factor multiplied in. Formats with integer sub-scales, and those that
/// are not planes, are only reached from themselves.
template <executor E>
std::optional<recoded> recode(packed_view from, const format_spec& to, E& executor, int exponent = 0) {
  if (from.spec->is_recoded() && from.spec != &to && !to.is_float()) return recode(in_planes(from, executor).view(), to, executor, exponent);
  recoded out{packed_matrix(to, from.rows, from.cols), from.spec->codes.bits() == to.codes.bits() && !to.is_float()};
  std::atomic<bool> lost{false};
  if (to.is_float()) {
    for_parts(executor, from.rows, 4, [&](std::size_t begin, std::size_t end) {
      std::vector<float> values(from.cols);
      for (std::size_t r = begin; r < end && !lost; ++r) {
        decode(from.middle_rows(r, 1), {values.data(), 1, from.cols});
        for (std::size_t c = 0; c < from.cols; ++c) {
          const std::uint32_t bits = number_bits(to.element, values[c]);
          if (number_value(to.element, bits) != values[c] && !std::isnan(values[c])) lost = true;
          std::memcpy(out.weights.row(r) + c * to.bytes, &bits, to.bytes);
        }
      }
    });
    if (lost) return std::nullopt;
    return out;
  }
  if (from.inputs != nullptr) out.weights.set_inputs({from.inputs, from.inputs + from.cols});
  out.weights.set_factor(std::ldexp(from.factor, -exponent));
  if (from.spec == &to && exponent == 0) {
    std::copy(from.data, from.data + from.size_bytes(), out.weights.bytes().begin());
    return out;
  }
  if (from.spec->is_float() || from.spec->is_recoded() || to.is_recoded() || (to.sub_scale.present() && to.sub_number == number::none)) return std::nullopt;
  for_parts(executor, from.rows, 4, [&](std::size_t begin, std::size_t end) {
    detail::row_recoder carry(from, to, exponent, false);
    for (std::size_t r = begin; r < end && !lost; ++r)
      if (!carry(r, out.weights.row(r))) lost = true;
  });
  if (lost) return std::nullopt;
  return out;
}

/// The same codes with scales, minima and the factor rounded to what `to` stores of them, where it has the levels: closer than quantising
/// anew. Nothing where it has not, or columns are out of order.
template <executor E>
std::optional<packed_matrix> recode_rounded(packed_view from, const format_spec& to, E& executor) {
  if (from.spec->is_recoded() && !to.is_recoded()) return recode_rounded(in_planes(from, executor).view(), to, executor);
  if (from.inputs != nullptr || from.spec->is_float() || to.is_float() || to.is_recoded() || (to.sub_scale.present() && to.sub_number == number::none)) return std::nullopt;
  packed_matrix out(to, from.rows, from.cols);
  std::atomic<bool> lost{false};
  for_parts(executor, from.rows, 4, [&](std::size_t begin, std::size_t end) {
    detail::row_recoder carry(from, to, 0, true);
    for (std::size_t r = begin; r < end && !lost; ++r)
      if (!carry(r, out.row(r))) lost = true;
  });
  if (lost) return std::nullopt;
  return out;
}

/// The weights in a format that the unit has products for, with groups short enough for int8 activations, which share the groups: scales
/// as f16 (with a power of two as factor), groups above 256 weights cut; float32 where that does not give the same values. Nothing where
/// they run as they are.
template <executor E>
std::optional<packed_matrix> runnable(packed_view w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
  const format_spec& s = *w.spec;
  const bool uniform = !s.is_float() && !s.is_recoded() && !s.values.present() && !s.sub_scale.present() && !s.minimum.present() && !s.codes.is_signed;
  constexpr std::size_t longest = 256;
  if (unit.find(kernel::layout_of(s.planes()).shape) != nullptr && (!uniform || s.block <= longest)) return std::nullopt;
  if (uniform) {
    std::size_t group = s.block;
    for (std::size_t part = 128; group > longest && part >= 32; part /= 2)
      if (s.block % part == 0 || s.block >= w.cols) group = part;
    float largest = 0.0f;
    for (std::size_t r = 0; r < w.rows; ++r)
      for (std::size_t b = 0; b < s.row_blocks(w.cols); ++b) largest = std::max(largest, std::abs(read_scalar(s.scale, w.row(r) + b * s.bytes)));
    int exponent = 0;
    if (s.scale.type != number::f16 && largest > 0.0f && std::isfinite(largest)) exponent = 15 - std::ilogb(largest) - 1;
    const format_spec& to = uniform_format(s.codes.bits(), group, !s.zero_point.present(), number::f16);
    if (unit.find(kernel::layout_of(to).shape) != nullptr)
      if (auto same = recode(w, to, executor, exponent)) return std::move(same->weights);
  }
  if (s.is_float()) return std::nullopt;
  return std::move(recode(w, spec_of<f32>, executor)->weights);
}

}  // namespace lowbit
