#include "kv_cache.hpp"

#include <algorithm>
#include <limits>

namespace llm {

kv_cache::kv_cache(const model_config& c, std::size_t positions, kv_storage storage)
    : layers_(c.layers), heads_(c.kv_heads), head_dim_(c.head_dim), capacity_(positions), storage_(storage) {
  for (std::size_t i = 0; i < layers_ * heads_; ++i) {
    keys_.emplace_back(*storage_.format, head_dim_, positions, lowbit::kernel::best_unit());
    values_.emplace_back(*storage_.format, head_dim_, positions);
  }
}

void kv_cache::store(std::size_t layer, const matrix& keys, const matrix& values) {
  LOWBIT_EXPECTS(keys.rows() <= capacity_ - size_ && keys.rows() == values.rows());
  lowbit::serial_executor serial;
  for (std::size_t h = 0; h < heads_; ++h) {
    const auto head = [&](const matrix& m) { return lowbit::matrix_view<const float>(m.row(0) + h * head_dim_, m.rows(), head_dim_, m.cols()); };
    finite_ = keys_[place(layer, h)].append(head(keys), serial).ok() && values_[place(layer, h)].append(head(values), serial).ok() && finite_;
  }
}

void kv_cache::clear() {
  size_ = 0;
  finite_ = true;
  for (lowbit::growing_panels& k : keys_) k.clear();
  for (lowbit::growing_rows& v : values_) v.truncate(0);
}

std::size_t kv_cache::size_bytes() const noexcept {
  const std::size_t head = lowbit::panel_matrix::size_of(*storage_.format, capacity_, head_dim_) + capacity_ * storage_.format->row_bytes(head_dim_);
  return layers_ * heads_ * head;
}

void kv_cache::score(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> queries, std::size_t seen,
                     lowbit::matrix_view<float> scores, scratch& space) const {
  if (!finite_) return;  // mix() says so
  const lowbit::panel_matrix keys = keys_[place(layer, head)].panels(seen);
  lowbit::multiply(queries, keys, {scores.data, scores.rows, seen, scores.stride}, space.products, storage_.precision);
}

void kv_cache::mix(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> weights, std::size_t seen,
                   lowbit::matrix_view<float> out, scratch& space) const {
  if (!finite_) {
    for (std::size_t r = 0; r < out.rows; ++r) std::fill_n(out.row(r), head_dim_, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  lowbit::serial_executor serial;
  lowbit::multiply_transposed({weights.data, weights.rows, seen, weights.stride}, values_[place(layer, head)].view().middle_rows(0, seen),
                              {out.data, out.rows, head_dim_, out.stride}, space.sums, serial);
}

}  // namespace llm
