// What ggml_bytes.py compares with ggml: rows quantised to every GGUF type by the library, as files of bytes.
//
// ggml_bytes WEIGHTS ROWS COLS IMPORTANCE FOLDER: float32 files in, FOLDER/TYPE (without importance) and FOLDER/TYPE.weighted out. Prints the
// name of the unit that the kernels came from. Without arguments: the names of all units that this machine can run.
#include <lowbit/quantise/by_id.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace {

std::vector<float> floats_in(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(in), {});
  std::vector<float> all(bytes.size() / sizeof(float));
  std::memcpy(all.data(), bytes.data(), all.size() * sizeof(float));
  return all;
}

bool write(const std::string& path, const lowbit::result<lowbit::quantised>& q) {
  if (!q) return false;
  const auto bytes = q->weights.bytes();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return out.good();
}

}  // namespace

int main(int argc, char** argv) {
  using namespace lowbit;
  if (argc == 1) {
    for (const kernel::linked_unit& u : kernel::linked_units())
      if (u.available) std::puts(u.kernels->name);
    return 0;
  }
  if (argc != 6) return 2;
  const std::vector<float> weights = floats_in(argv[1]), importance = floats_in(argv[4]);
  const std::size_t rows = std::strtoull(argv[2], nullptr, 10), cols = std::strtoull(argv[3], nullptr, 10);
  if (rows == 0 || weights.size() != rows * cols || importance.size() != cols) return 2;
  const matrix_view<const float> w(weights.data(), rows, cols);
  serial_executor serial;
  for (const format_spec* s : readable_formats::specs) {
    if (s->gguf < 0 || !s->is_writable() || s->is_float()) continue;
    const std::string path = argv[5] + ("/" + std::string(s->name));
    if (!write(path, detail::quantise_by<standard, round_nearest>(*s, w, uncalibrated(), serial)) ||
        !write(path + ".weighted", detail::quantise_by<importance_weighted, round_nearest>(*s, w, given_importance(importance), serial)))
      return 1;
  }
  std::puts(kernel::best_unit().name);
}
