// What becomes of each tensor of a model when it is brought to another format.
//
// Vectors stay float32. Matrices get the format that was asked for; where it is a GGUF type whose blocks do not divide the rows, they
// fall back as llama.cpp does (llama-quant.cpp). For formats that GGUF has not, the embedding and the output matrix stay floats, as in
// bitsandbytes' and compressed-tensors' checkpoints.
#pragma once

#include "build.hpp"

#include <lowbit/io/imatrix.hpp>
#include <lowbit/quantise/by_id.hpp>

namespace llm {

struct requantisation {
  lowbit::format_id format;
  lowbit::method method = lowbit::method::rtn;
  std::optional<rope_order> reorder{};  ///< bring query and key rows to this order; nothing: leave them
  std::size_t head_dim = 0;
};

/// A format that was named on the command line, or a failure that lists the names.
lowbit::result<lowbit::format_id> format_named(const std::string& name);

/// Whether GGUF can hold the format.
inline bool in_gguf(lowbit::format_id id) noexcept { return lowbit::spec_of_id(id).gguf >= 0; }

/// The format that a tensor gets.
lowbit::format_id target_format(const tensor& t, lowbit::format_id wanted);

/// The tensor's weights as aligned float32, with its rows in the order that `how` asks for. Fails where one is not finite, naming the tensor.
lowbit::result<weights> read_floats(const tensor& t, const requantisation& how, thread_pool& threads);

/// The tensor's weights, with its rows in order, where they have their target format already; nothing where they have another.
lowbit::result<std::optional<weights>> kept_as_stored(const tensor& t, const requantisation& how, thread_pool& threads);

/// The tensor's new weights. A tensor that has its target format already is not touched. Fails on NaN, naming the tensor.
/// `importance`: of a file of llama.cpp's; a matrix that it names is quantised by it, and must have as many input channels.
lowbit::result<weights> requantise(const tensor& t, const requantisation& how, thread_pool& threads, const lowbit::imatrix* importance = nullptr);

}  // namespace llm
