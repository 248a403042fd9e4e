// Everything but three: io, which brings nlohmann-json; adapt/closest_low_rank.hpp, which brings Eigen's decompositions; and the glue for
// Eigen's tensors, an unsupported module of it. Lean users include the folders they need: core, format and matrix cost little; quantise and calibration
// bring Eigen's core.
#pragma once

#include <lowbit/adapt/adapted_product.hpp>
#include <lowbit/adapt/adapter.hpp>
#include <lowbit/adapt/fake_quantise.hpp>
#include <lowbit/adapt/fake_quantise_activations.hpp>
#include <lowbit/adapt/merge.hpp>
#include <lowbit/adapt/merge_offsets.hpp>
#include <lowbit/adapt/outlier_panels.hpp>
#include <lowbit/calibration/saved.hpp>
#include <lowbit/calibration/statistics.hpp>
#include <lowbit/core/aligned_buffer.hpp>
#include <lowbit/core/bits.hpp>
#include <lowbit/core/config.hpp>
#include <lowbit/core/error.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/core/float16.hpp>
#include <lowbit/core/matrix_view.hpp>
#include <lowbit/format/codec.hpp>
#include <lowbit/format/registry.hpp>
#include <lowbit/glue/eigen.hpp>
#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/epilogue.hpp>
#include <lowbit/matrix/low_rank.hpp>
#include <lowbit/matrix/packed_matrix.hpp>
#include <lowbit/matrix/panel_matrix.hpp>
#include <lowbit/matrix/product.hpp>
#include <lowbit/matrix/transposed_product.hpp>
#include <lowbit/quantise/activation_aware.hpp>
#include <lowbit/quantise/allocate.hpp>
#include <lowbit/quantise/allocate_mix.hpp>
#include <lowbit/quantise/by_id.hpp>
#include <lowbit/quantise/clip.hpp>
#include <lowbit/quantise/growing.hpp>
#include <lowbit/quantise/half_quadratic.hpp>
#include <lowbit/quantise/importance.hpp>
#include <lowbit/quantise/quantiser.hpp>
#include <lowbit/quantise/rotation.hpp>
#include <lowbit/quantise/smooth.hpp>
