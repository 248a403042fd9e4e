#include "outliers.hpp"

#include "../files/names.hpp"

#include <lowbit/quantise/outliers.hpp>

#include <utility>

namespace llm {
namespace {

std::string columns_name(const std::string& name) { return name + ".outliers"; }
std::string channels_name(const std::string& name) { return name + ".outlier_channels"; }

/// What keep_outliers kept of a matrix.
struct kept {
  lowbit::matrix_view<const float> columns;
  std::vector<std::uint32_t> channels;
};
std::optional<kept> find_outliers(const std::string& name, const std::function<const weights*(const std::string&)>& find) {
  const weights* const columns = find(columns_name(name));
  const weights* const channels = find(channels_name(name));
  if (columns == nullptr || channels == nullptr) return std::nullopt;
  const lowbit::packed_view c = columns->view(), numbers = channels->view();
  kept k{{reinterpret_cast<const float*>(c.data), c.rows, c.cols}, {}};
  const auto* const from = reinterpret_cast<const float*>(numbers.data);
  for (std::size_t i = 0; i < numbers.cols; ++i) k.channels.push_back(static_cast<std::uint32_t>(from[i]));
  return k;
}

}  // namespace

std::vector<std::uint32_t> outliers_among(const lowbit::layer_statistics& about) {
  return lowbit::outlier_channels(about.get<lowbit::channel_maximum>(), 6.0f, std::max<std::size_t>(about.channels() / 16, 1));
}

matrix take_columns(matrix& w, std::span<const std::uint32_t> channels) {
  matrix columns(w.rows(), channels.size());
  for (std::size_t r = 0; r < w.rows(); ++r)
    for (std::size_t i = 0; i < channels.size(); ++i) columns.row(r)[i] = std::exchange(w.row(r)[channels[i]], 0.0f);
  return columns;
}

void keep_outliers(named_weights& step, const std::string& name, const matrix& columns, std::span<const std::uint32_t> channels) {
  const std::vector<float> numbers(channels.begin(), channels.end());  // exact up to 2^24
  step.emplace(columns_name(name), stored_floats(columns.row(0), columns.rows(), columns.cols()));
  step.emplace(channels_name(name), stored_floats(numbers.data(), 1, numbers.size()));
}

void run_outliers(layer_weights& w, part p, std::size_t layer, const std::function<const weights*(const std::string&)>& find) {
  const part_info& info = info_of(p);
  auto found = find_outliers(layer_name(layer, info.name), find);
  if (!found) return;
  lowbit::panel_matrix& rest = w.*info.weights;
  w.adapters.*info.adapter = lowbit::low_rank::of_columns(found->columns, found->channels, rest.cols());
  rest.ignore(std::move(found->channels));
}

lowbit::adapter adapter_of_outliers(const checkpoint& model, const std::function<const weights*(const std::string&)>& find) {
  lowbit::adapter a;
  a.architecture = "llama";
  for (const tensor& t : model.tensors) {
    const auto found = find_outliers(t.name, find);
    if (!found) continue;
    lowbit::low_rank_factors f{t.rows, t.cols, found->channels.size(), {}, {}, 1.0f};
    f.a.resize(f.rank * f.cols);
    for (std::size_t k = 0; k < f.rank; ++k) f.a[k * f.cols + found->channels[k]] = 1.0f;
    // What the quantised columns lack: all of it where the format has a zero.
    const lowbit::packed_view rest = find(t.name)->view();
    matrix made(f.rows, f.cols);
    lowbit::decode(rest, {made.row(0), f.rows, f.cols});
    for (std::size_t r = 0; r < f.rows; ++r)
      for (std::size_t k = 0; k < f.rank; ++k) f.b.push_back(found->columns(r, k) - made.row(r)[found->channels[k]]);
    a.bases.emplace(t.name, base_of(rest));
    a.weights.emplace(t.name, std::move(f));
  }
  return a;
}

}  // namespace llm
