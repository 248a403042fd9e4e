#include "kv_cache.hpp"

#include "machines.hpp"

#include <algorithm>
#include <limits>

namespace llm {
namespace {

constexpr std::size_t lanes = kv_cache::lanes, rows = 4;

// scores[r][p] = sum over i of query[r][i] * keys[i][p], for positions below `seen` and up to the next whole vector.
LLM_FOR_EACH_MACHINE
void score(const float* query, std::size_t head_dim, const float* keys, std::size_t key_stride, std::size_t seen, float* scores,
           std::size_t score_stride) {
  for (std::size_t p = 0; p < seen; p += lanes) {
    vector sum[rows] = {};
    for (std::size_t i = 0; i < head_dim; ++i) {
      vector k;
      load(keys + i * key_stride + p, k);
      for (std::size_t r = 0; r < rows; ++r) sum[r] += query[r * head_dim + i] * k;
    }
    for (std::size_t r = 0; r < rows; ++r) store(sum[r], scores + r * score_stride + p);
  }
}

// out[r][i] = sum over p < seen of weights[r][p] * values[p][i], for i below value_stride.
LLM_FOR_EACH_MACHINE
void mix(const float* weights, std::size_t weight_stride, const float* values, std::size_t value_stride, std::size_t seen, float* out) {
  for (std::size_t i = 0; i < value_stride; i += lanes) {
    vector sum[rows] = {};
    for (std::size_t p = 0; p < seen; ++p) {
      vector v;
      load(values + p * value_stride + i, v);
      for (std::size_t r = 0; r < rows; ++r) sum[r] += weights[r * weight_stride + p] * v;
    }
    for (std::size_t r = 0; r < rows; ++r) store(sum[r], out + r * value_stride + i);
  }
}

}  // namespace

kv_cache::kv_cache(const model_config& c, std::size_t positions, kv_storage storage)
    : layers_(c.layers), heads_(c.kv_heads), head_dim_(c.head_dim), capacity_(positions), key_stride_(lowbit::round_up(positions, lanes)),
      value_stride_(lowbit::round_up(c.head_dim, lanes)), storage_(storage) {
  if (storage_.format == nullptr) {
    keys_.resize(layers_ * heads_ * head_dim_ * key_stride_);
    values_.resize(layers_ * heads_ * positions * value_stride_);
    return;
  }
  for (std::size_t i = 0; i < layers_ * heads_; ++i) {
    key_panels_.emplace_back(*storage_.format, head_dim_, positions);
    value_rows_.emplace_back(*storage_.format, head_dim_, positions);
  }
}

void kv_cache::store(std::size_t layer, const matrix& keys, const matrix& values) {
  LOWBIT_EXPECTS(keys.rows() <= capacity_ - size_ && keys.rows() == values.rows());
  for (std::size_t h = 0; h < heads_; ++h) {
    if (storage_.format != nullptr) {
      lowbit::serial_executor serial;
      const auto head = [&](const matrix& m) { return lowbit::matrix_view<const float>(m.row(0) + h * head_dim_, m.rows(), head_dim_, m.cols()); };
      finite_ = key_panels_[place(layer, h)].append(head(keys), serial).ok() && value_rows_[place(layer, h)].append(head(values), serial).ok() && finite_;
      continue;
    }
    float* const k = keys_.data() + place(layer, h) * head_dim_ * key_stride_ + size_;
    float* const v = values_.data() + (place(layer, h) * capacity_ + size_) * value_stride_;
    for (std::size_t t = 0; t < keys.rows(); ++t)
      for (std::size_t i = 0; i < head_dim_; ++i) {
        k[i * key_stride_ + t] = keys.row(t)[h * head_dim_ + i];
        v[t * value_stride_ + i] = values.row(t)[h * head_dim_ + i];
      }
  }
}

void kv_cache::clear() {
  size_ = 0;
  finite_ = true;
  for (lowbit::growing_panels& k : key_panels_) k.clear();
  for (lowbit::growing_rows& v : value_rows_) v.truncate(0);
}

std::size_t kv_cache::size_bytes() const noexcept {
  if (storage_.format == nullptr) return (keys_.size() + values_.size()) * sizeof(float);
  const std::size_t head = lowbit::panel_matrix::size_of(*storage_.format, capacity_, head_dim_) + capacity_ * storage_.format->row_bytes(head_dim_);
  return layers_ * heads_ * head;
}

void kv_cache::score(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> queries, std::size_t seen,
                     lowbit::matrix_view<float> scores, scratch& space) const {
  if (storage_.format == nullptr)
    return llm::score(queries.data, head_dim_, keys_.data() + place(layer, head) * head_dim_ * key_stride_, key_stride_, seen, scores.data, scores.stride);
  if (!finite_) return;  // mix() says so
  const lowbit::panel_matrix keys = key_panels_[place(layer, head)].panels(seen);
  lowbit::multiply(queries, keys, {scores.data, scores.rows, seen, scores.stride}, space.products, storage_.precision);
}

void kv_cache::mix(std::size_t layer, std::size_t head, lowbit::matrix_view<const float> weights, std::size_t seen,
                   lowbit::matrix_view<float> out, scratch& space) const {
  if (storage_.format == nullptr)
    return llm::mix(weights.data, weights.stride, values_.data() + place(layer, head) * capacity_ * value_stride_, value_stride_, seen, out.data);
  if (!finite_) {
    for (std::size_t r = 0; r < out.rows; ++r) std::fill_n(out.row(r), head_dim_, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  lowbit::serial_executor serial;
  lowbit::multiply_transposed({weights.data, weights.rows, seen, weights.stride}, value_rows_[place(layer, head)].view().middle_rows(0, seen),
                              {out.data, out.rows, head_dim_, out.stride}, space.sums, serial);
}

}  // namespace llm
