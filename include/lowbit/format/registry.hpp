// Every format that lowbit ships, as a list of types: tests, benchmarks, files and the command line iterate over it.
//
// To add a format, write its constant and add its type here; nothing else lists formats.
#pragma once

#include <lowbit/format/bitsandbytes.hpp>
#include <lowbit/format/gguf.hpp>
#include <lowbit/format/lattice.hpp>
#include <lowbit/format/uniform.hpp>

#include <optional>
#include <utility>

namespace lowbit {

template <block_format... F>
struct format_list {
  static constexpr std::size_t size = sizeof...(F);
  static constexpr std::array<const format_spec*, sizeof...(F)> specs{&spec_of<F>...};
};

namespace detail {
template <class... Lists>
struct concat;
template <class... A>
struct concat<format_list<A...>> { using type = format_list<A...>; };
template <class... A, class... B, class... Rest>
struct concat<format_list<A...>, format_list<B...>, Rest...> : concat<format_list<A..., B...>, Rest...> {};

template <unsigned Group, class Widths>
struct uniform_formats;
template <unsigned Group, unsigned... B>
struct uniform_formats<Group, std::integer_sequence<unsigned, B...>> {
  using type = format_list<symmetric<B + 1, Group>..., asymmetric<B + 1, Group>...>;
};
template <unsigned Group>
using all_widths = typename uniform_formats<Group, std::make_integer_sequence<unsigned, 8>>::type;
}  // namespace detail

/// Plain floats.
using float_formats = format_list<f32, float16, bfloat16>;
/// GGUF's block types.
using gguf_formats = format_list<q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, tq2_0, mxfp4,
                                 nvfp4, q1_0, q2_0>;
/// bitsandbytes' 4-bit types.
using bitsandbytes_formats = format_list<nf4, fp4>;
/// s1_g32 … u8_g128.
using uniform_formats = detail::concat<detail::all_widths<32>, detail::all_widths<64>, detail::all_widths<128>>::type;
/// All that are made of planes: those that any quantiser can write.
using all_formats = detail::concat<float_formats, gguf_formats, bitsandbytes_formats, uniform_formats>::type;
/// GGUF's types that are not, and run by being recoded.
using recoded_formats = format_list<iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s, tq1_0>;
/// What those of lattices are recoded into.
using lattice_level_formats = format_list<iq1_levels32, iq1_levels16, iq2_levels32, iq2_levels16, iq3_xxs_levels, iq3_s_levels>;
/// Everything that a file may hold.
using readable_formats = detail::concat<all_formats, recoded_formats>::type;

/// The place of a format in readable_formats: how data that are only known at run time name it.
enum class format_id : std::uint8_t {};

/// How many are made of planes; they come first.
inline constexpr std::size_t format_count = all_formats::size;

constexpr const format_spec& spec_of_id(format_id id) noexcept {
  LOWBIT_EXPECTS(static_cast<std::size_t>(id) < readable_formats::size);
  return *readable_formats::specs[static_cast<std::size_t>(id)];
}

/// Calls f.template operator()<F>() for every format of a list, in order.
template <class F, block_format... Formats>
constexpr void for_each_format(format_list<Formats...>, F&& f) {
  (f.template operator()<Formats>(), ...);
}

/// Calls f.template operator()<F>() for the one format that `id` names.
template <class F>
constexpr void visit_format(format_id id, F&& f) {
  [&]<block_format... Formats>(format_list<Formats...>) {
    std::size_t i = 0;
    (void)((i++ == static_cast<std::size_t>(id) && (f.template operator()<Formats>(), true)) || ...);
  }(readable_formats{});
}

/// The id of a type of the list.
template <block_format F>
constexpr format_id id_of() noexcept {
  std::size_t i = 0;
  while (readable_formats::specs[i] != &spec_of<F>) ++i;
  return static_cast<format_id>(i);
}

/// The format of that name, whatever its case ("Q4_K"), or nothing.
constexpr std::optional<format_id> find_format(std::string_view name) noexcept {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  for (std::size_t i = 0; i < readable_formats::size; ++i) {
    const std::string_view known = readable_formats::specs[i]->name;
    bool same = known.size() == name.size();
    for (std::size_t k = 0; same && k < name.size(); ++k) same = known[k] == lower(name[k]);
    if (same) return static_cast<format_id>(i);
  }
  return std::nullopt;
}

/// The format with that GGUF type id, or nothing.
constexpr std::optional<format_id> find_gguf_format(int type) noexcept {
  for (std::size_t i = 0; i < readable_formats::size; ++i)
    if (type >= 0 && readable_formats::specs[i]->gguf == type) return static_cast<format_id>(i);
  return std::nullopt;
}

}  // namespace lowbit
