// Whole rows by the kernels (kernel/quantise.hpp), where a fit is one that they have; the bytes are the same as block by block.
//
// What calls those kernels is a template, so that they are compiled where somebody quantises and not wherever this is included.
#pragma once

#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/quantise/importance.hpp>

namespace lowbit::detail {

/// Stores plain floats as the type of a format of them.
template <class = void>
void store_floats(const format_spec& s, const float* x, std::size_t n, std::uint8_t* out) noexcept {
  LOWBIT_BEST_KERNEL(quantise_rows)({&s, x, n, n, 0, 1, nullptr, out, false});
}

/// A fit that kernel::quantise_rows may stand in for.
template <class Fit>
concept fit_by_rows = requires { Fit::rows; };

/// What a fit leaves to the kernels; plain floats go there whatever the fit.
template <class Fit>
constexpr row_kernels rows_of(const format_spec& s) noexcept {
  if (s.is_float()) return {.by_range = true};
  if constexpr (fit_by_rows<Fit>) return Fit::rows;
  else return {};
}

/// One matrix's rows.
class row_kernel {
 public:
  /// `importance` [cols] may be null.
  row_kernel(const format_spec& s, row_kernels allowed, matrix_view<const float> w, const float* importance, packed_matrix& out) {
    const auto known = find_gguf_format(s.gguf);
    const bool of_gguf = known && &spec_of_id(*known) == &s, heeded = allowed.weighted && importance != nullptr;
    const bool as_ggml = allowed.as_ggml && of_gguf && !s.is_float();
    usable_ = w.cols != 0 && (as_ggml ? kernel::can_quantise_as_ggml(s, heeded) : allowed.by_range && kernel::can_quantise_by_range(s));
    if (!usable_) return;
    if (heeded) {
      mended_.resize(w.cols);
      for (std::size_t c = 0; c < w.cols; c += s.block)
        mend_importance(importance + c, std::min<std::size_t>(s.block, w.cols - c), s.sub_block(), mended_.data() + c);
    }
    args_ = {&s, w.data, w.stride, w.cols, 0, 0, heeded ? mended_.data() : nullptr, out.bytes().data(), as_ggml};
  }
  /// Quantises rows [begin, end), or returns false where that has to be done block by block.
  template <class = void>
  [[nodiscard]] bool quantise(std::size_t begin, std::size_t end) const noexcept {
    if (!usable_) return false;
    kernel::quantise_args a = args_;
    a.row_begin = begin;
    a.row_end = end;
    return LOWBIT_BEST_KERNEL(quantise_rows)(a);
  }

 private:
  kernel::quantise_args args_{};
  std::vector<float> mended_;
  bool usable_ = false;
};

}  // namespace lowbit::detail
