// The numbers that searches compute with: a float for one block, or registers of floats that hold one block a lane.
//
// A search is written once, as a template over this type, with selects in the place of branches; its instances carry the type in
// their names, and so the architecture. Every operation is IEEE 754's own,
// in every lane as for a float, so that a block comes out the same whatever stands beside it. `K` registers side by side hide the
// latency of sums that must stay in order. Masks are bool or a register's; select(mask, a, b) chooses.
#pragma once

#include <lowbit/format/codec.hpp>
#include <lowbit/simd/primitives.hpp>

#include <cmath>
#include <utility>

namespace lowbit::kernel {

template <class Arch, std::size_t K>
struct lane_mask {
  xsimd::batch_bool<float, Arch> part[K];
};

/// K registers of floats.
template <class Arch, std::size_t K>
struct lane_floats {
  using batch = simd::batch<float, Arch>;
  static constexpr std::size_t lanes = K * batch::size;
  batch part[K];

  LOWBIT_ALWAYS_INLINE lane_floats() noexcept = default;
  LOWBIT_ALWAYS_INLINE lane_floats(float v) noexcept {
    for (batch& p : part) p = batch(v);
  }
  LOWBIT_ALWAYS_INLINE static lane_floats load(const float* p) noexcept {
    return of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return batch::load_unaligned(p + k * batch::size); });
  }
  LOWBIT_ALWAYS_INLINE void store(float* p) const noexcept {
    for (std::size_t k = 0; k < K; ++k) part[k].store_unaligned(p + k * batch::size);
  }
  /// A value made of f(0) … f(K - 1).
  template <class F>
  LOWBIT_ALWAYS_INLINE static lane_floats of(F&& f) noexcept {
    lane_floats v;
    LOWBIT_UNROLL
    for (std::size_t k = 0; k < K; ++k) v.part[k] = f(k);
    return v;
  }
  template <class F>
  LOWBIT_ALWAYS_INLINE static lane_mask<Arch, K> mask_of(F&& f) noexcept {
    lane_mask<Arch, K> m;
    LOWBIT_UNROLL
    for (std::size_t k = 0; k < K; ++k) m.part[k] = f(k);
    return m;
  }

#define LOWBIT_LANE_OPERATION(op, result, make)                                                            \
  LOWBIT_ALWAYS_INLINE friend result operator op(const lane_floats& a, const lane_floats& b) noexcept {    \
    return make([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return a.part[k] op b.part[k]; });               \
  }
  using mask = lane_mask<Arch, K>;
  LOWBIT_LANE_OPERATION(+, lane_floats, of)
  LOWBIT_LANE_OPERATION(-, lane_floats, of)
  LOWBIT_LANE_OPERATION(*, lane_floats, of)
  LOWBIT_LANE_OPERATION(<, mask, mask_of)
  LOWBIT_LANE_OPERATION(>, mask, mask_of)
  LOWBIT_LANE_OPERATION(==, mask, mask_of)
#undef LOWBIT_LANE_OPERATION
  friend LOWBIT_ALWAYS_INLINE lane_floats operator/(const lane_floats& a, const lane_floats& b) noexcept {
    return of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return simd::quotient<Arch>(a.part[k], b.part[k], Arch{}); });
  }
};

