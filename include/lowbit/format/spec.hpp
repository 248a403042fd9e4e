// A format is written once: format_spec is the whole description of a block of low-bit weights, as one constexpr value.
//
// Every integer field of a block is a sum of bit planes, and the place of a plane is an affine map of the element's digits
// (shape : stride, as CuTe writes layouts): bit(i) = base + sum of digit_k(i) * stride_k. From this one value follow validity,
// encode and decode, the packing kernels, the panels, file i/o, the lists that tests and benchmarks run over and the table in
// the documentation. A type with a static member `spec` is the format's identity.
#pragma once

#include <lowbit/core/bits.hpp>
#include <lowbit/core/float16.hpp>

#include <array>
#include <concepts>
#include <string_view>

namespace lowbit {

/// How one real number is stored. The `_half` types are worth half their standard's value (ggml's convention for tables of
/// doubled codes).
enum class number : std::uint8_t { none, f32, f16, bf16, e8m0_half, e4m3_half };

/// Bytes that a number takes.
LOWBIT_ALWAYS_INLINE constexpr unsigned size_of(number type) noexcept {
  constexpr unsigned sizes[] = {0, 4, 2, 2, 1, 1};
  return sizes[static_cast<unsigned>(type)];
}

/// A number at a byte of the block.
struct scalar_field {
  number type = number::none;
  unsigned at = 0;
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool present() const noexcept { return type != number::none; }
};

/// Mixed-radix digits of an element's index, lowest first, and the distance in bits that each moves. A zero extent ends the list.
struct axes {
  std::array<unsigned, 4> extent{};
  std::array<int, 4> stride{};
};

/// The bits [shift, shift + bits) of every element of a field.
struct plane {
  unsigned bits = 0;
  unsigned shift = 0;
  unsigned base = 0;  ///< of element 0, in bits; byte(n) helps
  axes digits{};

  /// Where element i of this plane begins, in bits from the start of the block.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t position(std::size_t i) const noexcept {
    int bit = static_cast<int>(base);
    auto rest = static_cast<unsigned>(i);  // 32 bits: divisions by them take a third of the time
    for (std::size_t k = 0; k < digits.extent.size() && digits.extent[k] != 0; ++k) {
      bit += static_cast<int>(rest % digits.extent[k]) * digits.stride[k];
      rest /= digits.extent[k];
    }
    return static_cast<std::size_t>(bit);
  }
  /// How many elements the digits count.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t elements() const noexcept {
    std::size_t n = digits.extent[0] != 0;
    for (unsigned e : digits.extent) n *= e != 0 ? e : 1;
    return n;
  }
};

/// The position of byte n, in bits.
LOWBIT_ALWAYS_INLINE constexpr unsigned byte(unsigned n) noexcept { return 8 * n; }

/// Kernels keep the places of a block's sub-scales on the stack.
inline constexpr std::size_t max_sub_blocks = 64;

/// Integers, one for each element (a weight, a sub-block, or the one block): raw = sum of planes, value = raw - zero, or raw
/// read as two's complement.
struct integer_field {
  std::array<plane, 3> planes{};
  int zero = 0;
  bool is_signed = false;

  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool present() const noexcept { return planes[0].bits != 0; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr unsigned bits() const noexcept {
    unsigned n = 0;
    for (const plane& p : planes) n += p.bits;
    return n;
  }
  /// The stored bits of element i.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr unsigned raw(const std::uint8_t* block, std::size_t i) const noexcept {
    unsigned v = 0;
    for (const plane& p : planes)
      if (p.bits != 0) v |= read_bits(block, p.position(i), p.bits) << p.shift;
    return v;
  }
  LOWBIT_ALWAYS_INLINE constexpr void set_raw(std::uint8_t* block, std::size_t i, unsigned value) const noexcept {
    for (const plane& p : planes)
      if (p.bits != 0) write_bits(block, p.position(i), p.bits, value >> p.shift);
  }
  /// The integer that stored bits mean.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr int value(unsigned raw_bits) const noexcept {
    const int v = static_cast<int>(raw_bits);
    return is_signed && (v >> (bits() - 1)) != 0 ? v - (1 << bits()) : v - zero;
  }
  /// The stored bits of an integer. Expects lowest() <= v <= highest().
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr unsigned stored(int v) const noexcept {
    return static_cast<unsigned>(is_signed ? v : v + zero) & ((1u << bits()) - 1);
  }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr int lowest() const noexcept { return is_signed ? -(1 << (bits() - 1)) : -zero; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr int highest() const noexcept { return lowest() + (1 << bits()) - 1; }
};

