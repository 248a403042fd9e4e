// What readers and writers of adapter files share: factors from and to tensors of floats, checked.
#pragma once

#include <lowbit/adapt/adapter.hpp>
#include <lowbit/format/registry.hpp>
#include <lowbit/io/tensor_stream.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <optional>
#include <string>

namespace lowbit {

/// The metadata key under which both kinds of file say which base a weight's factors belong to; the weight's name follows. (A key of lowbit's.)
inline constexpr std::string_view adapter_base_key = "lowbit.base.";

namespace detail {

/// A tensor of an adapter file before it is decoded: A [rank, inputs] or B [outputs, rank].
struct adapter_tensor {
  std::string name;
  packed_view values;
};
struct adapter_tensors {
  std::optional<adapter_tensor> a, b;
};

inline result<std::vector<float>> decode_factor(const adapter_tensor& t) {
  std::vector<float> values(t.values.rows * t.values.cols);
  const matrix_view<float> m(values.data(), t.values.rows, t.values.cols);
  decode(t.values, m);
  if (const auto bad = find_non_finite(m)) return failure{bad->kind, "tensor '" + t.name + "': " + bad->message};
  return values;
}

/// Both factors of a weight, the scale still to be set. Fails, naming the tensor, where one is missing, they are of different ranks, or of
/// another than `declared`, or a value is not finite.
inline result<low_rank_factors> read_factors(const std::string& weight, const adapter_tensors& of, std::optional<std::size_t> declared) {
  if (!of.a || !of.b)
    return failure{errc::not_found, "the adapter of '" + weight + "' has no " + (of.a ? "B" : "A") + " beside tensor '" +
                                        (of.a ? of.a : of.b)->name + "'"};
  const std::size_t rank = of.a->values.rows;
  const auto wrong = [](const adapter_tensor& t, std::size_t has, std::size_t due, const char* whose) {
    return failure{errc::shape, "tensor '" + t.name + "' is of rank " + std::to_string(has) + ", but " + whose + " says " + std::to_string(due)};
  };
  if (declared && rank != *declared) return wrong(*of.a, rank, *declared, "the configuration");
  if (of.b->values.cols != rank) return wrong(*of.b, of.b->values.cols, rank, ("'" + of.a->name + "'").c_str());
  if (rank == 0 || of.a->values.cols == 0 || of.b->values.rows == 0)
    return failure{errc::shape, "tensor '" + of.a->name + "' or '" + of.b->name + "' is empty"};
  auto a = decode_factor(*of.a);
  if (!a) return std::move(a).error();
  auto b = decode_factor(*of.b);
  if (!b) return std::move(b).error();
  return low_rank_factors{of.b->values.rows, of.a->values.cols, rank, *std::move(a), *std::move(b), 1.0f};
}

/// A scale that files announce. Fails where it is no number to multiply with.
inline result<float> checked_scale(double alpha, double divisor, const std::string& weight) {
  const auto scale = static_cast<float>(alpha / divisor);
  if (!std::isfinite(scale)) return failure{errc::bad_value, "the adapter of '" + weight + "' has an alpha that is no finite number"};
  return scale;
}

/// alpha = scale * rank: what gives the scale back.
inline double alpha_of(const low_rank_factors& f) noexcept { return static_cast<double>(f.scale) * static_cast<double>(f.rank); }

/// Appends a matrix as plain floats of a type.
inline status append_floats(tensor_stream& out, const format_spec& type, const std::vector<float>& values) {
  std::vector<std::uint8_t> bytes(values.size() * type.bytes);
  store_floats(type, values.data(), values.size(), bytes.data());
  return out.append(bytes);
}

}  // namespace detail
}  // namespace lowbit
