// From the exchange layout to panels, and one row of a panel back to floats.
#pragma once

#include <lowbit/kernel/exchange.hpp>
#include <lowbit/kernel/panel.hpp>
#include <lowbit/kernel/slab.hpp>

namespace lowbit::kernel {

/// Builds panels [panel_begin, panel_end) of a [rows, cols] matrix.
struct build_args {
  const format_spec* spec;
  const panel_layout* layout;
  const std::uint8_t* blocks;   ///< exchange layout
  std::size_t row_bytes;        ///< from one row of blocks to the next
  std::size_t rows, cols;
  std::size_t panel_begin, panel_end;
  std::uint8_t* panels;         ///< panel p is at p * layout->panel_bytes(cols); all its bytes are written
  std::uint8_t* scratch;        ///< build_scratch_bytes(*spec, *layout), of any value; one for each thread
};

/// Units that are built at once: so many that the walk over a row's blocks is long, so few that the codes of 16 rows stay in a
/// first-level cache.
LOWBIT_ALWAYS_INLINE constexpr std::size_t units_at_once(const panel_layout& p) noexcept {
  const std::size_t codes = p.slabs_per_unit * slab_steps * step_weights;
  return codes < 1024 ? 1024 / codes : 1;
}

/// Bytes from one row of those codes to the next: an odd number of cache lines, so that 16 rows do not meet in the same sets.
LOWBIT_ALWAYS_INLINE constexpr std::size_t build_row_bytes(const panel_layout& p) noexcept {
  return units_at_once(p) * p.slabs_per_unit * slab_steps * step_weights / 128 * 128 + 192;
}
/// Bytes of scratch that build_panels needs: the codes of 16 rows of those units, and 16 rows of one block.
LOWBIT_ALWAYS_INLINE constexpr std::size_t build_scratch_bytes(const format_spec& s, const panel_layout& p) noexcept {
  return panel_rows * (build_row_bytes(p) + round_up(s.bytes, 16));
}

namespace detail {

/// 16 x 16 bytes, turned: four perfect shuffles.
template <class Arch>
LOWBIT_ALWAYS_INLINE void transpose_bytes(bytes16<Arch> (&v)[panel_rows]) noexcept {
  for (int round = 0; round < 4; ++round) {
    bytes16<Arch> next[panel_rows];
    LOWBIT_UNROLL
    for (std::size_t i = 0; i < panel_rows / 2; ++i) {
      next[2 * i] = xsimd::zip_lo(v[i], v[i + panel_rows / 2]);
      next[2 * i + 1] = xsimd::zip_hi(v[i], v[i + panel_rows / 2]);
    }
    LOWBIT_UNROLL
    for (std::size_t i = 0; i < panel_rows; ++i) v[i] = next[i];
  }
}

/// Copies the fields of a block of each of up to 16 rows to a panel's header. The bytes that hold integers are turned first, so that
/// one register has the same byte of all rows: an element of a field then takes the same few operations for 16 rows as for one.
template <class Arch>
class header_builder {
 public:
  /// `turned`: panel_rows bytes for each byte of a block.
  LOWBIT_ALWAYS_INLINE header_builder(const format_spec& s, const panel_layout& p, std::size_t row_bytes, std::uint8_t* turned) noexcept
      : s_(s), p_(p), row_bytes_(row_bytes), turned_(turned) {
    find(s.sub_scale, s.sub_blocks(), sub_scale_at_);
    find(s.sub_minimum, s.sub_blocks(), sub_minimum_at_);
    const plane& zero = plane_at(s.zero_point, 0);
    zero_is_byte_ = zero.bits == 8 && zero.shift == 0 && zero.base % 8 == 0;
    if (!zero_is_byte_) find(s.zero_point, 1, zero_point_at_);
    // Whole registers are read, within the block where it has room for one.
    if (s.bytes >= sizeof(bytes) && begin_ > s.bytes - sizeof(bytes)) begin_ = s.bytes - sizeof(bytes);
  }

