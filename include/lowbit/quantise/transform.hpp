// Transforms: changing the weights before they are quantised, in a way that is undone exactly elsewhere.
//
// A transform is a type with `needs`, the statistics it uses, and `apply(weights, stats) -> input_scales`: it may change the
// [out, in] weights, and answers by what each input channel must be divided so that the layer's output is as before (empty: nothing).
// The caller folds that into the producing norm or linear layer. Several are applied from left to right, their scales multiplied.
#pragma once

#include <lowbit/calibration/statistics.hpp>

#include <vector>

namespace lowbit {

/// Factors for input channels: the activations are to be divided by them. Empty: all 1.
using input_scales = std::vector<float>;

template <class T>
concept transform = requires { typename T::needs; };

}  // namespace lowbit
