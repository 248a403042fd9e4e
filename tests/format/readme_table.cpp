// The README's table of formats is what the specs say.
#include <lowbit/format/registry.hpp>
#include <lowbit/kernel/panel.hpp>

#include <doctest/doctest.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

using namespace lowbit;

namespace {
std::string row_of(const format_spec& stored) {
  const format_spec& s = stored.planes();
  const auto layout = kernel::layout_of(s);
  std::string levels = s.is_float()            ? "float"
                       : s.values.present() ? "table of " + std::to_string(s.values.size)
                                            : std::to_string(s.codes.bits()) + "-bit codes";
  if (stored.is_recoded()) levels += stored.is_writable() ? ", in base 3" : ", points of a lattice";
  std::string scales = s.is_float()                      ? "none"
                       : s.sub_number != number::none ? "per " + std::to_string(s.sub)
                       : s.sub != 0                   ? "two levels, per " + std::to_string(s.sub) + " and " + std::to_string(s.block)
                                                      : "per " + std::to_string(s.block);
  if (s.minimum.present()) scales += ", minimum";
  if (s.zero_point.present()) scales += ", zero-point";
  char bits[32], panel[32];
  std::snprintf(bits, sizeof bits, "%.4g", stored.bits_per_weight());
  std::snprintf(panel, sizeof panel, "%.4g", static_cast<double>(layout.panel_bytes(4096)) * 8 / (16 * 4096));
  const std::string products = layout.shape.has_int16() ? "int8, int16, exact" : layout.shape.has_int8() ? "int8, exact" : layout.shape.has_bf16() ? "bf16, exact" : "exact";
  return "| " + std::string(stored.name) + " | " + levels + " | " + scales + " | " + bits + " | " + panel + " | " + products + " |";
}
}  // namespace

TEST_CASE("the README has the row of every format") {
  std::ifstream in(LOWBIT_SOURCE_DIR "/README.md");
  const std::string readme(std::istreambuf_iterator<char>(in), {});
  for (const format_spec* s : readable_formats::specs) {
    const bool uniform = s->name.find('_') == 2 && (s->name[0] == 's' || s->name[0] == 'u');
    if (uniform && s->block != 128) continue;  // one group stands for the others
    CHECK_MESSAGE(readme.find(row_of(*s)) != std::string::npos, row_of(*s));
  }
}
