// Statistics as bytes, so that calibration can stop and go on, be merged across machines, or keep all layers but one on disk.
//
// Little-endian: "lowbitST", version 1, number of channels, number of statistics; for each its name (24 bytes, zero-padded), tokens,
// number of values, values; then the 64-bit FNV-1a hash of all that. Numbers are 64 bits; values are as the statistic holds them.
// Any byte that is missing or changed is an error; nothing is allocated beyond what the bytes back up.
#pragma once

#include <lowbit/calibration/statistics.hpp>
#include <lowbit/core/error.hpp>

#include <array>
#include <cstring>

namespace lowbit {

namespace detail {
inline constexpr std::uint64_t saved_magic = 0x54537469'62776f6c, saved_version = 1;  // "lowbitST"
inline constexpr std::size_t saved_name = 24;

/// A statistic's name as files hold it: zeros after it.
template <class Statistic>
constexpr std::array<char, saved_name> padded_name() noexcept {
  static_assert(Statistic::name.size() <= saved_name, "lowbit: a statistic's name has at most 24 characters");
  std::array<char, saved_name> name{};
  for (std::size_t i = 0; i < Statistic::name.size(); ++i) name[i] = Statistic::name[i];
  return name;
}

inline std::uint64_t fnv1a(std::span<const std::uint8_t> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const std::uint8_t b : bytes) hash = (hash ^ b) * 0x100000001b3;
  return hash;
}

/// Takes bytes off the front; nothing where there are too few.
class saved_bytes {
 public:
  explicit saved_bytes(std::span<const std::uint8_t> bytes) : rest_(bytes) {}
  [[nodiscard]] std::optional<std::span<const std::uint8_t>> take(std::size_t n) noexcept {
    if (n > rest_.size()) return std::nullopt;
    const auto front = rest_.first(n);
    rest_ = rest_.subspan(n);
    return front;
  }
  [[nodiscard]] std::optional<std::uint64_t> number() noexcept {
    const auto bytes = take(8);
    if (!bytes) return std::nullopt;
    std::uint64_t v;
    std::memcpy(&v, bytes->data(), 8);
    return v;
  }
  [[nodiscard]] bool empty() const noexcept { return rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
};
}  // namespace detail

/// The bytes of a set of statistics.
template <class... S>
std::vector<std::uint8_t> save_statistics(const calibrated<S...>& set) {
  std::vector<std::uint8_t> out;
  const auto append = [&](const void* data, std::size_t n) {
    const auto* const bytes = static_cast<const std::uint8_t*>(data);
    out.insert(out.end(), bytes, bytes + n);
  };
  const auto number = [&](std::uint64_t v) { append(&v, sizeof v); };
  number(detail::saved_magic);
  number(detail::saved_version);
  number(set.channels());
  number(sizeof...(S));
  set.for_each([&](const auto& statistic) {
    using type = std::remove_cvref_t<decltype(statistic)>;
    const auto [tokens, values] = type::stored(statistic);
    const auto name = detail::padded_name<type>();
    append(name.data(), name.size());
    number(*tokens);
    number(values.size());
    append(values.data(), values.size_bytes());
  });
  number(detail::fnv1a(out));
  return out;
}

/// A set of statistics from its bytes, which must hold the same statistics in the same order.
template <class Set>
result<Set> load_statistics(std::span<const std::uint8_t> bytes) {
  const failure truncated{errc::truncated, "statistics end early, after " + std::to_string(bytes.size()) + " bytes"};
  detail::saved_bytes in(bytes);
  const auto magic = in.number(), version = in.number(), channels = in.number(), count = in.number();
  if (magic && *magic != detail::saved_magic) return failure{errc::bad_magic, "these are not lowbit's statistics"};
  if (version && *version != detail::saved_version) return failure{errc::unsupported, "statistics of version " + std::to_string(*version)};
  if (!count) return truncated;

  // Sizes are checked before anything of the announced size is allocated.
  std::vector<std::span<const std::uint8_t>> values;
  std::vector<std::uint64_t> tokens;
  std::optional<failure> bad;
  std::size_t expected = 0;
  Set(0).for_each([&](const auto& statistic) {
    using type = std::remove_cvref_t<decltype(statistic)>;
    using value = typename decltype(type::stored(statistic).second)::value_type;
    ++expected;
    if (bad || expected > *count) return;
    const auto name = in.take(detail::saved_name);
    const auto seen = in.number(), size = in.number();
    if (!name || !seen || !size) return bad.emplace(truncated), void();
    if (std::memcmp(name->data(), detail::padded_name<type>().data(), detail::saved_name) != 0) {
      bad = failure{errc::not_found, "no " + std::string(type::name) + " in these statistics"};
      return;
    }
    const auto wanted = type::stored_values(*channels);
    if (!wanted || *wanted != *size) {
      bad = failure{errc::malformed, std::string(type::name) + " has not as many values as its channels ask for"};
      return;
    }
    const auto length = checked_mul(*size, sizeof(value));
    const auto here = length ? in.take(*length) : std::nullopt;
    if (!here) return bad.emplace(truncated), void();
    tokens.push_back(*seen);
    values.push_back(*here);
  });
  if (bad) return *std::move(bad);
  if (*count != expected) return failure{errc::malformed, "statistics of " + std::to_string(*count) + " kinds where " + std::to_string(expected) + " are wanted"};
  const auto hash = in.number();
  if (!hash) return truncated;
  if (!in.empty()) return failure{errc::malformed, "statistics go on after their end"};
  if (*hash != detail::fnv1a(bytes.first(bytes.size() - 8))) return failure{errc::malformed, "statistics are damaged: their hash does not fit"};

  Set set(*channels);
  std::size_t i = 0;
  set.for_each([&](auto& statistic) {
    const auto [to, into] = std::remove_cvref_t<decltype(statistic)>::stored(statistic);
    *to = tokens[i];
    if (!values[i].empty()) std::memcpy(into.data(), values[i].data(), values[i].size());
    ++i;
  });
  return set;
}

/// Statistics of many layers of which one at a time is in memory. `Store` says where the others are: `put(name, bytes) -> status` and
/// `get(name) -> result<std::vector<std::uint8_t>>`, which fails with errc::not_found for a name that was never put.
template <class Set, class Store>
class spilled_statistics {
 public:
  explicit spilled_statistics(Store store) : store_(std::move(store)) {}

  /// Calls f(Set&) with the statistics of a layer (new ones of so many channels if there are none) and puts them back.
  template <class F>
  status update(const std::string& layer, std::size_t channels, F&& f) {
    auto set = load(layer);
    if (!set && set.error().kind == errc::not_found) set = Set(channels);
    if (!set) return failure{set.error().kind, layer + ": " + set.error().message};
    f(*set);
    return store_.put(layer, save_statistics(*set));
  }
  [[nodiscard]] result<Set> load(const std::string& layer) {
    auto bytes = store_.get(layer);
    if (!bytes) return std::move(bytes).error();
    return load_statistics<Set>(*bytes);
  }

 private:
  Store store_;
};

}  // namespace lowbit
