// Weights in two parts (quantise/outliers.hpp), ready to run: the rest, whose products take the outliers' inputs as zero, so that these do not
// widen the range that a token's 8-bit activations are rounded to, and the outliers' columns beside it in float32 (LLM.int8: Dettmers et al.
// 2022, equation 8).
#pragma once

#include <lowbit/adapt/adapted_product.hpp>
#include <lowbit/quantise/outliers.hpp>

namespace lowbit {

/// The matrix and the adapter of an adapted_product.
struct outlier_panels {
  panel_matrix rest;
  low_rank columns;

  template <executor E>
  static outlier_panels from(const outlier_weights& w, E& executor, const kernel::unit& unit = kernel::best_unit()) {
    outlier_panels p{panel_matrix::from(w.rest.view(), executor, unit), low_rank::of_columns(w.columns_view(), w.channels, w.rest.cols())};
    p.rest.ignore(w.channels);
    return p;
  }
};

/// y[tokens, out] = x[tokens, in] Wᵀ. Expects shapes that agree, and y apart from x.
template <executor E>
void multiply(matrix_view<const float> x, const outlier_panels& w, matrix_view<float> y, adapter_workspace& space, E& executor,
              precision how = precision::int8) {
  const low_rank* const beside[] = {&w.columns};
  const adapted_product p{{x, &w.rest, y}, beside};
  multiply(std::span(&p, 1), {}, space, executor, how);
}

}  // namespace lowbit
