// GGUF's key-value metadata: typed values and arrays by name. Format: ggml, docs/gguf.md.
#pragma once

#include <lowbit/io/byte_reader.hpp>

#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace lowbit {

/// One value. The alternatives stand in the order of GGUF's type ids, but for the array's (9), which comes last.
using gguf_scalar = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, float, bool,
                                 std::string, std::uint64_t, std::int64_t, double>;

/// An array of one type. (vector<bool> would be another animal: booleans are kept as bytes.)
struct gguf_boolean {
  std::uint8_t value;
};
using gguf_array =
    std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>, std::vector<std::int16_t>,
                 std::vector<std::uint32_t>, std::vector<std::int32_t>, std::vector<float>, std::vector<gguf_boolean>,
                 std::vector<std::string>, std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;
using gguf_value = std::variant<gguf_scalar, gguf_array>;

namespace detail {
/// GGUF's type id of alternative i, and back (-1: no such type).
constexpr int gguf_type_of_index(std::size_t i) noexcept { return static_cast<int>(i < 9 ? i : i + 1); }
constexpr int gguf_index_of_type(std::int32_t type) noexcept { return type >= 0 && type < 9 ? type : type >= 10 && type <= 12 ? type - 1 : -1; }
inline constexpr std::int32_t gguf_array_type = 9;

template <class T>
concept integer_value = std::is_integral_v<T> && !std::is_same_v<T, bool>;
}  // namespace detail

/// Keys in the order of the file.
class gguf_metadata {
 public:
  struct entry {
    std::string key;
    gguf_value value;
  };

  [[nodiscard]] const std::vector<entry>& entries() const noexcept { return entries_; }

  /// The value of a key, or null.
  [[nodiscard]] const gguf_value* find(std::string_view key) const noexcept {
    for (const entry& e : entries_)
      if (e.key == key) return &e.value;
    return nullptr;
  }

  /// A scalar as T; nothing where the key is missing, of another kind, or out of T's range. Integers of any width serve for one another.
  template <class T>
  [[nodiscard]] std::optional<T> find(std::string_view key) const {
    const gguf_value* const value = find(key);
    const auto* const scalar = value != nullptr ? std::get_if<gguf_scalar>(value) : nullptr;
    if (scalar == nullptr) return std::nullopt;
    return std::visit(
        [](const auto& v) -> std::optional<T> {
          using V = std::remove_cvref_t<decltype(v)>;
          if constexpr (std::is_same_v<V, T>) return v;
          else if constexpr (detail::integer_value<V> && detail::integer_value<T>)
            return std::in_range<T>(v) ? std::optional<T>(static_cast<T>(v)) : std::nullopt;
          else if constexpr (std::is_floating_point_v<V> && std::is_floating_point_v<T>) return static_cast<T>(v);
          else return std::nullopt;
        },
        *scalar);
  }

  /// The same, with a failure that names the key.
  template <class T>
  [[nodiscard]] result<T> get(std::string_view key) const {
    if (auto v = find<T>(key)) return *std::move(v);
    if (find(key) == nullptr) return failure{errc::not_found, "metadata key '" + std::string(key) + "' is missing"};
    return failure{errc::bad_value, "metadata key '" + std::string(key) + "' has another type, or a value out of range"};
  }

  /// An array of exactly that element type, or null.
  template <class T>
  [[nodiscard]] const std::vector<T>* find_array(std::string_view key) const noexcept {
    const gguf_value* const value = find(key);
    const auto* const array = value != nullptr ? std::get_if<gguf_array>(value) : nullptr;
    return array != nullptr ? std::get_if<std::vector<T>>(array) : nullptr;
  }

  /// Sets a key, replacing its value if it is there.
  template <class T>
  void set(std::string_view key, T value) {
    gguf_value v;
    if constexpr (std::is_constructible_v<gguf_scalar, std::in_place_type_t<T>, T>) v = gguf_scalar(std::in_place_type<T>, std::move(value));
    else if constexpr (std::is_convertible_v<T, std::string_view>) v = gguf_scalar(std::in_place_type<std::string>, std::string_view(value));
    else v = gguf_array(std::move(value));
    set_value(key, std::move(v));
  }
  void set_value(std::string_view key, gguf_value value) {
    for (entry& e : entries_)
      if (e.key == key) {
        e.value = std::move(value);
        return;
      }
    entries_.push_back({std::string(key), std::move(value)});
  }
  /// Adds a key that is known not to be there.
  void set_new(std::string_view key, gguf_value value) { entries_.push_back({std::string(key), std::move(value)}); }
  void erase(std::string_view key) {
    std::erase_if(entries_, [&](const entry& e) { return e.key == key; });
  }

 private:
  std::vector<entry> entries_;
};

namespace detail {

/// Calls f with a type tag of alternative `index` of a variant.
template <class Variant, class F>
auto visit_index(int index, F&& f) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    std::optional<decltype(f.template operator()<std::variant_alternative_t<0, Variant>>())> r;
    (void)((static_cast<int>(I) == index && (r.emplace(f.template operator()<std::variant_alternative_t<I, Variant>>()), true)) || ...);
    return *std::move(r);
  }(std::make_index_sequence<std::variant_size_v<Variant>>{});
}

template <class T>
result<T> read_gguf_scalar(byte_reader& in, std::string_view key) {
  if constexpr (std::is_same_v<T, std::string>) {
    return std::string(in.read_string());
  } else if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, gguf_boolean>) {
    const auto byte = in.read<std::uint8_t>();
    if (byte > 1) return failure{errc::malformed, "metadata key '" + std::string(key) + "': a boolean is " + std::to_string(byte)};
    return T{byte != 0};
  } else {
    return in.read<T>();
  }
}

/// The value after a key. Allocates no more elements than there are bytes for.
inline result<gguf_value> read_gguf_value(byte_reader& in, std::string_view key) {
  const auto named = [&](const std::string& what) { return failure{errc::malformed, "metadata key '" + std::string(key) + "': " + what}; };
  const auto type = in.read<std::int32_t>();
  if (type != gguf_array_type) {
    const int index = gguf_index_of_type(type);
    if (index < 0) return named("unknown type " + std::to_string(type));
    return visit_index<gguf_scalar>(index, [&]<class T>() -> result<gguf_value> {
      auto v = read_gguf_scalar<T>(in, key);
      if (!v) return std::move(v).error();
      return gguf_value(gguf_scalar(std::in_place_type<T>, *std::move(v)));
    });
  }
  const auto element = in.read<std::int32_t>();
  const auto count = in.read<std::uint64_t>();
  const int index = gguf_index_of_type(element);
  if (index < 0) return named(element == gguf_array_type ? "an array of arrays" : "an array of unknown type " + std::to_string(element));
  return visit_index<gguf_array>(index, [&]<class Vector>() -> result<gguf_value> {
    using T = typename Vector::value_type;
    constexpr std::size_t least = std::is_same_v<T, std::string> ? 8 : sizeof(T);
    if (count > in.left() / least) return failure{errc::truncated, "metadata key '" + std::string(key) + "': the array is longer than the file"};
    Vector all;
    all.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count && in.ok(); ++i) {
      auto v = read_gguf_scalar<T>(in, key);
      if (!v) return std::move(v).error();
      all.push_back(*std::move(v));
    }
    return gguf_value(gguf_array(std::move(all)));
  });
}

}  // namespace detail

}  // namespace lowbit
