#include "step_store.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/io/byte_reader.hpp>
#include <lowbit/io/file_writer.hpp>

#include <cstring>
#include <unistd.h>

namespace llm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view magic = "lowbit step 001\n";

template <class T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put(std::string& bytes, std::string_view text) {
  put(bytes, static_cast<std::uint64_t>(text.size()));
  bytes.append(text);
}

}  // namespace

weights stored_floats(const float* values, std::size_t rows, std::size_t cols) {
  lowbit::packed_matrix out{lowbit::spec_of<lowbit::f32>, rows, cols};
  if (rows * cols != 0) std::memcpy(out.bytes().data(), values, rows * cols * sizeof(float));
  return weights{std::move(out)};
}

fs::path step_store::file_of(std::size_t step) const { return folder_ / ("step-" + std::to_string(step)); }

lowbit::result<step_store> step_store::in_folder(const fs::path& folder, std::uint64_t hash, bool resume) {
  step_store s;
  s.folder_ = folder;
  s.hash_ = hash;
  std::error_code error;
  for (std::size_t i = 0; !resume && fs::remove(s.file_of(i), error); ++i) {
  }
  const fs::path parent = folder.has_parent_path() ? folder.parent_path() : fs::path{"."};
  if (::access(parent.c_str(), W_OK) != 0)
    return lowbit::failure{lowbit::errc::io, "cannot make the work folder " + folder.string() + ": " + std::strerror(errno)};
  while (fs::exists(s.file_of(s.finished_), error))
    if (lowbit::status read = s.read_step(s.finished_); !read) return std::move(read).error();
  return s;
}

lowbit::status step_store::read_step(std::size_t step) {
  const fs::path path = file_of(step);
  auto file = lowbit::mapped_file::open(path);
  if (!file) return std::move(file).error();
  const auto damaged = [&] { return lowbit::failure{lowbit::errc::malformed, path.string() + ": damaged; without --resume the work starts again"}; };
  lowbit::byte_reader in{file->bytes()};
  const auto start = in.take(magic.size());
  if (!in.ok() || std::memcmp(start.data(), magic.data(), magic.size()) != 0) return damaged();
  if (in.read<std::uint64_t>() != hash_)
    return lowbit::failure{lowbit::errc::bad_value, path.string() + ": belongs to another model, text or options; without --resume the work starts again"};
  const auto count = in.read<std::uint64_t>();
  for (std::uint64_t i = 0; i < count && in.ok(); ++i) {
    const std::string name{in.read_string()};
    const auto format = lowbit::find_format(in.read_string());
    const auto rows = in.read<std::uint64_t>(), cols = in.read<std::uint64_t>();
    if (!in.ok() || !format || rows > in.left() || cols > in.left() * 8) return damaged();
    const lowbit::format_spec& spec = lowbit::spec_of_id(*format);
    const std::size_t row_bytes = spec.row_bytes(cols);
    if (row_bytes != 0 && rows > in.left() / row_bytes) return damaged();
    in.take((64 - in.position() % 64) % 64);
    const auto bytes = in.take(rows * row_bytes);
    if (!in.ok()) return damaged();
    tensors_.insert_or_assign(name, weights{lowbit::packed_view{&spec, rows, cols, bytes.data()}});
  }
  if (!in.ok() || in.left() != 0) return damaged();
  files_.push_back(*std::move(file));
  ++finished_;
  return lowbit::done{};
}

lowbit::status step_store::keep(named_weights step) {
  if (folder_.empty()) {
    step.merge(tensors_);
    tensors_ = std::move(step);
    ++finished_;
    return lowbit::done{};
  }
  std::error_code ignored;
  fs::create_directory(folder_, ignored);  // what is wrong with it, the writer says
  auto file = lowbit::file_writer::create(file_of(finished_));
  if (!file) return std::move(file).error();
  std::string header{magic};
  put(header, hash_);
  put(header, static_cast<std::uint64_t>(step.size()));
  for (const auto& [name, w] : step) {
    put(header, std::string_view{name});
    put(header, w.view().spec->name);
    put(header, static_cast<std::uint64_t>(w.view().rows));
    put(header, static_cast<std::uint64_t>(w.view().cols));
    if (auto s = file->append(std::string_view{std::exchange(header, {})}); !s) return s;
    if (auto s = file->pad_to(64); !s) return s;
    if (auto s = file->append({w.view().data, w.view().size_bytes()}); !s) return s;
  }
  if (auto s = file->append(std::string_view{header}); !s) return s;
  if (auto s = file->commit(); !s) return s;
  return read_step(finished_);
}

const weights* step_store::find(std::string_view tensor) const {
  const auto found = tensors_.find(tensor);
  return found == tensors_.end() ? nullptr : &found->second;
}

void step_store::remove() {
  std::error_code ignored;
  tensors_.clear();
  files_.clear();
  for (; finished_ != 0; --finished_)
    if (!folder_.empty()) fs::remove(file_of(finished_ - 1), ignored);
  if (!folder_.empty()) fs::remove(folder_, ignored);
}

}  // namespace llm
