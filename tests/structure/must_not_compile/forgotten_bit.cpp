// expect: leaves bits that no field claims
#include <lowbit/format/spec.hpp>

struct wrong {
  static constexpr lowbit::format_spec spec{.name = "wrong", .block = 4, .bytes = 5,
      .codes = {{lowbit::plane{4, 0, lowbit::byte(2), {{4}, {4}}}}}, .scale = {lowbit::number::f16, 0}};
};
auto& spec = lowbit::spec_of<wrong>;
