// Panels of a model's matrices in a file beside the model: built once, mapped from then on. The run layout is the same on every machine, so
// the file is too.
//
// It is a GGUF file: a tensor of bytes for each matrix, at page boundaries, and metadata that say what each is and which source they were
// made from. A source is known by a fingerprint: of each file the size, the times of its last changes (the second of which no program can
// set), and pages from all over it. Whatever does not fit is not used, and the panels are built anew. Their own bytes are as much trusted as
// those of a model's file: looking at them all would take as long as building them, so that is left to check().
#pragma once

#include <lowbit/io/gguf_writer.hpp>
#include <lowbit/io/sha256.hpp>
#include <lowbit/matrix/panel_matrix.hpp>

#include <algorithm>
#include <map>

namespace lowbit {

/// What tells a source from a changed one, as text. Fails (io) where a file cannot be read.
inline result<std::string> fingerprint(std::span<const std::filesystem::path> files) {
  constexpr std::size_t page = 4096, pages = 64;
  sha256 hash;
  for (const std::filesystem::path& path : files) {
    auto file = open_file::open(path);
    if (!file) return std::move(file).error();
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return detail::system_failure("cannot read", path);
    const std::int64_t facts[] = {info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec};
    hash.update({reinterpret_cast<const std::uint8_t*>(facts), sizeof facts});
    for (std::size_t i = 0; i < pages; ++i) {
      const std::size_t last = file->size() < page ? 0 : file->size() - page, at = last / (pages - 1) * i;
      const auto part = file->map(i + 1 == pages ? last : at, std::min(page, file->size()));
      if (!part) return part.error();
      hash.update(part->bytes());
    }
  }
  return hash.finish();
}

namespace detail {
/// A checksum against damage, not against forgery: eight bytes a step, in eight sums that do not wait for one another. Expects whole lines.
inline std::uint64_t panel_checksum(std::span<const std::uint8_t> bytes) noexcept {
  LOWBIT_EXPECTS(bytes.size() % 64 == 0);
  constexpr std::uint64_t odd = 0x9e3779b97f4a7c15;
  std::uint64_t sums[8] = {1, 2, 3, 4, 5, 6, 7, 8}, all = 0;
  for (std::size_t at = 0; at < bytes.size(); at += 64)
    for (std::size_t k = 0; k < 8; ++k) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + at + 8 * k, 8);
      sums[k] = (sums[k] ^ word) * odd;
      sums[k] ^= sums[k] >> 32;
    }
  for (const std::uint64_t s : sums) all = (all ^ s) * odd;
  return all;
}
}  // namespace detail

/// A cache that is open. The matrices that it gives live no longer than it does. Movable.
class panel_cache {
 public:
  /// A matrix and its name, of at most 63 bytes.
  struct entry {
    std::string name;
    const panel_matrix* matrix;
  };

  /// Fails where the file is missing, is no cache, is of another version of the layout, or was made from something else than `source`.
  static result<panel_cache> open(const std::filesystem::path& path, const std::string& source) {
    panel_cache cache;
    auto file = mapped_file::open(path);
    if (!file) return std::move(file).error();
    cache.file_ = *std::move(file);
    auto content = read_gguf(cache.file_.bytes());
    const auto in_file = [&](errc kind, const std::string& what) { return failure{kind, path.string() + ": " + what}; };
    if (!content) return in_file(content.error().kind, content.error().message);
    const gguf_metadata& m = content->metadata;
    if (m.find<std::string>("general.type") != "lowbit.panels") return in_file(errc::bad_magic, "is no cache of panels");
    if (m.find<std::uint32_t>("lowbit.layout") != layout_version) return in_file(errc::unsupported, "holds panels of another version");
    if (m.find<std::string>("lowbit.source") != source) return in_file(errc::not_found, "was made from another file, or from one that has changed since");
    const auto* const formats = m.find_array<std::string>("lowbit.formats");
    const auto *const rows = m.find_array<std::uint64_t>("lowbit.rows"), *const cols = m.find_array<std::uint64_t>("lowbit.cols");
    const auto* const sums = m.find_array<std::uint64_t>("lowbit.checksums");
    const std::size_t count = content->tensors.size();
    if (formats == nullptr || rows == nullptr || cols == nullptr || sums == nullptr || formats->size() != count || rows->size() != count ||
        cols->size() != count || sums->size() != count)
      return in_file(errc::malformed, "does not say what its panels are");
    for (std::size_t i = 0; i < count; ++i) {
      gguf_tensor& t = content->tensors[i];
      const auto id = find_format((*formats)[i]);
      const std::size_t r = static_cast<std::size_t>((*rows)[i]), c = static_cast<std::size_t>((*cols)[i]);
      // A panel holds at least a bit of every weight: extents that the bytes cannot hold are not even multiplied.
      const bool plausible = id && r != 0 && c != 0 && c / 8 <= t.data.size() && r / 8 <= t.data.size() / std::max<std::size_t>(1, c / 8);
      if (!plausible || panel_matrix::size_of(spec_of_id(*id), r, c) != t.data.size() || reinterpret_cast<std::uintptr_t>(t.data.data()) % 64 != 0)
        return in_file(errc::shape, "'" + t.name + "' is not " + std::to_string(r) + " x " + std::to_string(c) + " in " + (*formats)[i]);
      cache.matrices_.emplace(std::move(t.name), stored{&spec_of_id(*id), r, c, t.data, (*sums)[i]});
    }
    return cache;
  }

