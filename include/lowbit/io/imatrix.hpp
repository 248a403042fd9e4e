// llama.cpp's importance matrices: for each weight tensor the sums of x² of its input channels and how many inputs were summed. Both kinds of
// file (tools/imatrix): the old .dat, and GGUF with `<tensor>.in_sum2` and `<tensor>.counts`.
//
// What quantisers want is the mean, sum / count. An expert that no token reached has count 0; its channels then count alike, 1 each.
#pragma once

#include <lowbit/io/gguf_writer.hpp>

#include <cmath>
#include <unordered_map>

namespace lowbit {

/// The inputs of one tensor, of each of its experts (one, but for mixtures).
struct imatrix_entry {
  std::string name;            ///< the tensor's name, such as blk.0.ffn_down.weight
  std::vector<float> sums;     ///< [experts, channels] Σ x² (old files: the mean times the number of calls)
  std::vector<float> counts;   ///< one for each expert; or one for all, as in old files

  /// Mean x² of the channels of one of `experts` experts. Fails (shape) where the entry is of another size.
  [[nodiscard]] result<std::vector<float>> importance(std::size_t channels, std::size_t expert = 0, std::size_t experts = 1) const {
    LOWBIT_EXPECTS(expert < experts);
    if (sums.size() / experts != channels || sums.size() % experts != 0 || (counts.size() != experts && counts.size() != 1))
      return failure{errc::shape, "importance of '" + name + "': " + std::to_string(sums.size()) + " values where " + std::to_string(experts) + " x " +
                                      std::to_string(channels) + " are needed"};
    const float count = counts[counts.size() == 1 ? 0 : expert];
    std::vector<float> mean(sums.begin() + static_cast<std::ptrdiff_t>(expert * channels), sums.begin() + static_cast<std::ptrdiff_t>((expert + 1) * channels));
    for (float& m : mean) m = count > 0 ? m / count : 1.0f;
    return mean;
  }
};

/// A whole file.
struct imatrix {
  std::vector<imatrix_entry> entries;
  std::vector<std::string> datasets;  ///< the texts it was computed from; an old file has at most one
  std::uint32_t chunk_count = 0;      ///< pieces of text that were run
  std::uint32_t chunk_size = 0;       ///< tokens of each; 0 in old files, which do not say

