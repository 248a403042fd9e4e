// Reading a weight of any checkpoint_family: its tensors are found and checked first, its values are read when they are wanted.
//
// Width, extents and group follow from the tensors' shapes; what the configuration says only decides where they leave a choice.
#pragma once

#include <lowbit/core/executor.hpp>
#include <lowbit/format/runtime.hpp>
#include <lowbit/io/checkpoint_groups.hpp>

#include <atomic>
#include <functional>
#include <limits>

namespace lowbit {

/// A weight whose tensors fit together. The tensors must outlive it.
struct checkpoint_weight {
  std::string name{};                                   ///< of the tensor with the codes
  const checkpoint_family* family = nullptr;            ///< null for bitsandbytes' 4-bit types
  const format_spec* spec = nullptr;
  std::size_t rows = 0, cols = 0;
  std::vector<std::uint32_t> inputs{};                  ///< as packed_matrix has them
  double factor = 1.0;
  std::size_t bytes = 0;                                ///< of its tensors
  std::vector<std::span<const std::uint8_t>> data{};    ///< of its tensors, for whoever wants their pages dropped
  std::string warning{};                                ///< one line about something odd, or empty
  /// Fills rows [begin, end) of a matrix of that spec and shape; whether all of them were in range. begin is a multiple of 64.
  std::function<bool(std::size_t begin, std::size_t end, packed_matrix& out)> read_rows{};

