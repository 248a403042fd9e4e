// expect: two fields of this format claim the same bit
#include <lowbit/format/spec.hpp>

struct wrong {
  static constexpr lowbit::format_spec spec{.name = "wrong", .block = 4, .bytes = 4,
      .codes = {{lowbit::plane{4, 0, lowbit::byte(1), {{4}, {4}}}}}, .scale = {lowbit::number::f16, 0}, .unused_bits = 8};
};
auto& spec = lowbit::spec_of<wrong>;