/// A table from code to value, for formats whose values are not evenly spaced. Empty means value = code - zero. Made by
/// make_codebook, or with a format's own decision bounds.
struct codebook {
  unsigned size = 0;
  std::array<float, 16> values{};
  std::array<std::uint8_t, 16> order{};   ///< codes by ascending value
  std::array<float, 15> bounds{};         ///< a value belongs to order[k + 1] or a later code iff it is above bounds[k]

  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool present() const noexcept { return size != 0; }
  /// All values are integers that fit in eight signed bits: integer kernels can look them up.
  [[nodiscard]] constexpr bool fits_int8() const noexcept {
    for (unsigned i = 0; i < size; ++i)
      if (values[i] < -127.0f || values[i] > 127.0f || values[i] != static_cast<float>(static_cast<int>(values[i]))) return false;
    return true;
  }
  /// The code of the value that `level` is rounded to.
  [[nodiscard]] constexpr unsigned nearest(float level) const noexcept {
    unsigned k = 0;
    for (unsigned i = 0; i + 1 < size; ++i) k += level > bounds[i];
    return order[k];
  }
};

/// A codebook that rounds to the nearest value; a value midway goes to the lower one. Of equal values the first code is used.
constexpr codebook make_codebook(unsigned size, const std::array<float, 16>& values) noexcept {
  codebook c{size, values, {}, {}};
  for (unsigned i = 0; i < size; ++i) {  // insertion sort
    unsigned k = i;
    for (; k > 0 && values[c.order[k - 1]] > values[i]; --k) c.order[k] = c.order[k - 1];
    c.order[k] = static_cast<std::uint8_t>(i);
  }
  for (unsigned k = 0; k + 1 < size; ++k) {
    const float a = values[c.order[k]], b = values[c.order[k + 1]];
    c.bounds[k] = a + (b - a) / 2;
    if (a == b) c.order[k + 1] = c.order[k];
  }
  return c;
}

struct format_spec;

/// How the blocks of a format that is not made of planes (points of a lattice, digits of base 3) become blocks of one that is, which has
/// as many weights in a block and the same values bit for bit. Whatever reads a format reads those.
struct recoding {
  const format_spec* into = nullptr;
  void (*decode)(const std::uint8_t* block, std::uint8_t* out) noexcept = nullptr;  ///< into->bytes at `out`
  void (*encode)(const std::uint8_t* block, std::uint8_t* out) noexcept = nullptr;  ///< from a block of `into`; null: the format is only read
};

/// The most bytes that a block has which another is recoded into.
inline constexpr std::size_t max_recoded_bytes = 256;

