// expect: this quantiser needs calibration statistics that were not given
#include <lowbit/quantise/activation_aware.hpp>
#include <lowbit/quantise/quantiser.hpp>

using composed = lowbit::quantiser<lowbit::q4_0, lowbit::mse_search<20>, lowbit::round_nearest, lowbit::activation_aware_scaling>;
auto wrong(lowbit::matrix_view<const float> w) { return composed::quantise(w, lowbit::calibrated<lowbit::channel_magnitude>(w.cols)); }