  /// `block` is the first row's, `left` the bytes from it to the end of the row.
  LOWBIT_ALWAYS_INLINE void operator()(const std::uint8_t* block, std::size_t left, std::size_t rows, std::uint8_t* header) const noexcept {
    copy_numbers(size_of(s_.scale.type), block + s_.scale.at, rows, header);
    if (s_.minimum.present()) copy_numbers(size_of(s_.scale.type), block + s_.minimum.at, rows, header + p_.minimum_at);
    if (zero_is_byte_) copy_numbers(1, block + plane_at(s_.zero_point, 0).base / 8, rows, header + p_.zero_at);
    if (begin_ >= end_) return;
    turn(block, left, rows);
    if (p_.stored_zero && !zero_is_byte_) raw(s_.zero_point, zero_point_at_, 0).store_unaligned(header + p_.zero_at);
    if (p_.shape.sub == sub_kind::none) return;
    for (std::size_t j = 0; j < p_.sub_blocks; ++j) {
      bytes scale = value(s_.sub_scale, sub_scale_at_, j);
      if (p_.shape.sub == sub_kind::nibbles) scale |= shift_bytes(value(s_.sub_minimum, sub_minimum_at_, j), -4);
      scale.store_unaligned(header + p_.sub_scale_at + j * panel_rows);
      if (p_.shape.sub == sub_kind::scales_minima) value(s_.sub_minimum, sub_minimum_at_, j).store_unaligned(header + p_.sub_minimum_at + j * panel_rows);
    }
  }

  /// The scales of blocks whose sub-blocks are the panel's blocks, the first `count` of each row, `stride` bytes from header to header.
  LOWBIT_ALWAYS_INLINE void split(const std::uint8_t* block, std::size_t left, std::size_t rows, std::size_t count, std::uint8_t* header,
                                  std::size_t stride) const noexcept {
    turn(block, left, rows);
    for (std::size_t j = 0; j < count; ++j) raw(s_.sub_scale, sub_scale_at_, j).store_unaligned(header + j * stride);
  }

 private:
  using bytes = bytes16<Arch>;
  LOWBIT_ALWAYS_INLINE static const plane& plane_at(const integer_field& f, std::size_t k) noexcept { return (&f.planes[0])[k]; }

  /// Where a field's elements are, in bits.
  using element_bits = std::uint32_t[3][max_sub_blocks];

  LOWBIT_ALWAYS_INLINE void find(const integer_field& f, std::size_t elements, element_bits& at) noexcept {
    for (std::size_t k = 0; k < 3 && plane_at(f, k).bits != 0; ++k)
      for (std::size_t j = 0; j < elements; ++j) {
        at[k][j] = static_cast<std::uint32_t>(plane_at(f, k).position(j));
        const std::size_t first = at[k][j] / 8, last = (at[k][j] + plane_at(f, k).bits - 1) / 8;
        if (first < begin_) begin_ = first;
        if (last >= end_) end_ = last + 1;
      }
  }

  LOWBIT_ALWAYS_INLINE void turn(const std::uint8_t* block, std::size_t left, std::size_t rows) const noexcept {
    for (std::size_t at = begin_; at < end_; at += sizeof(bytes)) {
      const std::size_t from = s_.bytes < sizeof(bytes) ? 0 : at < s_.bytes - sizeof(bytes) ? at : s_.bytes - sizeof(bytes);
      bytes row[panel_rows];
      for (std::size_t r = 0; r < panel_rows; ++r) {
        if (r >= rows) {
          row[r] = bytes(std::uint8_t{0});
        } else if (left >= sizeof(bytes)) {
          row[r] = bytes::load_unaligned(block + r * row_bytes_ + from);
        } else {
          std::uint8_t whole[sizeof(bytes)] = {};
          std::memcpy(whole, block + r * row_bytes_, s_.bytes);
          row[r] = bytes::load_unaligned(whole);
        }
      }
      transpose_bytes<Arch>(row);
      for (std::size_t i = 0; i < sizeof(bytes); ++i) row[i].store_unaligned(turned_ + (from + i) * panel_rows);
    }
  }

