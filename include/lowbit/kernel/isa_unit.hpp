// What a per-architecture translation unit contains: `LOWBIT_ISA_UNIT(avx2)` for every format of the registry, or
// `LOWBIT_ISA_UNIT(avx2, lowbit::q4_0, my_format)`. lowbit_add_isa_units() in CMake writes these files and sets their flags.
#pragma once

#include <lowbit/format/registry.hpp>
#include <lowbit/kernel/unit.hpp>

namespace lowbit::kernel {

namespace detail {
template <unsigned... B>
constexpr auto ragged_formats(std::integer_sequence<unsigned, B...>) -> format_list<symmetric<B + 1, 40>...>;

/// The formats of a unit that names none: the registry's with what its lattices are recoded into, and uniform codes whose groups do not end
/// on slabs.
using unit_formats = lowbit::detail::concat<all_formats, lattice_level_formats, decltype(ragged_formats(std::make_integer_sequence<unsigned, 8>{}))>::type;

template <class Arch, block_format... F>
constexpr unit unit_of(format_list<F...>) noexcept {
  return unit_for<Arch, F...>();
}
}  // namespace detail

}  // namespace lowbit::kernel

#define LOWBIT_ISA_UNIT(isa_name, ...)                                                                       \
  namespace lowbit::kernel {                                                                                 \
  extern const unit unit_##isa_name;                                                                         \
  const unit unit_##isa_name = detail::unit_of<simd::isa::isa_name>(                                         \
      std::conditional_t<std::is_same_v<format_list<__VA_ARGS__>, format_list<>>, detail::unit_formats,      \
                         format_list<__VA_ARGS__>>{});                                                       \
  }