  /// The values. Fails (bad_value) where a code or scale is out of range.
  template <executor E>
  [[nodiscard]] result<packed_matrix> read(E& executor) const {
    packed_matrix out(*spec, rows, cols);
    out.set_inputs(inputs);
    out.set_factor(factor);
    std::atomic<bool> good{true};
    for_parts(executor, ceil_div(rows, 64), 1, [&](std::size_t begin, std::size_t end) {
      if (!read_rows(begin * 64, std::min(end * 64, rows), out)) good = false;
    });
    if (!good) return failure{errc::bad_value, "tensor '" + name + "': a code or scale is out of range"};
    return out;
  }
};

/// Finds the tensors of weight `module` (without ".weight") in one family and checks that they fit together. `find(name)` gives a safetensor
/// or null. Nothing where the family's codes are not there.
template <class Find>
std::optional<result<checkpoint_weight>> find_weight(const Find& find, const std::string& module, const checkpoint_family& f, const checkpoint_hints& hints = {}) {
  using detail::bad_part;
  const auto tensor = [&](std::string_view suffix) -> const safetensor* { return suffix.empty() ? nullptr : find(module + std::string(suffix)); };
  detail::grouped_weight w;
  w.family = &f;
  w.codes = tensor(f.codes.suffix);
  if (w.codes == nullptr) return std::nullopt;
  using found = result<checkpoint_weight>;
  const auto fail = [&](failure e) { return std::optional<found>(std::move(e)); };
  const auto missing = [&](std::string_view suffix) {
    return fail({errc::not_found, "tensor '" + w.codes->name + "': its partner '" + module + std::string(suffix) + "' is missing"});
  };
  if (w.codes->dtype != f.codes.dtype) return fail(bad_part(*w.codes, "is of type " + w.codes->dtype + " where " + std::string(f.codes.dtype) + " was due", errc::unsupported));
  const auto matrix = detail::as_matrix(*w.codes, f.merged);
  if (!matrix) return fail(bad_part(*w.codes, "is no matrix with anything in it, but " + detail::shape_text(w.codes->shape)));
  w.scales = tensor(f.scales);
  if (w.scales == nullptr) return missing(f.scales);
  const number scale_type = detail::scale_number(w.scales->dtype, f.table);
  if (scale_type == number::none || (!f.scale_dtype.empty() && w.scales->dtype != f.scale_dtype))
    return fail(bad_part(*w.scales, "scales of type " + w.scales->dtype + " are not read", errc::unsupported));
  const safetensor *const zeros = tensor(f.zeros.suffix), *const index = tensor(f.index), *const shape = tensor(f.shape);
  if (zeros == nullptr && (f.zero == zero_kind::required || f.zero == zero_kind::scaled_floats)) return missing(f.zeros.suffix);
  if (shape == nullptr && !f.shape.empty()) return missing(f.shape);
  if (const safetensor* const marker = tensor(f.marker); marker != nullptr && (marker->dtype != "U8" || marker->data.size() != 1 || marker->data[0] != 0))
    return fail(bad_part(*marker, "is not 0: rows in another order are not read", errc::unsupported));

  // The width: the one that makes all extents agree; the configuration's first.
  std::array<std::int64_t, 2> stated{};
  if (shape != nullptr) {
    if (shape->dtype != "I64" || shape->data.size() != 16) return fail(bad_part(*shape, "is not I64 [2]"));
    std::memcpy(stated.data(), shape->data.data(), 16);
    if (stated[0] <= 0 || stated[1] <= 0 || stated[0] > (std::int64_t{1} << 32) || stated[1] > (std::int64_t{1} << 32))
      return fail(bad_part(*shape, "says " + std::to_string(stated[0]) + " x " + std::to_string(stated[1])));
  }
  const auto fits = [&](unsigned bits) {
    if (!f.has_width(bits)) return false;
    const integer_layout layout = f.codes.layout(bits);
    if (shape != nullptr) {
      w.rows = static_cast<std::size_t>(stated[0]);
      w.cols = static_cast<std::size_t>(stated[1]);
      if (layout.shape(w.rows, w.cols) != *matrix) return false;
    } else {
      const auto extents = detail::extents_of(f, *matrix, bits);
      if (!extents) return false;
      w.rows = (*extents)[0];
      w.cols = (*extents)[1];
    }
    if (index != nullptr && index->shape != std::vector<std::uint64_t>{w.cols}) return false;
    if (zeros != nullptr && f.zeros.present() && !f.padded_groups && zeros->shape.size() == 2) {
      const std::size_t g = f.zeros.last == axis::out ? static_cast<std::size_t>(zeros->shape[0]) : static_cast<std::size_t>(zeros->shape[1]);
      const auto due = f.zeros.layout(bits).shape(w.rows, g);
      if (zeros->shape != std::vector<std::uint64_t>{due[0], due[1]}) return false;
    }
    return w.rows % f.out_multiple == 0 && w.cols % f.in_multiple == 0;
  };
  for (unsigned i = 0; i <= 9 && w.bits == 0; ++i) {
    const unsigned bits = i == 0 ? hints.bits : 9 - i;
    if (bits != 0 && (i == 0 || !hints.no_other_width) && fits(bits)) w.bits = bits;
  }
  if (w.bits == 0)
    return fail(bad_part(*w.codes, detail::shape_text(w.codes->shape) + " fits no width of " + std::string(f.name) + (shape != nullptr ? " and its weight_shape" : "") +
                                       " with the shapes of its partners"));

  if (w.cols > (std::size_t{1} << 24)) return fail(bad_part(*w.codes, "rows of " + std::to_string(w.cols) + " weights are not read", errc::unsupported));

  // Scales and groups.
  const std::size_t scales = w.scales->data.size() / size_of(scale_type);
  const auto& dims = w.scales->shape;
  const bool single = scales == 1 && f.scale_last == axis::in;
  if (f.whole_rows || (dims.size() == 1 && dims[0] == w.rows && f.scale_last == axis::in) || single) {
    w.groups = w.scale_groups = 1;
    if (!single && scales != w.rows) return fail(bad_part(*w.scales, detail::shape_text(dims) + " are not one scale for each of " + std::to_string(w.rows) + " rows"));
  } else {
    const auto extents = detail::as_matrix(*w.scales, 1);
    if (!extents || (*extents)[f.scale_last == axis::out] != w.rows)
      return fail(bad_part(*w.scales, detail::shape_text(dims) + " does not go with " + std::to_string(w.rows) + " rows"));
    w.groups = w.scale_groups = static_cast<std::size_t>((*extents)[f.scale_last == axis::in]);
  }
  if (f.table != nullptr) {
    w.block = f.table->sub_block();
    if (w.cols % w.block != 0 || w.groups != w.cols / w.block)
      return fail(bad_part(*w.scales, std::to_string(w.groups) + " groups do not fit " + std::to_string(w.cols) + " inputs in groups of " + std::to_string(w.block)));
  } else if (f.padded_groups) {
    for (const std::size_t g : {hints.group, std::size_t{128}, std::size_t{64}, std::size_t{32}})
      if (w.block == 0 && g != 0 && g <= w.cols && w.cols % g == 0 && awq_padded_groups(w.cols, g) == w.scale_groups) w.block = g;
    if (w.block == 0) return fail(bad_part(*w.scales, std::to_string(w.scale_groups) + " padded groups do not fit " + std::to_string(w.cols) + " inputs"));
    w.groups = w.cols / w.block;
  } else if (index != nullptr) {
    if (status s = detail::order_by_group(*index, w); !s) return fail(std::move(s).error());
  } else if (hints.reordered && !f.index.empty() && w.groups != 1) {
    return missing(f.index);
  } else {
    const auto group = detail::group_size(w.cols, w.groups, hints.group);
    if (!group || (f.method == "awq" && w.cols % *group != 0))
      return fail(bad_part(*w.scales, std::to_string(w.groups) + " groups do not fit " + std::to_string(w.cols) + " inputs"));
    w.block = *group;
  }
  checkpoint_weight out;
  if (zeros != nullptr)
    if (status s = detail::read_zeros(*zeros, hints, w, out.warning); !s) return fail(std::move(s).error());
  w.factor = f.constant;
  const safetensor* const factor = tensor(f.factor);
  if (factor == nullptr && !f.factor.empty()) return missing(f.factor);
  if (factor != nullptr) {
    float value = 0.0f;
    if (factor->dtype != "F32" || factor->data.size() != 4) return fail(bad_part(*factor, "is not one F32"));
    std::memcpy(&value, factor->data.data(), 4);
    if (!std::isfinite(value) || value <= 0.0f) return fail(bad_part(*factor, "is not a positive number", errc::bad_value));
    w.factor *= f.factor_divides ? 1.0 / static_cast<double>(value) : static_cast<double>(value);
    if (w.factor > static_cast<double>(std::numeric_limits<float>::max()))
      return fail(bad_part(*factor, "makes weights that float32 cannot hold", errc::bad_value));
  }
  // A symmetric bit of a checkpoint is -1 or 0, not lowbit's -1 or 1.
  w.spec = f.table != nullptr ? f.table : &uniform_format(w.bits, w.block, w.zeros.empty() && w.bits > 1, scale_type);
  out.name = w.codes->name;
  out.family = &f;
  out.spec = w.spec;
  out.rows = w.rows;
  out.cols = w.cols;
  out.inputs = w.inputs;
  out.factor = w.factor;
  for (const safetensor* t : {w.codes, w.scales, zeros, index, shape, factor})
    if (t != nullptr) {
      out.bytes += t->data.size();
      out.data.push_back(t->data);
    }
  out.read_rows = [w = std::move(w)](std::size_t begin, std::size_t end, packed_matrix& to) { return w.read_rows(begin, end, to); };
  return std::optional<found>(std::move(out));
}

}  // namespace lowbit
