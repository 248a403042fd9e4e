// expect: does not count as many elements
#include <lowbit/format/spec.hpp>

struct wrong {
  static constexpr lowbit::format_spec spec{.name = "wrong", .block = 4, .bytes = 3,
      .codes = {{lowbit::plane{4, 0, lowbit::byte(2), {{2}, {4}}}}}, .scale = {lowbit::number::f16, 0}, .unused_bits = 0};
};
auto& spec = lowbit::spec_of<wrong>;