  /// The stored bits of element j.
  LOWBIT_ALWAYS_INLINE bytes raw(const integer_field& f, const element_bits& at_bit, std::size_t j) const noexcept {
    bytes v(std::uint8_t{0});
    for (std::size_t k = 0; k < 3 && plane_at(f, k).bits != 0; ++k) {
      const plane& p = plane_at(f, k);
      const std::size_t bit = at_bit[k][j];
      const auto shift = static_cast<unsigned>(bit % 8);
      const std::uint8_t* const at = turned_ + bit / 8 * panel_rows;
      const auto part = [](const std::uint8_t* from, unsigned first, unsigned n, unsigned to) LOWBIT_INLINE_LAMBDA {
        const bytes masked = bytes::load_unaligned(from) & bytes(static_cast<std::uint8_t>(((1u << n) - 1) << first));
        return shift_bytes(masked, static_cast<int>(first) - static_cast<int>(to));
      };
      const unsigned here = p.bits < 8 - shift ? p.bits : 8 - shift;
      v |= part(at, shift, here, p.shift);
      if (here < p.bits) v |= part(at + panel_rows, 0, p.bits - here, p.shift + here);
    }
    return v;
  }
  /// The integer that they mean, as a byte (two's complement where negative).
  LOWBIT_ALWAYS_INLINE bytes value(const integer_field& f, const element_bits& at, std::size_t j) const noexcept {
    const unsigned sign = f.is_signed ? 1u << (f.bits() - 1) : 0u, less = f.is_signed ? sign : static_cast<unsigned>(f.zero);
    return (raw(f, at, j) ^ bytes(static_cast<std::uint8_t>(sign))) - bytes(static_cast<std::uint8_t>(less));
  }

  LOWBIT_ALWAYS_INLINE void copy_numbers(std::size_t size, const std::uint8_t* from, std::size_t rows, std::uint8_t* to) const noexcept {
    const auto copy = [&](auto n) LOWBIT_INLINE_LAMBDA {
      for (std::size_t r = 0; r < rows; ++r) std::memcpy(to + r * n(), from + r * row_bytes_, n());
    };
    if (size == 4) copy(std::integral_constant<std::size_t, 4>{});
    else if (size == 1) copy(std::integral_constant<std::size_t, 1>{});
    else copy(std::integral_constant<std::size_t, 2>{});
  }

