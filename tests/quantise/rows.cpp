// Rows by the kernels of every linked unit: the bytes of one block at a time, whatever the number of rows and columns.
#include <lowbit/glue/eigen.hpp>
#include <lowbit/quantise/quantiser.hpp>

#include <doctest/doctest.h>

#include <random>

#include "../executors.hpp"
#include "hard_weights.hpp"

using namespace lowbit;

namespace {
/// The fits' block-by-block path: what rows must equal.
template <class Fit>
struct block_by_block {
  using needs = typename Fit::needs;
  static bool fit(const format_spec& s, const float* x, std::size_t n, const input_statistics& about, const block_fields& f) {
    return Fit::fit(s, x, n, about, f);
  }
};
using two_threads = backwards_executor<2>;
bool same(const packed_matrix& a, const packed_matrix& b) { return std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end()); }
}  // namespace

TEST_CASE("every unit's rows are the blocks' bytes, with importance and without") {
  std::size_t compared = 0;
  for (const std::size_t cols : {std::size_t{2048}, std::size_t{608}, std::size_t{40}}) {
    const std::size_t rows = cols == 2048 ? 3 : 13;
    const auto x = hard_weights(round_up(rows * cols, 256), static_cast<std::uint32_t>(cols)), importance = hard_importance(cols, 5);
    const matrix_view<const float> w(x.data(), rows, cols);
    for_each_format(gguf_formats{}, [&]<class F>() {
      constexpr const format_spec& s = spec_of<F>;
      for (const bool with : {false, true}) {
        if (!kernel::can_quantise_rows(s, with)) continue;
        CAPTURE(std::string(s.name));
        CAPTURE(with);
        CAPTURE(cols);
        const auto expected = with ? *quantiser<F, block_by_block<importance_weighted>>::quantise(w, given_importance(importance))
                                   : *quantiser<F, block_by_block<standard>>::quantise(w);
        for (const auto& u : kernel::linked_units()) {
          if (!u.available) continue;
          packed_matrix out(s, rows, cols);
          const kernel::quantise_args all{&s, x.data(), cols, cols, 0, rows, with ? importance.data() : nullptr, out.bytes().data()};
          CHECK(u.kernels->quantise_rows(all));
          CHECK_MESSAGE(same(out, expected.weights), std::string(u.name));
          ++compared;
        }
      }
    });
  }
  CHECK(compared >= 3 * 18);
}

TEST_CASE("no product that feeds a sum is fused with it, in any of thousands of blocks") {
  const std::size_t rows = 512, cols = 2048;
  std::mt19937 random(9);
  std::student_t_distribution<float> heavy(1.5f);
  std::exponential_distribution<float> positive;
  std::vector<float> x(rows * cols), importance(cols);
  for (float& v : x) v = 0.02f * heavy(random);
  for (float& v : importance) v = 1e-3f + positive(random);
  const matrix_view<const float> w(x.data(), rows, cols);
  const auto check = [&]<class F>(bool with) {
    const auto expected = with ? *quantiser<F, block_by_block<importance_weighted>>::quantise(w, given_importance(importance))
                               : *quantiser<F, block_by_block<standard>>::quantise(w);
    for (const auto& u : kernel::linked_units()) {
      if (!u.available) continue;
      packed_matrix out(spec_of<F>, rows, cols);
      CHECK(u.kernels->quantise_rows({&spec_of<F>, x.data(), cols, cols, 0, rows, with ? importance.data() : nullptr, out.bytes().data()}));
      CHECK_MESSAGE(same(out, expected.weights), (std::string(u.name) + (with ? " with importance" : "")));
    }
  };
  // Of sub-blocks short enough to be unrolled, where GCC fused the first product of a sum.
  check.template operator()<q2_k>(false);
  check.template operator()<q2_k>(true);
}

TEST_CASE("quantisers take that path, for any executor") {
  const auto x = hard_weights(9 * 512, 3);
  const matrix_view<const float> w(x.data(), 9, 512);
  const auto importance = given_importance(hard_importance(512, 6));
  for_each_format(gguf_formats{}, [&]<class F>() {
    CAPTURE(std::string(spec_of<F>.name));
    CHECK(same(rtn<F>::quantise(w, uncalibrated(), two_threads())->weights, quantiser<F, block_by_block<standard>>::quantise(w)->weights));
    CHECK(same(quantiser<F, importance_weighted>::quantise(w, importance, two_threads())->weights,
               quantiser<F, block_by_block<importance_weighted>>::quantise(w, importance)->weights));
  });
}

TEST_CASE("weights too large for a weighted search fall back as their blocks do") {
  auto x = hard_weights(2 * 512, 4);
  for (std::size_t i = 0; i < 256; ++i) x[i] *= 0x1p100f;
  const matrix_view<const float> w(x.data(), 2, 512);
  const auto importance = given_importance(hard_importance(512, 7));
  const auto check = [&]<class F>() {
    const auto q = quantiser<F, importance_weighted>::quantise(w, importance);
    CHECK(same(q->weights, quantiser<F, block_by_block<importance_weighted>>::quantise(w, importance)->weights));
  };
  check.template operator()<q4_k>();
  check.template operator()<q4_0>();
  check.template operator()<iq4_xs>();
}
