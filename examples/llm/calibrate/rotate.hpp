// A model with its residual stream rotated (QuaRot: Ashkboos et al. 2024; SpinQuant's R1 and R2: Liu et al. 2024): the same function and
// still a plain Llama, but with weights in which no channel stands out.
//
// Norms' gains move into the matrices behind them, since only a norm without gain commutes with a rotation; then the embedding, the
// matrices that read the stream and those that write to it are rotated, and within each head the values and what reads them. A tied
// embedding becomes two matrices, because the last norm's gain belongs to the output matrix alone.
#pragma once

#include "../files/checkpoint.hpp"

namespace llm {

/// The rotated model. Tensors are rotated when they are read, from those of `model`, which is taken over. `threads` must outlive it.
/// Expects a model that check_model accepts.
checkpoint rotated(checkpoint model, std::uint64_t seed, thread_pool& threads);

}  // namespace llm