  /// Reads every byte. Fails (malformed), naming the matrix, where the panels are not those that were written.
  [[nodiscard]] status check() const {
    for (const auto& [name, m] : matrices_)
      if (detail::panel_checksum(m.panels) != m.checksum) return failure{errc::malformed, "'" + name + "': its panels are damaged, their checksum does not fit"};
    return done{};
  }

  /// Writes one; it appears when it is whole. Left out, to be built from the source each time, is what cannot be said in it: matrices with
  /// their columns in another order than the inputs, with a factor, or in a format that is not in the registry.
  static status write(const std::filesystem::path& path, const std::string& source, std::span<const entry> entries) {
    gguf_metadata m;
    std::vector<gguf_tensor> tensors;
    std::vector<std::string> formats;
    std::vector<std::uint64_t> rows, cols, sums;
    std::vector<const panel_matrix*> kept;
    for (const entry& e : entries) {
      const auto id = find_format(e.matrix->spec().name);
      if (!e.matrix->inputs().empty() || e.matrix->factor() != 1.0f || !id || &spec_of_id(*id) != &e.matrix->spec()) continue;
      kept.push_back(e.matrix);
      tensors.push_back({e.name, byte_type, {e.matrix->size_bytes()}, {}});
      formats.emplace_back(e.matrix->spec().name);
      rows.push_back(e.matrix->rows());
      cols.push_back(e.matrix->cols());
      sums.push_back(detail::panel_checksum({e.matrix->data(), e.matrix->size_bytes()}));
    }
    m.set("general.type", "lowbit.panels");
    m.set("general.alignment", std::uint32_t{4096});
    m.set("lowbit.layout", layout_version);
    m.set("lowbit.source", source);
    m.set("lowbit.formats", std::move(formats));
    m.set("lowbit.rows", std::move(rows));
    m.set("lowbit.cols", std::move(cols));
    m.set("lowbit.checksums", std::move(sums));
    auto writer = gguf_writer::create(path, m, tensors);
    if (!writer) return std::move(writer).error();
    for (const panel_matrix* matrix : kept)
      if (status s = writer->append({matrix->data(), matrix->size_bytes()}); !s) return s;
    return writer->commit();
  }

  /// The matrix of that name, format and shape as a view of the file; nothing where it is not there. (The unit has no default, which would
  /// compile every kernel wherever this file is included.)
  [[nodiscard]] std::optional<panel_matrix> find(std::string_view name, const format_spec& spec, std::size_t rows, std::size_t cols,
                                                 const kernel::unit& unit) const {
    const auto at = matrices_.find(name);
    if (at == matrices_.end() || at->second.spec != &spec || at->second.rows != rows || at->second.cols != cols) return std::nullopt;
    return panel_matrix::over(spec, rows, cols, at->second.panels, unit);
  }
  [[nodiscard]] std::size_t size() const noexcept { return matrices_.size(); }

 private:
  /// Of the run layout (kernel/panel.hpp) and of what this file says about it: counted up when either changes.
  static constexpr std::uint32_t layout_version = 2;
  static constexpr std::uint32_t byte_type = 24;  // GGUF's i8

  struct stored {
    const format_spec* spec;
    std::size_t rows, cols;
    std::span<const std::uint8_t> panels;
    std::uint64_t checksum;
  };
  panel_cache() = default;
  mapped_file file_;
  std::map<std::string, stored, std::less<>> matrices_;
};

}  // namespace lowbit
