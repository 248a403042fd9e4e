// The kernels of one instruction set as a table of functions: what run-time dispatch chooses between.
//
// Only the products depend on a format at compile time, and only on its code_shape; a unit holds one set for each shape.
#pragma once

#include <lowbit/kernel/accumulate.hpp>
#include <lowbit/kernel/build.hpp>
#include <lowbit/kernel/dequantise.hpp>
#include <lowbit/kernel/low_rank.hpp>
#include <lowbit/kernel/multiply.hpp>
#include <lowbit/kernel/prepare_activations.hpp>
#include <lowbit/kernel/quantise.hpp>
#include <lowbit/kernel/rounding.hpp>

namespace lowbit::kernel {

/// The products of one code_shape.
struct products {
  using function = void (*)(const multiply_args&) noexcept;
  std::uint32_t key;
  /// By activation_kind; null where the shape, or the instruction set, has none. Floats are always there.
  std::array<function, activation_kinds> by_kind;

  [[nodiscard]] LOWBIT_ALWAYS_INLINE function operator[](activation_kind kind) const noexcept { return by_kind[static_cast<std::size_t>(kind)]; }
  [[nodiscard]] LOWBIT_ALWAYS_INLINE bool has(activation_kind kind) const noexcept { return (*this)[kind] != nullptr; }
};

/// All kernels of one instruction set.
struct unit {
  const char* name;              ///< as xsimd names it
  void (*unpack_codes)(const format_spec&, const std::uint8_t*, std::size_t, std::size_t, std::size_t, std::uint8_t*) noexcept;
  void (*pack_codes)(const format_spec&, const std::uint8_t*, std::size_t, std::size_t, std::size_t, std::uint8_t*) noexcept;
  void (*dequantise_row)(const format_spec&, const std::uint8_t*, std::size_t, float*, bool) noexcept;
  void (*build_panels)(const build_args&) noexcept;
  void (*read_panel_row)(const panel_layout&, const std::uint8_t*, std::size_t, std::size_t, float*) noexcept;
  std::size_t (*tile_tokens)(const panel_layout&, activation_kind, std::size_t) noexcept;  ///< how activations of so many tokens are laid out
  std::array<void (*)(const activation_args&) noexcept, activation_kinds> prepare;  ///< by activation_kind
  bool (*quantise_rows)(const quantise_args&) noexcept;
  bool (*all_finite)(const float*, std::size_t) noexcept;
  void (*find_range)(const float*, std::size_t, float*, float*) noexcept;
  void (*round_weights)(const rounding_args&) noexcept;
  const products* shapes;
  std::size_t shape_count;
  void (*accumulate)(const accumulate_args&) noexcept;
  void (*add_low_rank)(const low_rank_args&) noexcept;

  /// The products of a shape, or null where this unit was not compiled for it.
  [[nodiscard]] LOWBIT_ALWAYS_INLINE const products* find(code_shape shape) const noexcept {
    for (std::size_t i = 0; i < shape_count; ++i)
      if (shapes[i].key == shape.key()) return shapes + i;
    return nullptr;
  }
};

namespace detail {
template <std::uint32_t... K>
struct keys {};

template <class Known, std::uint32_t... K>
struct unique_keys;
template <std::uint32_t... Known>
struct unique_keys<keys<Known...>> { using type = keys<Known...>; };
template <std::uint32_t... Known, std::uint32_t K, std::uint32_t... Rest>
struct unique_keys<keys<Known...>, K, Rest...>
    : std::conditional_t<((K == Known) || ...), unique_keys<keys<Known...>, Rest...>, unique_keys<keys<Known..., K>, Rest...>> {};

template <std::uint32_t Key, class Arch>
constexpr products products_of() noexcept {
  constexpr code_shape shape = code_shape::from_key(Key);
  using enum activation_kind;
  products all{Key, {nullptr, nullptr, nullptr, &multiply_exactly<Key, Arch>}};
  auto& [of_int8, of_int16, of_bf16, of_floats] = all.by_kind;
  if constexpr (shape.has_int8()) of_int8 = &multiply<Key, Arch, int8>;
  if constexpr (shape.has_int16()) of_int16 = &multiply<Key, Arch, int16>;
  if constexpr (shape.has_bf16() && simd::dots_bf16<Arch>) of_bf16 = &multiply<Key, Arch, bf16>;
  return all;
}

template <class Arch, class Keys>
struct product_table;
template <class Arch, std::uint32_t... K>
struct product_table<Arch, keys<K...>> {
  static constexpr products entries[] = {products_of<K, Arch>()...};
};
}  // namespace detail

/// The kernels of an instruction set for some formats. Instantiate it in a translation unit compiled for that instruction set.
template <class Arch, block_format... F>
constexpr unit unit_for() noexcept {
  using keys = typename detail::unique_keys<detail::keys<>, layout_for<F>::value.shape.key()...>::type;
  using table = detail::product_table<Arch, keys>;
  using enum activation_kind;
  return {Arch::name(), &unpack_codes<Arch>, &pack_codes<Arch>, &dequantise_row<Arch>, &build_panels<Arch>, &read_panel_row<Arch>,
          &tile_tokens<Arch>,
          {&quantise_activations<Arch, int8>, &quantise_activations<Arch, int16>, &round_activations<Arch>, &copy_activations<Arch>},
          &quantise_rows<Arch>, &all_finite<Arch>, &find_range<Arch>, &round_weights<Arch>, table::entries, std::size(table::entries),
          &accumulate<Arch>, &add_low_rank<Arch>};
}

}  // namespace lowbit::kernel
