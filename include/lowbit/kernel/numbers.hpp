// Stored numbers (scales, minima, plain weights) as registers of floats.
#pragma once

#include <lowbit/format/spec.hpp>
#include <lowbit/simd/primitives.hpp>

namespace lowbit::kernel::detail {

template <class Arch> using ints = simd::batch<std::int32_t, Arch>;
template <class Arch> using floats = simd::batch<float, Arch>;
template <class Arch> using bytes = simd::batch<std::uint8_t, Arch>;

/// As many numbers as a register has lanes, from `first` on.
template <class Arch, number Type>
LOWBIT_ALWAYS_INLINE floats<Arch> load_numbers(const std::uint8_t* field, std::size_t first) noexcept {
  if constexpr (Type == number::f32) {
    return floats<Arch>::load_unaligned(reinterpret_cast<const float*>(field) + first);
  } else if constexpr (Type == number::f16) {
    return simd::load_f16<Arch>(reinterpret_cast<const std::uint16_t*>(field) + first, Arch{});
  } else if constexpr (Type == number::bf16) {
    const auto h = simd::load_widened<Arch>(reinterpret_cast<const std::uint16_t*>(field) + first, Arch{});
    return xsimd::bitwise_cast<float>(ints<Arch>(h << 16));
  } else if constexpr (Type == number::e4m3_half) {
    // Exponent and mantissa in the places of a float's, whose bias is 120 larger (119 for the half); subnormals by a product.
    const ints<Arch> e = simd::load_widened<Arch>(field + first, Arch{}) & ints<Arch>(127);
    const auto normal = xsimd::bitwise_cast<float>(ints<Arch>((e << 20) + ints<Arch>(119 << 23)));
    const auto small = xsimd::to_float(e) * floats<Arch>(0x1p-10f);
    const auto value = xsimd::select(xsimd::batch_bool_cast<float>(e < ints<Arch>(8)), small, normal);
    return xsimd::select(xsimd::batch_bool_cast<float>(e == ints<Arch>(127)), floats<Arch>(0.0f), value);
  } else {
    // 2^(e - 128): exponents 0 and 1 are the subnormals 2^21 and 2^22 in bits, and the larger of the two forms is the right one.
    const auto e = simd::load_widened<Arch>(field + first, Arch{});
    const ints<Arch> normal = (e - ints<Arch>(1)) << 23, small = (e + ints<Arch>(1)) << 21;
    return xsimd::bitwise_cast<float>(xsimd::max(normal, small));
  }
}

/// Calls f with the type of a number as a constant.
template <class F>
LOWBIT_ALWAYS_INLINE void with_number(number type, F&& f) noexcept {
  switch (type) {
    case number::f32: return f(std::integral_constant<number, number::f32>{});
    case number::f16: return f(std::integral_constant<number, number::f16>{});
    case number::bf16: return f(std::integral_constant<number, number::bf16>{});
    case number::e8m0_half: return f(std::integral_constant<number, number::e8m0_half>{});
    case number::e4m3_half: return f(std::integral_constant<number, number::e4m3_half>{});
    case number::none: return;
  }
}

}  // namespace lowbit::kernel::detail
