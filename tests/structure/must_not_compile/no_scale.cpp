// expect: a block of codes needs a scale
#include <lowbit/format/spec.hpp>

struct wrong {
  static constexpr lowbit::format_spec spec{.name = "wrong", .block = 4, .bytes = 2,
      .codes = {{lowbit::plane{4, 0, 0, {{4}, {4}}}}}};
};
auto& spec = lowbit::spec_of<wrong>;
