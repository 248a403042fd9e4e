#include "checkpoint.hpp"

#include <cmath>
#include <cstring>

namespace llm {

lowbit::packed_matrix interleave_rows(lowbit::packed_view w, std::size_t heads) {
  LOWBIT_EXPECTS(heads != 0 && w.rows % (2 * heads) == 0);
  lowbit::packed_matrix out{*w.spec, w.rows, w.cols};
  const std::size_t size = w.rows / heads, half = size / 2;
  for (std::size_t r = 0; r < w.rows; ++r) {
    const std::size_t head = r / size, i = r % size % half, s = r % size / half;
    std::memcpy(out.row(head * size + 2 * i + s), w.row(r), w.row_bytes());
  }
  return out;
}

lowbit::status check_finite(std::string_view name, lowbit::packed_view w) {
  const lowbit::format_spec& s = *w.spec;
  const std::size_t blocks = s.row_blocks(w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) {
    const std::uint8_t* block = w.row(r);
    for (std::size_t b = 0; b < blocks; ++b, block += s.bytes) {
      const float a = s.is_float() ? lowbit::read_scalar({s.element, 0}, block) : lowbit::read_scalar(s.scale, block);
      const float m = s.minimum.present() ? lowbit::read_scalar(s.minimum, block) : 0.0f;
      if (!std::isfinite(a) || !std::isfinite(m))
        return lowbit::failure{lowbit::errc::bad_value, "tensor " + std::string{name} + " has a weight that is not finite, near row " +
                                                            std::to_string(r) + ", column " + std::to_string(b * s.block)};
    }
  }
  return lowbit::done{};
}

}  // namespace llm
