// Each format's standard fit: what its own project does when it is asked to quantise without data.
//
// GGUF's block types: ggml's reference quantisers, byte for byte. bitsandbytes' types: absmax, codes by its decision bounds. Uniform
// formats: the whole range, asymmetric with zero inside it (GPTQ, AWQ), symmetric on the larger end.
#pragma once

#include <lowbit/format/registry.hpp>
#include <lowbit/quantise/fit.hpp>
#include <lowbit/quantise/ggml_reference.hpp>

namespace lowbit {

/// A block's fields out of their parts.
template <block_format F>
void copy_fields(const block_parts<F>& p, const block_fields& f) noexcept {
  *f.scale = p.scale;
  *f.minimum = p.minimum;
  *f.zero_point = 0;
  std::copy(p.sub_scale.begin(), p.sub_scale.end(), f.sub_scale);
  std::copy(p.sub_minimum.begin(), p.sub_minimum.end(), f.sub_minimum);
  std::copy(p.codes.begin(), p.codes.end(), f.codes);
}

/// Scales and codes as ggml's reference quantisers choose them. A ragged block is quantised as if its missing weights were zero.
template <block_format... F>
struct ggml_reference_of {
  /// Whether `s` is one of these formats, in which case scales and codes are chosen.
  using needs = needs_statistics<>;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics&, const block_fields& f) {
    return (fit_one<F>(s, x, n, f) || ...);
  }

 private:
  template <block_format G>
  static bool fit_one(const format_spec& s, const float* x, std::size_t n, const block_fields& f) {
    if (&s != &spec_of<G>) return false;
    float padded[spec_of<G>.block];
    if (n < spec_of<G>.block) {
      std::fill(std::copy(x, x + n, padded), padded + spec_of<G>.block, 0.0f);
      x = padded;
    }
    block_parts<G> p;
    ggml_quantise_block<G>(x, p);
    copy_fields(p, f);
    return true;
  }
};

namespace detail {
template <block_format... F>
constexpr auto ggml_reference_for(format_list<F...>) -> ggml_reference_of<F...>;
}

/// ggml's reference for all of GGUF's block types.
using ggml_reference = decltype(detail::ggml_reference_for(gguf_formats{}));

/// The standard fit of any format.
struct standard {
  using needs = needs_statistics<>;
  static constexpr row_kernels rows{.as_ggml = true, .by_range = true};
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    return ggml_reference::fit(s, x, n, about, f) || minmax::fit(s, x, n, about, f);
  }
};

}  // namespace lowbit
