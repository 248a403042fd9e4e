// From the exchange layout to panels, and one row of a panel back to floats.
#pragma once

#include <lowbit/kernel/exchange.hpp>
#include <lowbit/kernel/panel.hpp>

namespace lowbit::kernel {

/// Builds panels [panel_begin, panel_end) of a [rows, cols] matrix.
struct build_args {
  const format_spec* spec;
  const panel_layout* layout;
  const std::uint8_t* blocks;   ///< exchange layout
  std::size_t row_bytes;        ///< from one row of blocks to the next
  std::size_t rows, cols;
  std::size_t panel_begin, panel_end;
  std::uint8_t* panels;         ///< zeroed; panel p is at p * layout->panel_bytes(cols)
  std::uint8_t* scratch;        ///< build_scratch_bytes(*layout); one for each thread
};

/// Units that are built at once: so many that the walk over a row's blocks is long, so few that the codes of 16 rows stay in a
/// first-level cache.
LOWBIT_ALWAYS_INLINE constexpr std::size_t units_at_once(const panel_layout& p) noexcept {
  const std::size_t codes = p.slabs_per_unit * slab_steps * step_weights;
  return codes < 1024 ? 1024 / codes : 1;
}

/// Bytes of scratch that build_panels needs: the codes of 16 rows of those units.
LOWBIT_ALWAYS_INLINE constexpr std::size_t build_scratch_bytes(const panel_layout& p) noexcept {
  return panel_rows * units_at_once(p) * p.slabs_per_unit * slab_steps * step_weights;
}

namespace detail {

/// 32 codes of each of 16 rows, `stride` bytes from row to row, as eight steps.
template <class Arch>
LOWBIT_ALWAYS_INLINE void gather_steps(const std::uint8_t* rows, std::size_t stride, std::uint8_t* steps) noexcept {
  using words = simd::batch<std::uint32_t, simd::arch_128<Arch>>;
  for (std::size_t r = 0; r < panel_rows; r += 4)
    for (std::size_t half = 0; half < 2; ++half) {
      const auto row = [&](std::size_t i) LOWBIT_INLINE_LAMBDA {
        return xsimd::bitwise_cast<std::uint32_t>(bytes16<Arch>::load_unaligned(rows + (r + i) * stride + half * 16));
      };
      const words even_low = xsimd::zip_lo(row(0), row(2)), odd_low = xsimd::zip_lo(row(1), row(3));
      const words even_high = xsimd::zip_hi(row(0), row(2)), odd_high = xsimd::zip_hi(row(1), row(3));
      const auto store = [&](std::size_t step, words v) LOWBIT_INLINE_LAMBDA {
        xsimd::bitwise_cast<std::uint8_t>(v).store_unaligned(steps + (half * 4 + step) * step_bytes + r * step_weights);
      };
      store(0, xsimd::zip_lo(even_low, odd_low));
      store(1, xsimd::zip_hi(even_low, odd_low));
      store(2, xsimd::zip_lo(even_high, odd_high));
      store(3, xsimd::zip_hi(even_high, odd_high));
    }
}

/// Packs eight steps (64 bytes each, codes of `Bits` bits) into a slab.
template <class Arch, unsigned Bits>
LOWBIT_ALWAYS_INLINE void pack_slab(const std::uint8_t* steps, std::uint8_t* slab) noexcept {
  using bytes = simd::batch<std::uint8_t, Arch>;
  if constexpr (Bits == 8) {
    std::memcpy(slab, steps, slab_steps * step_bytes);
  } else {
    const auto plane = [&](auto width, unsigned from) LOWBIT_INLINE_LAMBDA {
      constexpr unsigned per_vector = 8 / width();
      const bytes mask(static_cast<std::uint8_t>((1u << width()) - 1));
      for (std::size_t v = 0; v < width(); ++v, slab += step_bytes)
        for (std::size_t lane = 0; lane < step_bytes; lane += bytes::size) {
          bytes packed(std::uint8_t{0});
          LOWBIT_UNROLL
          for (unsigned n = 0; n < per_vector; ++n) {
            const auto step = bytes::load_unaligned(steps + (v * per_vector + n) * step_bytes + lane);
            packed |= shift_bytes(shift_bytes(step, static_cast<int>(from)) & mask, -static_cast<int>(n * width()));
          }
          packed.store_unaligned(slab + lane);
        }
    };
    if constexpr ((Bits & 4u) != 0) plane(std::integral_constant<unsigned, 4>{}, 0);
    if constexpr ((Bits & 2u) != 0) plane(std::integral_constant<unsigned, 2>{}, Bits & 4u);
    if constexpr ((Bits & 1u) != 0) plane(std::integral_constant<unsigned, 1>{}, Bits & 6u);
  }
}

/// Copies the fields of one row's blocks to row `r` of panel headers.
template <class Arch>
class header_builder {
 public:
  LOWBIT_ALWAYS_INLINE header_builder(const format_spec& s, const panel_layout& p) noexcept
      : s_(s), p_(p), sub_scale_(s.sub_scale, s.sub_blocks()), sub_minimum_(s.sub_minimum, s.sub_blocks()), zero_point_(s.zero_point, 1) {}

