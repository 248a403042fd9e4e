// expect: this quantiser needs calibration statistics that were not given
#include <lowbit/format/gguf.hpp>
#include <lowbit/quantise/quantiser.hpp>

struct hungry_transform {
  using needs = lowbit::needs_statistics<lowbit::channel_magnitude>;
  template <class Stats>
  static lowbit::input_scales apply(lowbit::matrix_view<float>, const Stats&) { return {}; }
};
using composed = lowbit::quantiser<lowbit::q4_0, lowbit::minmax, lowbit::round_nearest, hungry_transform>;
auto wrong(lowbit::matrix_view<const float> w) { return composed::quantise(w); }
