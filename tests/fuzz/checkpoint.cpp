// find_weight and the readers of all checkpoint layouts: a quantization_config and, behind a byte of zero, a safetensors file. Whatever fits together is read
// within the bytes that are there.
#include "fuzz.hpp"

#include <lowbit/io/checkpoint.hpp>

#include <cmath>
#include <set>

void fuzz_one(std::span<const std::uint8_t> input) {
  using namespace lowbit;
  const auto [text, tensors] = fuzz::text_and_rest(input);
  const auto config = detail::parse_json<nlohmann::ordered_json>(text, "config");
  if (fuzz::refuses(config)) return;
  const auto settings = read_quantisation_config(*config);
  if (fuzz::refuses(settings)) return;
  const std::vector<std::uint8_t> file(tensors.begin(), tensors.end());  // as aligned as a mapped file's
  const auto content = read_safetensors(file);
  if (fuzz::refuses(content)) return;
  std::set<std::string> modules;
  for (const safetensor& t : content->tensors)
    for (std::size_t dot = t.name.find('.'); dot != std::string::npos; dot = t.name.find('.', dot + 1)) modules.insert(t.name.substr(0, dot));
  serial_executor serial;
  const auto find = [&](const std::string& name) { return content->find(name); };
  for (const std::string& module : modules) {
    const auto found = find_weight(find, module, *settings);
    if (!found) continue;
    if (fuzz::refuses(*found)) continue;
    const checkpoint_weight& w = **found;
    fuzz::require(w.spec != nullptr && w.rows != 0 && w.cols != 0 && std::isfinite(w.factor));
    fuzz::require(w.rows <= 8 * file.size() && w.cols <= 64 * file.size());
    const auto read = w.read(serial);
    if (fuzz::refuses(read)) continue;
    fuzz::require(read->rows() == w.rows && read->cols() == w.cols);
    std::vector<float> row(w.cols);
    for (std::size_t r = 0; r < w.rows; ++r) decode(read->view().middle_rows(r, 1), {row.data(), 1, w.cols});
  }
}
