// expect: this quantiser needs calibration statistics that were not given
#include <lowbit/format/gguf.hpp>
#include <lowbit/quantise/quantiser.hpp>

auto wrong(lowbit::matrix_view<const float> w, const lowbit::calibrated<lowbit::channel_importance>& no_hessian) {
  return lowbit::gptq<lowbit::q4_k>::quantise(w, no_hessian);
}
