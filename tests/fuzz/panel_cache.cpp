// panel_cache: whatever it opens are matrices whose panels lie in the file whole.
#include "fuzz.hpp"

#include <lowbit/io/panel_cache.hpp>

#include <tuple>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const fuzz::memory_file file(input);
  const auto cache = panel_cache::open(file.path(), "source");
  if (fuzz::refuses(cache)) return;
  (void)fuzz::refuses(cache->check());
  for (const auto& [spec, rows, cols] : {std::tuple{&spec_of<q4_0>, 16, 32}, {&spec_of<q4_0>, 3, 1}, {&spec_of<f32>, 16, 5}, {&spec_of<q4_k>, 1, 256}}) {
    const auto m = cache->find("w", *spec, static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), kernel::best_unit());
    if (!m) continue;
    fuzz::touch({m->data(), m->size_bytes()});
    std::vector<float> row(m->cols());
    for (std::size_t r = 0; r < m->rows(); ++r) read_row(*m, r, row.data());
  }
}
