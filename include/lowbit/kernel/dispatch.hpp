// Choosing kernels at run time: the best linked unit that this machine has.
//
// A target that lowbit_add_isa_units() was called on defines LOWBIT_ISA_UNITS(X), the list of its units. Without that, the kernels are
// those of the translation unit's own architecture: nothing to set up, nothing chosen. LOWBIT_ARCH=avx2 in the environment forces a
// unit (by its short name or xsimd's), for tests; one that is not there, or that the machine lacks, is ignored.
#pragma once

#include <lowbit/kernel/unit.hpp>

#include <cstdlib>
#include <string_view>

#ifdef LOWBIT_ISA_UNITS
namespace lowbit::kernel {
#define LOWBIT_DECLARE_UNIT(isa_name) extern const unit unit_##isa_name;
LOWBIT_ISA_UNITS(LOWBIT_DECLARE_UNIT)
#undef LOWBIT_DECLARE_UNIT

/// A linked unit and whether this machine can run it.
struct linked_unit {
  const char* name;     ///< the short name
  const unit* kernels;
  bool available;
};

/// All linked units, from the least to the most capable.
inline auto linked_units() noexcept {
#define LOWBIT_LIST_UNIT(isa_name) \
  linked_unit{#isa_name, &unit_##isa_name, simd::available<simd::isa::isa_name>()},
  return std::to_array<linked_unit>({LOWBIT_ISA_UNITS(LOWBIT_LIST_UNIT)});
#undef LOWBIT_LIST_UNIT
}

namespace detail {
/// Not to be inlined: compilers take the processor's identification for a computation without effects, and move it out of the branch that runs
/// once to where best_unit() is called. On a virtual machine it takes microseconds.
template <class = void>
[[gnu::noinline]] const unit* choose_unit() noexcept {
  const char* const forced = std::getenv("LOWBIT_ARCH");
  const unit* choice = nullptr;
  const auto units = linked_units();
  for (const linked_unit& u : units) {
    if (!u.available) continue;
    choice = u.kernels;
    if (forced != nullptr && (std::string_view(forced) == u.name || std::string_view(forced) == u.kernels->name)) break;
  }
  return choice;  // the baseline is always available
}
}  // namespace detail

/// The unit that products run on: chosen once.
inline const unit& best_unit() noexcept {
  static const unit* const best = detail::choose_unit();
  return *best;
}
}  // namespace lowbit::kernel
#else
#include <lowbit/kernel/isa_unit.hpp>
namespace lowbit::kernel {
struct linked_unit {
  const char* name;
  const unit* kernels;
  bool available;
};
// Templates, so that the kernels of all formats are compiled where somebody multiplies, and not wherever this is included (2 s).
template <class Arch = simd::native>
const unit& best_unit() noexcept {
  static constexpr unit own = detail::unit_of<Arch>(detail::unit_formats{});
  return own;
}
template <class Arch = simd::native>
auto linked_units() noexcept {
  return std::to_array<linked_unit>({{best_unit<Arch>().name, &best_unit<Arch>(), true}});
}
}  // namespace lowbit::kernel
#endif

/// A kernel that depends on no format at compile time, such as round_weights: the best unit's, or this translation unit's own, without
/// compiling the others.
#ifdef LOWBIT_ISA_UNITS
#define LOWBIT_BEST_KERNEL(name) ::lowbit::kernel::best_unit().name
#else
#define LOWBIT_BEST_KERNEL(name) ::lowbit::kernel::name<::lowbit::simd::native>
#endif
