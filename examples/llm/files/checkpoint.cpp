#include "load.hpp"
#include "names.hpp"

#include <lowbit/io/gguf_model.hpp>
#include <lowbit/matrix/non_finite.hpp>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>

namespace llm {

namespace fs = std::filesystem;

tensor mapped_tensor(std::string name, bool is_vector, std::size_t rows, std::size_t cols, const lowbit::format_spec& spec, mapper map, double factor) {
  tensor t{std::move(name), is_vector, rows, cols, &spec, rows * spec.row_bytes(cols), {}};
  t.read_rows = [map = std::move(map), &spec, cols, factor](std::size_t first, std::size_t count) -> lowbit::result<weights> {
    const std::size_t row = spec.row_bytes(cols);
    auto part = map(first * row, count * row);
    if (!part) return std::move(part).error();
    const lowbit::packed_view view{&spec, count, cols, part->bytes().data(), nullptr, factor};
    return weights{view, *std::move(part)};
  };
  t.read = [read_rows = t.read_rows, rows] { return read_rows(0, rows); };
  return t;
}

std::vector<tensor> runs_of(const tensor& t, std::size_t most) {
  const std::size_t step = t.cols == 0 ? t.rows : std::max<std::size_t>(1, most / t.cols / t.together) * t.together;
  if (!t.read_rows || t.rows <= step) return {t};
  std::vector<tensor> runs;
  for (std::size_t first = 0; first < t.rows; first += step) {
    tensor& run = runs.emplace_back(t);
    run.first_row = first;
    run.rows = std::min(step, t.rows - first);
    run.bytes = run.rows * t.spec->row_bytes(t.cols);
    run.read = [read = t.read_rows, first, count = run.rows] { return read(first, count); };
    run.read_rows = {};
  }
  return runs;
}

bool begins_as_gguf(const fs::path& path) {
  std::error_code ignored;
  char magic[4] = {};
  if (!fs::is_regular_file(path, ignored)) return false;
  std::ifstream{path, std::ios::binary}.read(magic, sizeof magic);
  return std::string_view{magic, sizeof magic} == "GGUF";
}

namespace {
fs::path folder_of(const fs::path& file) { return file.has_parent_path() ? file.parent_path() : "."; }

lowbit::result<checkpoint> open_any(const std::string& path, const std::string& tokeniser_path) {
  std::error_code ignored;
  const fs::path p{path};
  if (fs::is_directory(p, ignored)) return open_hf(path);
  if (begins_as_gguf(p)) return open_gguf(path);
  if (p.extension() == ".safetensors") return open_hf(folder_of(p).string(), path);
  if (p.extension() == ".bin") return open_llama2c(path, tokeniser_path);
  return open_gguf(path);
}
}  // namespace

lowbit::result<checkpoint> open_checkpoint(const std::string& path, const std::string& tokeniser_path) {
  auto c = open_any(path, tokeniser_path);
  if (!c) return c;
  if (const lowbit::status whole = complete(c->words); !whole) return lowbit::failure{whole.error().kind, path + ": " + whole.error().message};
  for (fs::path& file : files_of(path)) c->files.push_back(std::move(file));
  for (tensor& t : c->tensors)
    if (is_query(t.name) || is_key(t.name)) t.together = std::max<std::size_t>(1, c->config.head_dim);
  return c;
}

std::vector<fs::path> files_of(const fs::path& path) {
  std::error_code ignored;
  std::vector<fs::path> files;
  const bool is_folder = fs::is_directory(path, ignored);
  if (!is_folder) files.push_back(path);
  if (is_folder || path.extension() == ".safetensors") {
    for (const auto& entry : fs::directory_iterator(is_folder ? path : folder_of(path), ignored))
      if (entry.path().extension() == ".json" || (is_folder && entry.path().extension() == ".safetensors")) files.push_back(entry.path());
  } else {
    const std::string name = path.filename().string();  // ...-00001-of-00003.gguf has others beside it
    constexpr std::string_view first = "-00001-of-";
    std::uint16_t count = 0;
    if (const auto at = name.rfind(first); at != name.npos) std::from_chars(name.data() + at + first.size(), name.data() + name.size(), count);
    if (const auto prefix = lowbit::gguf_split_prefix(name, 0, count))
      for (std::size_t i = 1; i < count; ++i)
        if (fs::path part = path.parent_path() / lowbit::gguf_split_name(*prefix, i, count); fs::exists(part, ignored)) files.push_back(std::move(part));
  }
  std::sort(files.begin(), files.end());
  return files;
}

lowbit::result<lowbit::packed_matrix> reorder_rows(lowbit::packed_view w, std::size_t head_dim, rope_order to) {
  if (head_dim == 0 || head_dim % 2 != 0 || w.rows % head_dim != 0) return lowbit::failure{lowbit::errc::shape, "its rows are not whole heads"};
  lowbit::packed_matrix out{*w.spec, w.rows, w.cols};
  if (w.inputs != nullptr) out.set_inputs({w.inputs, w.inputs + w.cols});
  out.set_factor(w.factor);
  const std::size_t half = head_dim / 2;
  for (std::size_t r = 0; r < w.rows; ++r) {
    const std::size_t first = r / head_dim * head_dim, i = r % head_dim % half, s = r % head_dim / half;  // r is a row in halves
    const std::size_t paired = first + 2 * i + s;
    std::memcpy(out.row(to == rope_order::pairs ? paired : r), w.row(to == rope_order::pairs ? r : paired), w.row_bytes());
  }
  return out;
}

lowbit::status check_finite(std::string_view name, lowbit::packed_view w, thread_pool& threads) {
  if (const auto bad = lowbit::find_non_finite(w, threads)) return in_tensor(name, lowbit::non_finite(*bad));
  return lowbit::done{};
}

}  // namespace llm