template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> select(const lane_mask<Arch, K>& m, const lane_floats<Arch, K>& a, const lane_floats<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return xsimd::select(m.part[k], a.part[k], b.part[k]); });
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_mask<Arch, K> operator&(const lane_mask<Arch, K>& a, const lane_mask<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::mask_of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return a.part[k] & b.part[k]; });
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_mask<Arch, K> operator|(const lane_mask<Arch, K>& a, const lane_mask<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::mask_of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return a.part[k] | b.part[k]; });
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_mask<Arch, K> operator!(const lane_mask<Arch, K>& a) noexcept {
  return lane_floats<Arch, K>::mask_of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return !a.part[k]; });
}
/// Whether any lane is set.
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE bool any(const lane_mask<Arch, K>& m) noexcept {
  bool found = false;
  for (const auto& p : m.part) found |= xsimd::any(p);
  return found;
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> rounded_product(const lane_floats<Arch, K>& a, const lane_floats<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return simd::rounded_product<Arch>(a.part[k], b.part[k], Arch{}); });
}
/// a < b ? a : b, for equal zeros and NaN too.
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> lesser(const lane_floats<Arch, K>& a, const lane_floats<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return simd::lesser<Arch>(a.part[k], b.part[k], Arch{}); });
}
/// a > b ? a : b.
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> greater(const lane_floats<Arch, K>& a, const lane_floats<Arch, K>& b) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return simd::greater<Arch>(a.part[k], b.part[k], Arch{}); });
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> magnitude(const lane_floats<Arch, K>& a) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return xsimd::abs(a.part[k]); });
}
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> square_root(const lane_floats<Arch, K>& a) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return simd::square_root<Arch>(a.part[k], Arch{}); });
}
/// Round to nearest even as ggml's nearest_int does it: adds 1.5 * 2^23 and keeps the 23 bits below the exponent. From 2^22 on they
/// are not the number's, and a NaN gives 0; both happen in degenerate blocks, and files hold the outcome.
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> nearest(const lane_floats<Arch, K>& a) noexcept {
  using words = simd::batch<std::uint32_t, Arch>;
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    const simd::batch<float, Arch> magic(12582912.0f);
    const words low = xsimd::bitwise_cast<std::uint32_t>(a.part[k] + magic) & words(0x7fffffu);
    return xsimd::bitwise_cast<float>(words(low | words(0x4b000000u))) - magic;
  });
}

/// The same for |a| < 2^22.
template <class V>
LOWBIT_ALWAYS_INLINE V nearest_small(const V& a) noexcept {
  return (a + V(12582912.0f)) - V(12582912.0f);
}

LOWBIT_ALWAYS_INLINE float select(bool m, float a, float b) noexcept { return m ? a : b; }
LOWBIT_ALWAYS_INLINE bool any(bool m) noexcept { return m; }
LOWBIT_ALWAYS_INLINE float lesser(float a, float b) noexcept { return a < b ? a : b; }
LOWBIT_ALWAYS_INLINE float greater(float a, float b) noexcept { return a > b ? a : b; }
LOWBIT_ALWAYS_INLINE float magnitude(float a) noexcept { return std::fabs(a); }
LOWBIT_ALWAYS_INLINE float square_root(float a) noexcept { return std::sqrt(a); }
LOWBIT_ALWAYS_INLINE float nearest(float a) noexcept {
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(a + 12582912.0f) & 0x7fffffu) | 0x4b000000u) - 12582912.0f;
}
using lowbit::rounded_product;

template <class V>
LOWBIT_ALWAYS_INLINE V negated(const V& v) noexcept {
  return v * V(-1.0f);
}

/// How many blocks a number holds.
template <class V>
inline constexpr std::size_t lane_count = V::lanes;
template <>
inline constexpr std::size_t lane_count<float> = 1;

LOWBIT_ALWAYS_INLINE void store_lanes(float v, float* out) noexcept { *out = v; }
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE void store_lanes(const lane_floats<Arch, K>& v, float* out) noexcept { v.store(out); }
template <class V>
LOWBIT_ALWAYS_INLINE V load_lanes(const float* p) noexcept {
  if constexpr (lane_count<V> == 1) return *p;
  else return V::load(p);
}

/// The numbers of several sub-blocks of the same blocks, in registers side by side; a float stays one.
template <class V, std::size_t Count>
struct side_by_side {
  using type = V;
  static constexpr std::size_t count = 1;
  LOWBIT_ALWAYS_INLINE static V join(const V* first, std::size_t) noexcept { return *first; }
  LOWBIT_ALWAYS_INLINE static V part(const V& v, std::size_t) noexcept { return v; }
};
template <class Arch, std::size_t Count>
struct side_by_side<lane_floats<Arch, 1>, Count> {
  using type = lane_floats<Arch, Count>;
  static constexpr std::size_t count = Count;
  /// first[0], first[stride] …
  LOWBIT_ALWAYS_INLINE static type join(const lane_floats<Arch, 1>* first, std::size_t stride) noexcept {
    return type::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return first[k * stride].part[0]; });
  }
  LOWBIT_ALWAYS_INLINE static lane_floats<Arch, 1> part(const type& v, std::size_t k) noexcept {
    lane_floats<Arch, 1> one;
    one.part[0] = v.part[k];
    return one;
  }
};

