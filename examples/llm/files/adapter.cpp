#include "adapter.hpp"

#include "../calibrate/groups.hpp"
#include "names.hpp"
#include "save.hpp"

#include <lowbit/adapt/merge.hpp>
#include <lowbit/adapt/merge_offsets.hpp>
#include <lowbit/io/gguf_adapter.hpp>
#include <lowbit/io/peft_adapter.hpp>
#include <lowbit/io/sha256.hpp>
#include <lowbit/matrix/dequantise.hpp>

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace llm {
namespace {

namespace fs = std::filesystem;
using lowbit::errc;
using lowbit::failure;
using lowbit::low_rank_factors;

/// B with the rows of each head in the other order of RoPE.
void reorder(low_rank_factors& f, std::size_t head_dim, rope_order to) {
  const lowbit::packed_view b{&lowbit::spec_of<lowbit::f32>, f.rows, f.rank, reinterpret_cast<const std::uint8_t*>(f.b.data())};
  const auto in_order = reorder_rows(b, head_dim, to);
  LOWBIT_EXPECTS(in_order.ok());  // it fits the model
  std::memcpy(f.b.data(), in_order->bytes().data(), in_order->bytes().size());
}

/// An adapter with GGUF's names, as its file has it otherwise; `order` is that of its rows.
lowbit::result<lowbit::adapter> read_adapter(const fs::path& path, rope_order& order) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    order = rope_order::halves;
    auto read = lowbit::read_peft_adapter(path);
    if (!read) return read;
    lowbit::adapter out;
    for (auto& [name, f] : read->weights) {
      const auto known = gguf_name(name);
      if (!known) return failure{errc::not_found, path.string() + ": the adapter changes '" + name + "', which is not part of a Llama"};
      if (const auto base = read->bases.find(name); base != read->bases.end()) out.bases.emplace(*known, base->second);
      out.weights.emplace(*known, std::move(f));
    }
    return out;
  }
  order = rope_order::pairs;
  const auto file = lowbit::mapped_file::open(path);
  if (!file) return file.error();
  auto read = lowbit::read_gguf_adapter(file->bytes());
  if (!read) return failure{read.error().kind, path.string() + ": " + read.error().message};
  if (!read->architecture.empty() && read->architecture != "llama")
    return failure{errc::unsupported, path.string() + ": the adapter is for the architecture \"" + read->architecture + "\", not \"llama\""};
  return read;
}

/// Fails where the factors do not fit the model.
lowbit::status check_fit(const std::string& name, const low_rank_factors& f, const std::string* base, const checkpoint& model) {
  const tensor* const t = model.find(name);
  if (t == nullptr) return failure{errc::not_found, "the adapter changes tensor " + name + ", which the model does not have"};
  if (t->is_vector || is_vocabulary_matrix(name))
    return failure{errc::unsupported, "the adapter changes tensor " + name + ", and only the matrices of layers can be adapted"};
  if (f.rows != t->rows || f.cols != t->cols)
    return failure{errc::shape, "tensor " + name + " is " + std::to_string(t->rows) + " x " + std::to_string(t->cols) + ", but the adapter is for " +
                                    std::to_string(f.rows) + " x " + std::to_string(f.cols)};
  if (const std::size_t head_dim = model.config.head_dim; (is_query(name) || is_key(name)) && (head_dim == 0 || head_dim % 2 != 0 || t->rows % head_dim != 0))
    return failure{errc::shape, "tensor " + name + " has rows that are not whole heads"};
  if (base == nullptr) return lowbit::done{};
  const std::string format = base->substr(0, base->find(' '));
  if (format != t->spec->name)
    return failure{errc::bad_value, "tensor " + name + " is in " + std::string(t->spec->name) +
                                        ", but the adapter was made for the weights in " + format};
  if (format.size() == base->size()) return lowbit::done{};
  const auto w = t->read();
  if (!w) return w.error();
  if (base_of(w->view()) != *base)
    return failure{errc::bad_value, "tensor " + name + " has other weights than those that the adapter was made for"};
  return lowbit::done{};
}

/// The inputs among which A only chooses, ascending; empty where it does more than that.
std::vector<std::uint32_t> chosen_inputs(const low_rank_factors& f) {
  std::vector<std::uint32_t> channels;
  for (std::size_t k = 0; k < f.rank; ++k) {
    const float* const row = &f.a[k * f.cols];
    const auto one = static_cast<std::size_t>(std::find_if(row, row + f.cols, [](float v) { return v != 0.0f; }) - row);
    if (one == f.cols || row[one] != 1.0f || std::any_of(row + one + 1, row + f.cols, [](float v) { return v != 0.0f; })) return {};
    if (!channels.empty() && one <= channels.back()) return {};
    channels.push_back(static_cast<std::uint32_t>(one));
  }
  return channels;
}

}  // namespace

std::string base_of(const lowbit::packed_view& w) {
  lowbit::sha256 digest;
  digest.update({w.data, w.size_bytes()});
  return std::string(w.spec->name) + ' ' + digest.finish();
}

lowbit::adapter reordered(lowbit::adapter a, const model_config& c, rope_order to) {
  for (auto& [name, f] : a.weights)
    if (is_query(name) || is_key(name)) reorder(f, c.head_dim, to);
  return a;
}