  [[nodiscard]] const imatrix_entry* find(std::string_view name) const noexcept {
    const auto at = std::find_if(entries.begin(), entries.end(), [&](const imatrix_entry& e) { return e.name == name; });
    return at != entries.end() ? &*at : nullptr;
  }
};

enum class imatrix_kind : std::uint8_t { gguf, dat };

namespace detail {

/// Refuses sums and counts that are no sums of squares and no counts.
inline status check_imatrix_entry(const imatrix_entry& e) {
  const auto bad = [&](const char* what, std::size_t i, float v) {
    return failure{errc::bad_value, "importance of '" + e.name + "': " + what + " " + std::to_string(i) + " is " + std::to_string(v)};
  };
  for (std::size_t i = 0; i < e.sums.size(); ++i)
    if (!(e.sums[i] >= 0) || !std::isfinite(e.sums[i])) return bad("value", i, e.sums[i]);
  for (std::size_t i = 0; i < e.counts.size(); ++i)
    if (!(e.counts[i] >= 0) || !std::isfinite(e.counts[i])) return bad("count", i, e.counts[i]);
  return done{};
}

inline std::vector<float> floats_of(std::span<const std::uint8_t> bytes) {
  std::vector<float> v(bytes.size() / sizeof(float));
  if (!v.empty()) std::memcpy(v.data(), bytes.data(), v.size() * sizeof(float));
  return v;
}

/// The old kind: count, entries of {name, calls, values}, and in newer files the last chunk and the data set's name.
inline result<imatrix> read_imatrix_dat(std::span<const std::uint8_t> file) {
  byte_reader in(file);
  const failure truncated{errc::truncated, "the importance matrix ends before its last entry"};
  const auto count = in.read<std::int32_t>();
  // The shortest entry takes 4 + 1 + 4 + 4 + 4 bytes.
  if (!in.ok()) return truncated;
  if (count < 1) return failure{errc::malformed, "not an importance matrix: " + std::to_string(count) + " entries"};
  if (static_cast<std::size_t>(count) > in.left() / 17) return truncated;
  imatrix m;
  std::unordered_set<std::string_view> seen;
  for (std::int32_t i = 0; i < count; ++i) {
    const auto length = in.read<std::int32_t>();
    if (in.ok() && length < 1) return failure{errc::malformed, "importance matrix: the name of entry " + std::to_string(i) + " has length " + std::to_string(length)};
    const auto name_bytes = in.take(static_cast<std::size_t>(length));
    const auto calls = in.read<std::int32_t>(), values = in.read<std::int32_t>();
    if (!in.ok()) return truncated;
    const std::string_view name(reinterpret_cast<const char*>(name_bytes.data()), name_bytes.size());
    const auto named = [&](errc kind, const std::string& what) { return failure{kind, "importance of '" + std::string(name) + "': " + what}; };
    if (!seen.insert(name).second) return named(errc::malformed, "appears twice");
    if (calls < 0) return named(errc::bad_value, std::to_string(calls) + " calls");
    if (values < 1) return named(errc::malformed, std::to_string(values) + " values");
    if (static_cast<std::size_t>(values) > in.left() / sizeof(float)) return truncated;
    m.entries.push_back({std::string(name), floats_of(in.take(static_cast<std::size_t>(values) * sizeof(float))), {static_cast<float>(calls)}});
    if (status s = check_imatrix_entry(m.entries.back()); !s) return std::move(s).error();
  }
  if (in.left() == 0) return m;
  const auto last_chunk = in.read<std::int32_t>(), length = in.read<std::int32_t>();
  const auto text = in.take(static_cast<std::size_t>(length < 0 ? 0 : length));
  if (!in.ok()) return failure{errc::truncated, "the importance matrix ends within the name of its data set"};
  if (last_chunk < 0 || length < 0) return failure{errc::malformed, "importance matrix: a negative chunk or length at its end"};
  if (in.left() != 0) return failure{errc::malformed, "importance matrix: " + std::to_string(in.left()) + " bytes too many"};
  m.chunk_count = static_cast<std::uint32_t>(last_chunk);
  if (!text.empty()) m.datasets.emplace_back(reinterpret_cast<const char*>(text.data()), text.size());
  return m;
}

inline result<imatrix> read_imatrix_gguf(std::span<const std::uint8_t> file) {
  auto content = read_gguf(file);
  if (!content) return std::move(content).error();
  const auto type = content->metadata.find<std::string>("general.type");
  if (!type || *type != "imatrix") return failure{errc::malformed, "not an importance matrix: general.type is " + (type ? "'" + *type + "'" : "missing")};
  imatrix m;
  if (const auto* const names = content->metadata.find_array<std::string>("imatrix.datasets")) m.datasets = *names;
  m.chunk_count = content->metadata.find<std::uint32_t>("imatrix.chunk_count").value_or(0);
  m.chunk_size = content->metadata.find<std::uint32_t>("imatrix.chunk_size").value_or(0);
  constexpr std::string_view sums_suffix = ".in_sum2", counts_suffix = ".counts";
  std::unordered_map<std::string_view, const gguf_tensor*> counts;
  std::size_t used = 0;
  for (const gguf_tensor& t : content->tensors)
    if (t.name.ends_with(counts_suffix)) counts.emplace(std::string_view(t.name).substr(0, t.name.size() - counts_suffix.size()), &t);
  for (const gguf_tensor& t : content->tensors) {
    if (!t.name.ends_with(sums_suffix)) continue;
    const std::string name = t.name.substr(0, t.name.size() - sums_suffix.size());
    const auto named = [&](errc kind, const std::string& what) { return failure{kind, "importance of '" + name + "': " + what}; };
    const auto count = counts.find(name);
    if (count == counts.end()) return named(errc::not_found, "there are sums and no counts");
    if (t.type != 0 || count->second->type != 0) return named(errc::unsupported, "sums and counts are not float32");
    const std::uint64_t experts = t.dims.empty() ? 1 : t.elements() / t.dims[0];
    if (count->second->elements() != experts)
      return named(errc::shape, "sums of " + std::to_string(experts) + " experts, counts of " + std::to_string(count->second->elements()));
    m.entries.push_back({name, floats_of(t.data), floats_of(count->second->data)});
    if (status s = check_imatrix_entry(m.entries.back()); !s) return std::move(s).error();
    ++used;
  }
  if (used != counts.size()) return failure{errc::not_found, "importance matrix: some counts have no sums"};
  return m;
}

inline std::span<const std::uint8_t> bytes_of(const std::vector<float>& v) noexcept {
  return {reinterpret_cast<const std::uint8_t*>(v.data()), v.size() * sizeof(float)};
}

}  // namespace detail

/// Reads either kind; a GGUF file is known by its magic number.
inline result<imatrix> read_imatrix(std::span<const std::uint8_t> file) {
  return file.size() >= 4 && std::memcmp(file.data(), "GGUF", 4) == 0 ? detail::read_imatrix_gguf(file) : detail::read_imatrix_dat(file);
}

/// Writes either kind; the file appears only when it is complete. The old kind holds one count for each tensor, as a whole number: sums of
/// experts that were counted differently are scaled to the largest count. It holds the first data set's name.
inline status write_imatrix(const std::filesystem::path& target, const imatrix& m, imatrix_kind kind = imatrix_kind::gguf) {
  for (const imatrix_entry& e : m.entries) {
    if (status s = detail::check_imatrix_entry(e); !s) return s;
    if (e.name.empty() || e.counts.empty() || e.sums.empty() || e.sums.size() % e.counts.size() != 0)
      return failure{errc::shape, "importance of '" + e.name + "' cannot be written: " + std::to_string(e.sums.size()) + " sums, " +
                                      std::to_string(e.counts.size()) + " counts"};
  }
  if (kind == imatrix_kind::gguf) {
    gguf_metadata metadata;
    metadata.set("general.type", "imatrix");
    metadata.set("imatrix.datasets", m.datasets);
    metadata.set("imatrix.chunk_count", m.chunk_count);
    metadata.set("imatrix.chunk_size", m.chunk_size);
    std::vector<gguf_tensor> tensors;
    for (const imatrix_entry& e : m.entries) {
      tensors.push_back({e.name + ".in_sum2", 0, {e.sums.size() / e.counts.size(), e.counts.size()}, {}});
      tensors.push_back({e.name + ".counts", 0, {1, e.counts.size()}, {}});
    }
    auto out = gguf_writer::create(target, metadata, tensors);
    if (!out) return std::move(out).error();
    for (const imatrix_entry& e : m.entries)
      for (const auto* v : {&e.sums, &e.counts})
        if (status s = out->append(detail::bytes_of(*v)); !s) return s;
    return out->commit();
  }
  auto out = file_writer::create(target);
  if (!out) return std::move(out).error();
  status written = done{};
  const auto put = [&](std::span<const std::uint8_t> bytes) {
    if (written) written = out->append(bytes);
  };
  const auto put_int = [&](std::size_t v) {
    const std::uint32_t word = static_cast<std::uint32_t>(std::min<std::size_t>(v, INT32_MAX));
    std::uint8_t bytes[4];
    std::memcpy(bytes, &word, 4);
    put(bytes);
  };
  const auto put_text = [&](std::string_view text) {
    put_int(text.size());
    put({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  };
  put_int(m.entries.size());
  for (const imatrix_entry& e : m.entries) {
    const float most = std::nearbyint(std::clamp(*std::max_element(e.counts.begin(), e.counts.end()), 1.0f, 0x1p30f));
    const std::size_t channels = e.sums.size() / e.counts.size();
    std::vector<float> values = e.sums;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float count = e.counts[i / channels];
      if (count != most) values[i] = count > 0 ? values[i] / count * most : most;
    }
    put_text(e.name);
    put_int(static_cast<std::size_t>(most));
    put_int(values.size());
    put(detail::bytes_of(values));
  }
  put_int(m.chunk_count);
  put_text(m.datasets.empty() ? std::string_view() : std::string_view(m.datasets.front()));
  return written ? out->commit() : written;
}

}  // namespace lowbit