  const format_spec& s_;
  const panel_layout& p_;
  std::size_t row_bytes_, begin_ = ~std::size_t{0}, end_ = 0;
  std::uint8_t* turned_;
  bool zero_is_byte_;
  element_bits sub_scale_at_, sub_minimum_at_, zero_point_at_;
};

}  // namespace detail

/// Plain weights: a transposition.
template <class Arch>
void build_plain_panels(const build_args& a) noexcept {
  const std::size_t size = size_of(a.spec->element), panel_bytes = a.layout->panel_bytes(a.cols);
  if (panel_bytes == 0) return;  // no columns, and so no memory
  const std::size_t at_once = slab_steps * step_weights / size;
  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::uint8_t* const out = a.panels + panel * panel_bytes;
    const std::uint8_t* const rows = a.blocks + panel * panel_rows * a.row_bytes;
    const std::size_t count = a.rows - panel * panel_rows < panel_rows ? a.rows - panel * panel_rows : panel_rows;
    const std::size_t written = count < panel_rows ? 0 : a.cols * panel_rows * size;
    std::memset(out + written, 0, panel_bytes - written);
    std::size_t c = 0;
    for (; count == panel_rows && c + at_once <= a.cols; c += at_once) {
      std::uint8_t* const to = out + c * panel_rows * size;
      if (size == 4) {
        detail::build_slab<Arch, 8>(rows + c * size, a.row_bytes, 0, to);
      } else {  // words of two columns
        alignas(64) std::uint32_t pairs[slab_steps][panel_rows];
        detail::build_slab<Arch, 8>(rows + c * size, a.row_bytes, 0, reinterpret_cast<std::uint8_t*>(pairs));
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
  const detail::header_builder<Arch> build_header(s, p, a.row_bytes, a.scratch + panel_rows * build_row_bytes(p));
  const std::size_t blocks = p.blocks(a.cols), panel_bytes = p.panel_bytes(a.cols), per = s.block / p.block;
  const std::size_t block_codes = p.block_steps() * step_weights, blocks_at_once = units_at_once(p) * p.blocks_per_unit;
  const std::size_t row_codes = build_row_bytes(p);
  const bool padded = p.sub_steps * step_weights != p.sub_block, packed = !padded && detail::is_packed_in_words(s);
  // Codes are kept unsigned below 8 bits, signed at 8. What pads rows and sub-blocks is multiplied by zeros.
  const bool flip = p.shape.level == level_kind::signed_byte ? !s.codes.is_signed : s.codes.is_signed;
  const auto flip_bit = static_cast<std::uint8_t>(flip ? 1u << (p.shape.bits - 1) : 0u);

  for (std::size_t panel = a.panel_begin; panel < a.panel_end; ++panel) {
    std::uint8_t* const out = a.panels + panel * panel_bytes;
    const std::size_t rows = a.rows - panel * panel_rows < panel_rows ? a.rows - panel * panel_rows : panel_rows;
    for (std::size_t first = 0; first < blocks; first += blocks_at_once) {
      const std::size_t count = blocks - first < blocks_at_once ? blocks - first : blocks_at_once, stored = ceil_div(count, per);
      const std::uint8_t* const from = a.blocks + panel * panel_rows * a.row_bytes + first / per * s.bytes;
      const std::size_t row_left = s.row_blocks(a.cols) * s.bytes - first / per * s.bytes;
      std::uint8_t* unit = out + p.header_at(first);
      for (std::size_t b = 0; b < count; unit += p.unit_bytes()) {
        std::memset(unit, 0, p.unit_headers());  // what pads them
        for (std::size_t k = 0; k < p.blocks_per_unit && b < count; k += per, b += per) {
          std::uint8_t* const header = unit + k * p.header_bytes;
          const std::size_t at = b / per * s.bytes;
          if (per == 1) build_header(from + at, row_left - at, rows, header);
          else build_header.split(from + at, row_left - at, rows, count - b < per ? count - b : per, header, p.header_bytes);
        }
      }
      if (rows < panel_rows || padded || count < blocks_at_once) std::memset(a.scratch, 0, panel_rows * row_codes);
      for (std::size_t r = 0; r < rows; ++r) {
        const std::uint8_t* const row = from + r * a.row_bytes;
        std::uint8_t* const codes = a.scratch + r * row_codes;
        // What comes next in this row, or in that of the next panel: sixteen rows are more streams than a processor follows by itself.
        const std::size_t taken = stored * s.bytes;
        if (taken < row_left || panel + 1 < a.panel_end) {
          const std::uint8_t* const next = row + (taken < row_left ? taken : panel_rows * a.row_bytes - first / per * s.bytes);
          for (std::size_t i = 0; i < taken; i += 64) __builtin_prefetch(next + i);
        }
        if (packed) {
          detail::copy_packed(s, row, stored, codes);
          continue;
        }
        if (!padded && s.block <= piece) {
          unpack_codes<Arch>(s, row, stored, 0, s.block, codes);
          continue;
        }
        std::uint8_t buffer[piece];
        for (std::size_t b = 0; b < stored; ++b)
          for (std::size_t i = 0; i < s.block; i += piece) {
            const std::size_t n = s.block - i < piece ? s.block - i : piece;
            unpack_codes<Arch>(s, row + b * s.bytes, 1, i, n, buffer);
            for (std::size_t k = 0; k < n; ++k)
              codes[b * per * block_codes + (i + k) / p.sub_block * (p.sub_steps * step_weights) + (i + k) % p.sub_block] = buffer[k];
          }
      }
      const std::size_t slabs = ceil_div(count * p.block_steps(), slab_steps);
      detail::with_width(p.shape.bits, [&](auto bits) LOWBIT_INLINE_LAMBDA {
        std::uint8_t* slab = out + p.codes_at(first);
        std::size_t left_of_unit = p.slabs_per_unit;
        const auto pass = [&]() LOWBIT_INLINE_LAMBDA {
          slab += p.slab_bytes();
          if (--left_of_unit != 0) return;
          slab += p.unit_headers();
          left_of_unit = p.slabs_per_unit;
        };
        if constexpr (8 % bits() == 0 && bits() != 8) {
          if (packed) {
            std::size_t line = 0;
            detail::build_packed_slabs<Arch, bits()>(a.scratch, row_codes, slabs, flip_bit, [&]() LOWBIT_INLINE_LAMBDA {
              std::uint8_t* const to = slab + line * step_bytes;
              if (++line == bits()) {
                line = 0;
                pass();
              }
              return to;
            });
            return;
          }
        }
        for (std::size_t k = 0; k < slabs; ++k, pass()) detail::build_slab<Arch, bits()>(a.scratch + k * slab_steps * step_weights, row_codes, flip_bit, slab);
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
