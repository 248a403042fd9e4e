// Adapters for models: from PEFT's folders and llama.cpp's files, checked against a model, run beside its weights or merged into them.
#pragma once

#include "../engine/llama.hpp"
#include "checkpoint.hpp"

#include <lowbit/adapt/adapter.hpp>

namespace llm {

/// Opens adapters of a model (PEFT's folders, or GGUF files) and adds them up. Weights get GGUF's names and the model's order of rows. Fails,
/// naming file and tensor, where one is damaged, is for a matrix that the model has not or of another shape, or for a base in another format.
lowbit::result<lowbit::adapter> open_adapters(const std::vector<std::string>& paths, const checkpoint& model);

/// The adapter's rows brought to the other order of RoPE, as reorder_rows does for weights.
lowbit::adapter reordered(lowbit::adapter a, const model_config& c, rope_order to);

/// Puts an adapter beside the weights of the model that it was opened for. Factors whose A only chooses inputs run as columns in float32, what
/// the weights have there included: 8-bit activations beside them do not span these inputs (LLM.int8).
void attach(llama& model, const lowbit::adapter& a, thread_pool& threads);

/// Whether merging keeps a tensor's codes: its format has offsets, and the factors are the same over each of its blocks (QA-LoRA).
bool merges_into_offsets(const tensor& t, const lowbit::low_rank_factors& f);

/// The model with an adapter merged in. Tensors are merged when they are read: to floats, or where merges_into_offsets in their format.
/// `threads` must outlive it.
checkpoint merged(checkpoint model, std::shared_ptr<const lowbit::adapter> a, thread_pool& threads);

/// What an adapter's file says of the base that a weight belongs to: the format, and the SHA-256 of its bytes.
std::string base_of(const lowbit::packed_view& w);

/// Where a model's outliers are: OUT.gguf has OUT.outliers, to which save_adapter adds .gguf; a folder OUT has OUT.outliers.
std::string outliers_beside(const std::string& model);

/// Writes one with GGUF's names and the model's order of rows: as GGUF where that is pairs, or else as a PEFT folder. Returns its path, which
/// begins with `path`.
lowbit::result<std::string> save_adapter(const std::string& path, lowbit::adapter a, const checkpoint& model);

}  // namespace llm
