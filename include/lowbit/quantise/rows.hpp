// Whole rows by the kernels (kernel/quantise.hpp), where a fit is one that they have; the bytes are the same as block by block.
#pragma once

#include <lowbit/kernel/dispatch.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/quantise/importance.hpp>

namespace lowbit::detail {

/// A fit that kernel::quantise_rows may stand in for, with or without importance.
template <class Fit>
concept fit_by_rows = requires { requires Fit::by_rows; };

/// One matrix's rows.
template <fit_by_rows Fit>
class row_kernel {
 public:
  /// `importance` [cols] may be null.
  row_kernel(const format_spec& s, matrix_view<const float> w, const float* importance, packed_matrix& out) {
    const bool heeded = Fit::rows_heed_importance && importance != nullptr;
    const auto known = find_gguf_format(s.gguf);
    usable_ = known && &spec_of_id(*known) == &s && w.cols != 0 && kernel::can_quantise_rows(s, heeded);
    if (!usable_) return;
    if (heeded) {
      mended_.resize(w.cols);
      for (std::size_t c = 0; c < w.cols; c += s.block)
        mend_importance(importance + c, std::min<std::size_t>(s.block, w.cols - c), s.sub_block(), mended_.data() + c);
    }
    args_ = {&s, w.data, w.stride, w.cols, 0, 0, heeded ? mended_.data() : nullptr, out.bytes().data()};
  }
  /// Quantises rows [begin, end), or returns false where that has to be done block by block.
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