  LOWBIT_ALWAYS_INLINE void operator()(const std::uint8_t* block, std::size_t r, std::uint8_t* header) const noexcept {
    copy_number(block + s_.scale.at, header, r);
    if (s_.minimum.present()) copy_number(block + s_.minimum.at, header + p_.minimum_at, r);
    if (p_.stored_zero) header[p_.zero_at + r] = static_cast<std::uint8_t>(zero_point_.raw(block));
    if (p_.shape.sub == sub_kind::none) return;
    std::uint8_t scales[max_sub_blocks], minima[max_sub_blocks];
    sub_scale_.template unpack_values<Arch>(block, scales);
    if (p_.shape.sub != sub_kind::scales) sub_minimum_.template unpack_values<Arch>(block, minima);
    if (p_.shape.sub == sub_kind::nibbles)
      for (std::size_t j = 0; j < round_up(p_.sub_blocks, 8); ++j) scales[j] = static_cast<std::uint8_t>(scales[j] | minima[j] << 4);
    std::uint8_t* const at = header + p_.sub_scale_at + r;
    for (std::size_t j = 0; j < p_.sub_blocks; ++j) at[j * panel_rows] = scales[j];
    if (p_.shape.sub == sub_kind::scales_minima)
      for (std::size_t j = 0; j < p_.sub_blocks; ++j) header[p_.sub_minimum_at + j * panel_rows + r] = minima[j];
  }

  /// The scales of a block whose sub-blocks are the panel's blocks, `stride` bytes from header to header.
  LOWBIT_ALWAYS_INLINE void split(const std::uint8_t* block, std::size_t count, std::size_t r, std::uint8_t* header, std::size_t stride) const noexcept {
    std::uint8_t scales[max_sub_blocks];
    sub_scale_.template unpack<Arch>(block, scales);
    for (std::size_t j = 0; j < count; ++j) header[j * stride + r] = scales[j];
  }

 private:
  LOWBIT_ALWAYS_INLINE void copy_number(const std::uint8_t* from, std::uint8_t* to, std::size_t r) const noexcept {
    if (s_.scale.type == number::f32) std::memcpy(to + r * 4, from, 4);
    else if (size_of(s_.scale.type) == 1) to[r] = *from;
    else std::memcpy(to + r * 2, from, 2);
  }

  const format_spec& s_;
  const panel_layout& p_;
  sub_block_field sub_scale_, sub_minimum_, zero_point_;
};

}  // namespace detail

/// Plain weights: a transposition.
template <class Arch>
void build_plain_panels(const build_args& a) noexcept {
  const std::size_t size = size_of(a.spec->element), panel_bytes = a.layout->panel_bytes(a.cols);
  const std::size_t at_once = slab_steps * step_weights / size;
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::uint8_t* const out = a.panels + panel * panel_bytes;
    const std::uint8_t* const rows = a.blocks + panel * panel_rows * a.row_bytes;
    const std::size_t count = a.rows - panel * panel_rows < panel_rows ? a.rows - panel * panel_rows : panel_rows;
    std::size_t c = 0;
    for (; count == panel_rows && c + at_once <= a.cols; c += at_once) {
      std::uint8_t* const to = out + c * panel_rows * size;
      if (size == 4) {
        detail::gather_steps<Arch>(rows + c * size, a.row_bytes, to);
      } else {  // words of two columns
        alignas(64) std::uint32_t pairs[slab_steps][panel_rows];
        detail::gather_steps<Arch>(rows + c * size, a.row_bytes, reinterpret_cast<std::uint8_t*>(pairs));
        for (std::size_t k = 0; k < slab_steps; ++k) {
          std::uint16_t columns[2][panel_rows];
          for (std::size_t r = 0; r < panel_rows; ++r) {
            columns[0][r] = static_cast<std::uint16_t>(pairs[k][r]);
            columns[1][r] = static_cast<std::uint16_t>(pairs[k][r] >> 16);
          }
          std::memcpy(to + k * sizeof columns, columns, sizeof columns);
        }
      }
    }
    for (; c < a.cols; ++c)
      for (std::size_t r = 0; r < count; ++r) std::memcpy(out + (c * panel_rows + r) * size, rows + r * a.row_bytes + c * size, size);
  }
}

