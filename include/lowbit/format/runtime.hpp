// Formats whose numbers are only known when a file is read: any width, group and scale type.
//
// A packed_matrix points to its spec, so a spec made at run time is kept for the rest of the program, once for each set of numbers; a
// format of the registry is that format itself. Safe to call from several threads.
#pragma once

#include <lowbit/format/registry.hpp>

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace lowbit {

namespace detail {
struct kept_format {
  std::string name;
  format_spec spec;
};

/// The kept spec of that name, made by `make` where there is none yet.
template <class Make>
const format_spec& keep_format(std::string name, Make&& make) {
  static std::mutex guard;
  static std::map<std::string, std::unique_ptr<kept_format>, std::less<>> kept;
  if (const auto known = find_format(name)) return spec_of_id(*known);
  const std::lock_guard lock(guard);
  auto& entry = kept[name];
  if (entry == nullptr) {
    entry = std::make_unique<kept_format>(kept_format{std::move(name), make()});
    entry->spec.name = entry->name;
  }
  return entry->spec;
}

inline const char* scale_suffix(number scale) noexcept {
  return scale == number::f32 ? "_f32" : scale == number::bf16 ? "_bf16" : "";
}
}  // namespace detail

/// A uniform format of those options (its name follows from them: "u4_g40", "s8_g4096_f32").
inline const format_spec& uniform_format(unsigned bits, std::size_t group, bool symmetric, number scale = number::f16) {
  LOWBIT_EXPECTS(bits >= 1 && bits <= 8 && group >= 1 && group <= (std::size_t{1} << 24));
  std::string name = std::string(1, symmetric ? 's' : 'u').append(std::to_string(bits)).append("_g").append(std::to_string(group));
  return detail::keep_format(std::move(name.append(detail::scale_suffix(scale))), [&] {
    return uniform({.bits = bits, .group = static_cast<unsigned>(group), .symmetric = symmetric, .scale = scale, .name = {}});
  });
}

/// NF4 or FP4 (`base`) in blocks of another even number of weights.
inline const format_spec& blocks_of(const format_spec& base, std::size_t block) {
  LOWBIT_EXPECTS(block >= 2 && block % 2 == 0 && block <= (std::size_t{1} << 24));
  if (block == base.block) return base;
  return detail::keep_format(std::string(base.name) + "_b" + std::to_string(block), [&] {
    format_spec s = base;
    s.block = static_cast<unsigned>(block);
    s.bytes = size_of(base.scale.type) + s.block / 2;
    s.codes.planes[0].digits.extent[1] = s.block / 2;
    return s;
  });
}

}  // namespace lowbit