/// A block of weights. The value of weight i, in sub-block j, is
///   scale * sub_scale[j] * level(i) + minimum                     (no sub-minima), or
///   scale * sub_scale[j] * level(i) - minimum * sub_minimum[j],
/// where level is the codebook's entry, or code - zero_point where the block stores one, or code - codes.zero. Absent factors are
/// 1, absent terms 0. Products are rounded to float one by one, from left to right; nothing is fused.
struct format_spec {
  std::string_view name;         ///< as GGUF or this library names it, in lower case
  int gguf = -1;                 ///< GGUF's type id; -1: not a GGUF type
  unsigned block = 1;            ///< weights that share a scale, consecutive along the input dimension
  unsigned sub = 0;              ///< weights that share a sub-scale; 0: one level of scales
  unsigned bytes = 0;            ///< bytes of a block
  integer_field codes{};         ///< one for each weight
  scalar_field scale{};
  scalar_field minimum{};
  integer_field sub_scale{};     ///< one for each sub-block
  number sub_number = number::none;  ///< what the bits of a sub-scale are, where they are not an integer's; then there is no scale
  integer_field sub_minimum{};   ///< one for each sub-block
  integer_field zero_point{};    ///< one
  codebook values{};
  number element = number::none; ///< a plain float format: the weight itself, no codes
  unsigned unused_bits = 0;      ///< padding, said so that a forgotten bit is noticed
  recoding recode{};             ///< of a format that is not planes: nothing else but name, block and bytes is given then

  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool is_float() const noexcept { return element != number::none; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool is_recoded() const noexcept { return recode.into != nullptr; }
  /// The format that describes the weights: this one, or the one that it is recoded into.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr const format_spec& planes() const noexcept { return is_recoded() ? *recode.into : *this; }
  /// Whether weights can be written in it.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr bool is_writable() const noexcept { return !is_recoded() || recode.encode != nullptr; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr unsigned sub_block() const noexcept { return sub != 0 ? sub : block; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr unsigned sub_blocks() const noexcept { return block / sub_block(); }
  [[nodiscard]] constexpr unsigned levels() const noexcept { return values.present() ? values.size : 1u << codes.bits(); }
  /// Bits per weight, scales and padding included.
  [[nodiscard]] constexpr double bits_per_weight() const noexcept { return 8.0 * bytes / block; }
  /// Blocks of a row of `cols` weights; the last may be ragged and is stored whole.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t row_blocks(std::size_t cols) const noexcept { return ceil_div(cols, block); }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE constexpr std::size_t row_bytes(std::size_t cols) const noexcept { return row_blocks(cols) * bytes; }
};

/// A type that is a format.
template <class F>
concept block_format = requires {
  { F::spec } -> std::convertible_to<const format_spec&>;
};

/// How often the bits of the block are claimed: by no field, or by more than one.
struct claims {
  unsigned unclaimed = 0;
  unsigned overlapping = 0;
  bool outside = false;        ///< a field reaches past the end of the block
  bool miscounted = false;     ///< a plane counts another number of elements than its field has
};

/// Counts them. Blocks of up to 8 KiB.
constexpr claims count_claims(const format_spec& s) noexcept {
  claims c;
  std::uint64_t taken[1024] = {};  // no std::array: compilers run this for every format, and its accesses are calls
  const std::size_t end = std::size_t{8} * s.bytes;
  if (end > 64 * std::size(taken)) return {0, 0, true, false};
  std::size_t total = 0;
  const auto claim = [&](std::size_t bit, std::size_t width) {
    for (std::size_t n = 0; width != 0; bit += n, width -= n) {  // what lies in one word at a time
      const std::size_t shift = bit % 64;
      n = width < 64 - shift ? width : 64 - shift;
      if (bit >= end || n > end - bit) { c.outside = true; return; }
      const std::uint64_t mask = (~std::uint64_t{0} >> (64 - n)) << shift;
      const auto twice = static_cast<unsigned>(std::popcount(taken[bit / 64] & mask));
      c.overlapping += twice;
      total += n - twice;
      taken[bit / 64] |= mask;
    }
  };
  const auto claim_field = [&](const integer_field& f, std::size_t count) {
    for (const plane& p : f.planes) {
      if (p.bits == 0) continue;
      if (p.elements() != count) { c.miscounted = true; continue; }
      // Along the lowest digit places are counted up, and elements side by side are claimed as one: compilers run this for every format.
      const unsigned extent = p.digits.extent[0];
      const auto stride = static_cast<std::size_t>(p.digits.stride[0]);  // of a negative one, what adds up to it
      for (std::size_t i = 0; i < count; i += extent) {
        const std::size_t first = p.position(i);
        if (stride == p.bits) claim(first, std::size_t{extent} * p.bits);
        else for (std::size_t k = 0; k < extent; ++k) claim(first + k * stride, p.bits);
      }
    }
  };
  claim_field(s.codes, s.block);
  claim_field(s.sub_scale, s.sub_blocks());
  claim_field(s.sub_minimum, s.sub_blocks());
  claim_field(s.zero_point, 1);
  for (const scalar_field& f : {s.scale, s.minimum}) claim(byte(f.at), 8 * size_of(f.type));
  if (s.is_float()) claim(0, 8 * size_of(s.element));
  c.unclaimed = static_cast<unsigned>(end - total);
  return c;
}

/// Bits of the block that no field claims.
consteval unsigned unclaimed_bits(const format_spec& s) { return count_claims(s).unclaimed; }

/// The spec of a format, once its bits have been checked at compile time.
template <block_format F>
struct checked_spec {
  static constexpr claims found = F::spec.is_recoded() ? claims{} : count_claims(F::spec);
  // A compiler may stop at the first that fails, so causes come before their consequences.
  static_assert(!found.miscounted, "lowbit: a plane of this format does not count as many elements as its field has");
  static_assert(!found.outside, "lowbit: a field of this format lies outside its block");
  static_assert(found.overlapping == 0, "lowbit: two fields of this format claim the same bit");
  static_assert(found.unclaimed == F::spec.unused_bits, "lowbit: this format leaves bits that no field claims");
  static_assert(F::spec.block % F::spec.sub_block() == 0, "lowbit: the sub-blocks of this format do not divide its block");
  static_assert(F::spec.sub_blocks() <= max_sub_blocks, "lowbit: a block has at most 64 sub-blocks");
  static_assert(!F::spec.is_recoded() || (F::spec.recode.into->block == F::spec.block && F::spec.recode.into->bytes <= max_recoded_bytes),
                "lowbit: blocks are recoded into blocks of as many weights, in at most 256 bytes");
  static_assert(F::spec.is_recoded() || F::spec.is_float() || (F::spec.codes.bits() >= 1 && F::spec.codes.bits() <= 8),
                "lowbit: codes are 1 to 8 bits wide");
  static_assert(F::spec.is_recoded() || F::spec.is_float() || F::spec.scale.present() != (F::spec.sub_number != number::none), "lowbit: a block of codes needs a scale");
  static_assert(F::spec.sub_scale.bits() == 8 * size_of(F::spec.sub_number) || F::spec.sub_number == number::none,
                "lowbit: sub-scales are as wide as the numbers that they are");
  static constexpr const format_spec& value = F::spec;
};

template <block_format F>
inline constexpr const format_spec& spec_of = checked_spec<F>::value;

}  // namespace lowbit