template <class Arch>
void build_panels(const build_args& a) noexcept {
  const format_spec& s = *a.spec;
  const panel_layout& p = *a.layout;
  if (p.shape.level == level_kind::plain) return build_plain_panels<Arch>(a);
  const detail::header_builder<Arch> build_header(s, p);
  const std::size_t blocks = p.blocks(a.cols), panel_bytes = p.panel_bytes(a.cols), per = s.block / p.block;
  const std::size_t block_codes = p.block_steps() * step_weights, blocks_at_once = units_at_once(p) * p.blocks_per_unit;
  const std::size_t row_codes = blocks_at_once * block_codes;
  const bool padded = p.sub_steps * step_weights != p.sub_block;
  // Codes are kept unsigned below 8 bits, signed at 8.
  const bool flip = p.shape.level == level_kind::signed_byte ? !s.codes.is_signed : s.codes.is_signed;
  const auto flip_bit = static_cast<std::uint8_t>(flip ? 1u << (p.shape.bits - 1) : 0u);

  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::uint8_t* const out = a.panels + panel * panel_bytes;
    const std::size_t rows = a.rows - panel * panel_rows < panel_rows ? a.rows - panel * panel_rows : panel_rows;
    for (std::size_t first = 0; first < blocks; first += blocks_at_once) {
      const std::size_t count = blocks - first < blocks_at_once ? blocks - first : blocks_at_once, stored = ceil_div(count, per);
      std::uint8_t* const units = out + p.header_at(first);
      if (rows < panel_rows || padded || count < blocks_at_once) std::memset(a.scratch, 0, panel_rows * row_codes);
      for (std::size_t r = 0; r < rows; ++r) {
        const std::uint8_t* const row = a.blocks + (panel * panel_rows + r) * a.row_bytes + first / per * s.bytes;
        std::uint8_t* const codes = a.scratch + r * row_codes;
        std::uint8_t* unit = units;
        for (std::size_t b = 0; b < count; unit += p.unit_bytes())
          for (std::size_t k = 0; k < p.blocks_per_unit && b < count; k += per, b += per) {
            std::uint8_t* const header = unit + k * p.header_bytes;
            if (per == 1) build_header(row + b * s.bytes, r, header);
            else build_header.split(row + b / per * s.bytes, count - b < per ? count - b : per, r, header, p.header_bytes);
          }
        if (!padded && s.block <= piece) {
          unpack_codes<Arch>(s, row, stored, 0, s.block, codes);
        } else {
          std::uint8_t buffer[piece];
          for (std::size_t b = 0; b < stored; ++b)
            for (std::size_t i = 0; i < s.block; i += piece) {
              const std::size_t n = s.block - i < piece ? s.block - i : piece;
              unpack_codes<Arch>(s, row + b * s.bytes, 1, i, n, buffer);
              for (std::size_t k = 0; k < n; ++k)
                codes[b * per * block_codes + (i + k) / p.sub_block * (p.sub_steps * step_weights) + (i + k) % p.sub_block] = buffer[k];
            }
        }
        if (flip_bit == 0) continue;
        for (std::size_t b = 0; b < count; ++b)
          for (std::size_t j = 0; j < p.sub_blocks; ++j) {
            std::uint8_t* const sub = codes + b * block_codes + j * p.sub_steps * step_weights;
            for (std::size_t k = 0; k < p.sub_block; ++k) sub[k] ^= flip_bit;
          }
      }
      const std::size_t slabs = ceil_div(count * p.block_steps(), slab_steps);
      detail::with_width(p.shape.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
        for (std::size_t i = 0; i < slabs; ++i) {
          const std::size_t unit = i / p.slabs_per_unit, in_unit = i % p.slabs_per_unit;
          alignas(64) std::uint8_t steps[slab_steps * step_bytes];
          detail::gather_steps<Arch>(a.scratch + i * slab_steps * step_weights, row_codes, steps);
          detail::pack_slab<Arch, bits()>(steps, out + p.codes_at(first + unit * p.blocks_per_unit) + in_unit * p.slab_bytes());
        }
      });
    }
  }
}