/// f of every lane, one after the other.
template <class V, class F>
LOWBIT_ALWAYS_INLINE V map_lanes(const V& v, F&& f) noexcept {
  float lane[lane_count<V>];
  store_lanes(v, lane);
  for (float& l : lane) l = f(l);
  return load_lanes<V>(lane);
}
/// What binary16 makes of it.
LOWBIT_ALWAYS_INLINE float rounded_f16(float v) noexcept { return to_float(to_f16(v)); }
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> rounded_f16(const lane_floats<Arch, K>& v) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    std::uint16_t half[simd::lanes<Arch>];
    simd::store_f16<Arch>(half, v.part[k], Arch{});
    return simd::load_f16<Arch>(half, Arch{});
  });
}

/// A codebook of 16 values and where each of its upper halves begins, one level of halving after the other.
struct table16 {
  float values[16];
  float half, quarters[2], eighths[8], sixteenths[8];

  explicit constexpr table16(const codebook& t) noexcept : values{}, half(t.bounds[7]), quarters{t.bounds[3], t.bounds[11]}, eighths{}, sixteenths{} {
    for (unsigned i = 0; i < 16; ++i) values[i] = t.values[i];
    for (unsigned i = 0; i < 4; ++i) eighths[i] = t.bounds[4 * i + 1];
    for (unsigned i = 0; i < 8; ++i) sixteenths[i] = t.bounds[2 * i];
  }
};

LOWBIT_ALWAYS_INLINE int table_index(const table16& t, float v) noexcept {
  int i = v < t.half ? 0 : 1;
  i = 2 * i + (v < t.quarters[i] ? 0 : 1);
  i = 2 * i + (v < t.eighths[i] ? 0 : 1);
  return 2 * i + (v < t.sixteenths[i] ? 0 : 1);
}
/// How many bounds a number reaches. `reaches(v, bound)` says whether it is of the half above: what lies on a bound may go either way.
template <class Arch, class Reaches>
LOWBIT_ALWAYS_INLINE simd::batch<std::int32_t, Arch> table_index(const table16& t, const simd::batch<float, Arch>& v, Reaches&& reaches) noexcept {
  using floats = simd::batch<float, Arch>;
  using ints = simd::batch<std::int32_t, Arch>;
  const auto one_if = [](const auto& mask) LOWBIT_INLINE_LAMBDA { return xsimd::select(xsimd::batch_bool_cast<std::int32_t>(mask), ints(1), ints(0)); };
  const auto next = [&](const ints& i, const floats& bound) LOWBIT_INLINE_LAMBDA { return i + i + one_if(reaches(v, bound)); };
  const auto upper = reaches(v, floats(t.half));
  ints i = next(one_if(upper), xsimd::select(upper, floats(t.quarters[1]), floats(t.quarters[0])));
  i = next(i, simd::lookup8<Arch>(i, t.eighths, Arch{}));
  return next(i, simd::lookup8<Arch>(i, t.sixteenths, Arch{}));
}
/// As for one number: what lies on a bound goes up.
template <class Arch>
LOWBIT_ALWAYS_INLINE simd::batch<std::int32_t, Arch> table_index(const table16& t, const simd::batch<float, Arch>& v) noexcept {
  return table_index<Arch>(t, v, [](const auto& a, const auto& bound) LOWBIT_INLINE_LAMBDA { return !(a < bound); });
}
/// The place of the value that is nearest to v.
LOWBIT_ALWAYS_INLINE float nearest_index(const table16& t, float v) noexcept { return static_cast<float>(table_index(t, v)); }
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> nearest_index(const table16& t, const lane_floats<Arch, K>& v) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA { return xsimd::to_float(table_index<Arch>(t, v.part[k])); });
}
/// The value itself.
LOWBIT_ALWAYS_INLINE float nearest_value(const table16& t, float v) noexcept { return t.values[table_index(t, v)]; }
template <class Arch, std::size_t K>
LOWBIT_ALWAYS_INLINE lane_floats<Arch, K> nearest_value(const table16& t, const lane_floats<Arch, K>& v) noexcept {
  return lane_floats<Arch, K>::of([&](std::size_t k) LOWBIT_INLINE_LAMBDA {
    return simd::lookup16<Arch>(table_index<Arch>(t, v.part[k]), t.values, Arch{});
  });
}

}  // namespace lowbit::kernel
