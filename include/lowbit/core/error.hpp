// Errors about outside data: result<T> carries a value or a failure, and nothing throws.
//
// C++20 has no std::expected; this is the part of it that lowbit needs. A failure names what went wrong in one line that a
// person can act on, and a kind that a program can branch on. Dropping a result is a warning.
#pragma once

#include <lowbit/core/config.hpp>

#include <string>
#include <utility>
#include <variant>

namespace lowbit {

/// What kind of thing went wrong.
enum class errc : std::uint8_t {
  io,            ///< the operating system refused: missing file, permission, disk full
  truncated,     ///< the data end before what they announce
  bad_magic,     ///< not a file of this kind, or of a version that cannot be read
  malformed,     ///< the structure contradicts itself
  unsupported,   ///< valid, but a type or feature that lowbit does not have
  shape,         ///< a shape that contradicts another, or overflows
  bad_value,     ///< NaN, infinity or an out-of-range number where none may be
  not_found,     ///< a tensor, key or name that is needed and is not there
  cancelled      ///< the caller asked to stop
};

/// One error: its kind and one line of text that names the thing.
struct failure {
  errc kind;
  std::string message;
};

/// A T or a failure. `if (!r) return std::move(r).error();` passes a failure on.
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  result(failure error) : state_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  /// The value. Expects ok().
  T& operator*() & noexcept { return value(); }
  const T& operator*() const& noexcept { return const_cast<result*>(this)->value(); }
  T&& operator*() && noexcept { return std::move(value()); }
  T* operator->() noexcept { return &value(); }
  const T* operator->() const noexcept { return &const_cast<result*>(this)->value(); }

  /// The failure. Expects !ok().
  const failure& error() const& noexcept { return *checked_error(); }
  failure&& error() && noexcept { return std::move(*const_cast<failure*>(checked_error())); }

 private:
  T& value() noexcept {
    T* p = std::get_if<0>(&state_);
    LOWBIT_EXPECTS(p != nullptr);
    return *p;
  }
  const failure* checked_error() const noexcept {
    const failure* p = std::get_if<1>(&state_);
    LOWBIT_EXPECTS(p != nullptr);
    return p;
  }
  std::variant<T, failure> state_;
};

/// Success without a value.
struct done {};
using status = result<done>;

}  // namespace lowbit