/// The stored code of (row r of the panel, step k of a unit's codes, weight w of the step).
LOWBIT_ALWAYS_INLINE unsigned panel_code(const std::uint8_t* unit_codes, unsigned bits, std::size_t step, std::size_t r,
                                         std::size_t w) noexcept {
  const std::uint8_t* slab = unit_codes + step / slab_steps * bits * step_bytes;
  const std::size_t in_slab = step % slab_steps, lane = r * step_weights + w;
  if (bits == 8) return slab[in_slab * step_bytes + lane];
  unsigned code = 0, from = 0;
  for (unsigned width = 4; width != 0; width /= 2) {
    if ((bits & width) == 0) continue;
    const std::size_t per_vector = 8 / width;
    code |= ((slab[in_slab / per_vector * step_bytes + lane] >> (in_slab % per_vector * width)) & ((1u << width) - 1)) << from;
    slab += width * step_bytes;
    from += width;
  }
  return code;
}

/// One row of weights out of its panel as floats: the codec's values. For embeddings and tests, not for products.
template <class Arch>
void read_panel_row(const panel_layout& p, const std::uint8_t* panel, std::size_t r, std::size_t cols, float* out) noexcept {
  if (p.shape.level == level_kind::plain) {
    const std::size_t size = size_of(p.shape.scale);
    for (std::size_t c = 0; c < cols; ++c) out[c] = read_scalar({p.shape.scale, 0}, panel + (c * panel_rows + r) * size);
    return;
  }
  const unsigned scale_bytes = size_of(p.shape.scale);
  for (std::size_t b = 0, c = 0; c < cols; ++b) {
    const std::uint8_t* const header = panel + p.header_at(b);
    const std::uint8_t* const codes = panel + p.codes_at(b);
    const float scale = read_scalar({p.shape.scale, 0}, header + r * scale_bytes);
    const float minimum = p.shape.minimum ? read_scalar({p.shape.scale, 0}, header + p.minimum_at + r * scale_bytes) : 0.0f;
    const int zero = p.stored_zero ? header[p.zero_at + r] - p.zero_bias : p.zero;
    for (std::size_t j = 0; j < p.sub_blocks && c < cols; ++j) {
      affine a{scale, minimum};
      if (p.shape.sub != sub_kind::none) {
        const std::uint8_t sub = header[p.sub_scale_at + j * panel_rows + r];
        const int factor = p.shape.sub == sub_kind::nibbles ? sub & 15 : static_cast<std::int8_t>(sub);
        a.scale = rounded_product(scale, static_cast<float>(factor));
        if (p.shape.minimum) {
          const int less = p.shape.sub == sub_kind::nibbles ? sub >> 4 : header[p.sub_minimum_at + j * panel_rows + r];
          a.offset = -rounded_product(minimum, static_cast<float>(less));
        }
      }
      for (std::size_t i = 0; i < p.sub_block && c < cols; ++i, ++c) {
        const std::size_t step = p.first_step(b) + j * p.sub_steps + i / step_weights;
        const unsigned code = panel_code(codes, p.shape.bits, step, r, i % step_weights);
        float level;
        if (p.shape.level == level_kind::unsigned_code) level = static_cast<float>(static_cast<int>(code) - zero);
        else if (p.shape.level == level_kind::signed_byte) level = static_cast<float>(static_cast<std::int8_t>(code) - zero);
        else level = (&p.float_table[0])[code & 15];
        const float v = rounded_product(a.scale, level);
        out[c] = p.shape.minimum ? v + a.offset : v;
      }
    }
  }
}

}  // namespace lowbit::kernel
