// Products with adapters: y = dequant(W) x + s B (A x), many at once, with a different adapter for every token.
//
// Each token names its adapter by number, as tokens of a mixture name their experts; requests to several fine-tuned models then share the one
// pass over the large weights (S-LoRA: Sheng et al. 2024). A x comes first, one small product for each adapter that a token of the batch
// uses; what B adds to the results is an epilogue of the large product (matrix/low_rank.hpp). Sums and activations are float32 in both.
#pragma once

#include <lowbit/matrix/product.hpp>

namespace lowbit {

/// A product whose matrix, and gate, have adapters: the same number is the same adapter for both. Matrices that an adapter leaves alone have
/// null in its place. Expects adapters of their matrix's shape.
struct adapted_product {
  product base;                                   ///< without `plus` and `gate_plus`
  std::span<const low_rank* const> adapters{};
  std::span<const low_rank* const> gate_adapters{};
};

/// Memory that adapted products share, as `workspace`. One for each thread that calls multiply.
struct adapter_workspace {
  workspace products;
  std::vector<product> batch;
  std::vector<add_low_rank> sums;                 ///< of each product, its matrix's and its gate's
  std::vector<float> inner;                       ///< A x
  std::vector<std::vector<std::uint32_t>> lists;  ///< rows of x and of y that use one adapter
};

namespace detail {

/// The largest rank among matrices of a list.
inline std::size_t largest_rank(std::span<const low_rank* const> all) noexcept {
  std::size_t rank = 0;
  for (const low_rank* const l : all)
    if (l != nullptr) rank = std::max(rank, l->rank());
  return rank;
}

}  // namespace detail

/// All products of a batch. `chosen` says the number of each token's adapter, by row of y: no_adapter, or one that a matrix has not, leaves
/// the product as it is; empty: every token uses adapter 0. Epilogue and activation as in the plain multiply.
template <executor E, epilogue Epilogue = keep, epilogue Activation = silu>
void multiply(std::span<const adapted_product> batch, std::span<const std::uint32_t> chosen, adapter_workspace& space, E& executor,
              precision how = precision::int8, const Epilogue& epilogue = {}, const Activation& activation = {}) {
  space.batch.clear();
  space.sums.clear();
  space.lists.clear();
  std::size_t floats = 0, lists = 0;
  for (const adapted_product& p : batch)
    for (const auto adapters : {p.adapters, p.gate_adapters}) {
      floats += p.base.y.rows * detail::largest_rank(adapters);
      lists += 2 * adapters.size();
    }
  if (space.inner.size() < floats) space.inner.resize(floats);
  space.sums.reserve(2 * batch.size());
  space.lists.reserve(lists);

  // A x of every adapter that is used, for the tokens that use it.
  float* memory = space.inner.data();
  for (const adapted_product& p : batch) {
    const product& base = p.base;
    LOWBIT_EXPECTS(base.plus == nullptr && base.gate_plus == nullptr && (chosen.empty() || chosen.size() == base.y.rows));
    for (const auto adapters : {p.adapters, p.gate_adapters}) {
      const std::size_t rank = detail::largest_rank(adapters);
      const matrix_view<float> inner(memory, base.y.rows, rank);
      memory += base.y.rows * rank;
      space.sums.push_back({adapters, chosen, inner});
      for (std::size_t n = 0; n < (chosen.empty() ? std::min<std::size_t>(adapters.size(), 1) : adapters.size()); ++n) {
        const low_rank* const l = adapters[n];
        if (l == nullptr || l->rank() == 0) continue;
        LOWBIT_EXPECTS(l->cols() == base.x.cols && l->rows() == base.y.cols);
        if (!l->channels().empty()) {
          for (std::size_t t = 0; t < base.tokens(); ++t)
            if (const std::size_t to = base.to[t]; chosen.empty() || chosen[to] == n)
              for (std::size_t k = 0; k < l->rank(); ++k) inner(to, k) = base.x(base.from[t], l->channels()[k]);
          continue;
        }
        product down{base.x, &l->a(), {inner.data, inner.rows, l->rank(), rank}, nullptr, base.from, base.to};
        if (!chosen.empty()) {
          auto& from = space.lists.emplace_back();
          auto& to = space.lists.emplace_back();
          for (std::size_t t = 0; t < base.tokens(); ++t)
            if (chosen[base.to[t]] == n) {
              from.push_back(static_cast<std::uint32_t>(base.from[t]));
              to.push_back(static_cast<std::uint32_t>(base.to[t]));
            }
          down.from = std::span<const std::uint32_t>(from);
          down.to = std::span<const std::uint32_t>(to);
        }
        space.batch.push_back(down);
      }
    }
  }
  if (!space.batch.empty()) multiply(std::span<const product>(space.batch), space.products, executor, precision::exact);

  space.batch.clear();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    product& p = space.batch.emplace_back(batch[i].base);
    if (const add_low_rank& sum = space.sums[2 * i]; sum.inner.cols != 0) p.plus = &sum;
    if (const add_low_rank& sum = space.sums[2 * i + 1]; sum.inner.cols != 0) p.gate_plus = &sum;
  }
  multiply(std::span<const product>(space.batch), space.products, executor, how, epilogue, activation);
}

}  // namespace lowbit