lowbit::result<lowbit::adapter> open_adapters(const std::vector<std::string>& paths, const checkpoint& model) {
  std::map<std::string, std::vector<low_rank_factors>> all;
  for (const std::string& path : paths) {
    rope_order order{};
    auto read = read_adapter(path, order);
    if (!read) return read;
    for (const auto& [name, f] : read->weights) {
      const auto base = read->bases.find(name);
      if (const lowbit::status fits = check_fit(name, f, base != read->bases.end() ? &base->second : nullptr, model); !fits)
        return failure{fits.error().kind, path + ": " + fits.error().message};
    }
    if (order != model.config.rope) *read = reordered(*std::move(read), model.config, model.config.rope);
    for (auto& [name, f] : read->weights) all[name].push_back(std::move(f));
  }
  lowbit::adapter sum;
  for (auto& [name, factors] : all) sum.weights.emplace(name, factors.size() == 1 ? std::move(factors[0]) : lowbit::sum_of(factors));
  return sum;
}

void attach(llama& model, const lowbit::adapter& a, thread_pool& threads) {
  for (std::size_t i = 0; i < model.layers.size(); ++i)
    for (const part_info& p : parts) {
      const auto found = a.weights.find(layer_name(i, p.name));
      if (found == a.weights.end()) continue;
      const low_rank_factors& f = found->second;
      lowbit::panel_matrix& w = model.layers[i].*p.weights;
      lowbit::low_rank& beside = model.layers[i].adapters.*p.adapter;
      auto channels = chosen_inputs(f);
      if (channels.empty() || !w.inputs().empty()) {
        beside = lowbit::low_rank::from(f, threads);
        continue;
      }
      // Q x + B x[channels] is Q without these columns, plus columns of Q's and B's sum.
      matrix columns(f.rows, f.rank);
      std::vector<float> row(f.cols);
      for (std::size_t r = 0; r < f.rows; ++r) {
        lowbit::read_row(w, r, row.data());
        for (std::size_t k = 0; k < f.rank; ++k) columns.row(r)[k] = row[channels[k]] + f.scale * f.b[r * f.rank + k];
      }
      beside = lowbit::low_rank::of_columns({columns.row(0), f.rows, f.rank}, channels, f.cols);
      w.ignore(std::move(channels));
    }
}

bool merges_into_offsets(const tensor& t, const low_rank_factors& f) {
  return lowbit::has_offsets(*t.spec) && !lowbit::find_unpooled(f, t.spec->block);
}

checkpoint merged(checkpoint model, std::shared_ptr<const lowbit::adapter> a, thread_pool& threads) {
  for (tensor& t : model.tensors) {
    const auto found = a->weights.find(t.name);
    if (found == a->weights.end()) continue;
    const low_rank_factors* const f = &found->second;
    const auto read = std::move(t.read);
    t.read_rows = nullptr;
    if (merges_into_offsets(t, *f)) {
      t.read = [a, f, read, name = t.name]() -> lowbit::result<weights> {
        const auto stored = read();
        if (!stored) return stored.error();
        const lowbit::packed_view from = stored->view();
        lowbit::packed_matrix w(*from.spec, from.rows, from.cols);
        std::memcpy(w.bytes().data(), from.data, from.size_bytes());
        if (const auto done = lowbit::merge_offsets(*f, w); !done)
          return failure{done.error().kind, "tensor " + name + ": " + done.error().message};
        return weights{std::move(w)};
      };
      continue;
    }
    t.spec = &lowbit::spec_of<lowbit::f32>;
    t.bytes = t.rows * t.cols * sizeof(float);
    t.read = [a, f, read, &threads, name = t.name]() -> lowbit::result<weights> {
      const auto stored = read();
      if (!stored) return stored.error();
      const lowbit::packed_view from = stored->view();
      if (lowbit::status finite = check_finite(name, from, threads); !finite) return std::move(finite).error();
      lowbit::packed_matrix w(lowbit::spec_of<lowbit::f32>, from.rows, from.cols);
      const lowbit::matrix_view<float> values(reinterpret_cast<float*>(w.bytes().data()), from.rows, from.cols);
      lowbit::dequantise(from, values, threads);
      lowbit::merge(*f, values, threads);
      return weights{std::move(w)};
    };
  }
  return model;
}

std::string outliers_beside(const std::string& model) {
  const std::filesystem::path path = std::filesystem::path{model}.lexically_normal();
  const std::filesystem::path plain = path.has_filename() ? path : path.parent_path();
  if (plain.extension() != ".gguf") return plain.string() + ".outliers";
  std::string stem = plain.stem().string();
  if (const std::size_t part = stem.rfind("-00001-of-"); part != stem.npos && part + 15 == stem.size()) stem.resize(part);
  return (plain.parent_path() / stem).string() + ".outliers";
}

lowbit::result<std::string> save_adapter(const std::string& path, lowbit::adapter a, const checkpoint& model) {
  if (model.config.rope == rope_order::pairs) {
    if (lowbit::status possible = check_output(path + ".gguf", model); !possible) return std::move(possible).error();
    if (const lowbit::status s = lowbit::write_gguf_adapter(path + ".gguf", a); !s) return s.error();
    return path + ".gguf";
  }
  lowbit::adapter hf;
  for (auto& [name, f] : a.weights) {
    // A checkpoint's layout keeps the values, and not the bytes of blocks: the format alone is what can be compared.
    if (const auto base = a.bases.find(name); base != a.bases.end())
      hf.bases.emplace(*hf_name(name), base->second.substr(0, base->second.find(' ')));
    hf.weights.emplace(*hf_name(name), std::move(f));
  }
  if (lowbit::status possible = check_output(std::filesystem::path{path} / "adapter_model.safetensors", model); !possible) return std::move(possible).error();
  if (const lowbit::status s = lowbit::write_peft_adapter(path, hf, model.name); !s) return s.error();
  return path;
}

}  // namespace llm
