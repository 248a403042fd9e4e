// The writers behind save_model, one for each kind of file.
#pragma once

#include "save.hpp"

namespace llm {

/// GGUF (gguf_save.cpp).
lowbit::result<std::size_t> save_gguf(const std::string& path, const checkpoint& model, lowbit::format_id format,
                                      const weight_source& source, const save_progress& progress, std::size_t part_bytes);
/// A Hugging Face folder in bitsandbytes' or compressed-tensors' layout (hf_save.cpp).
lowbit::result<std::size_t> save_hf(const std::string& folder, const checkpoint& model, lowbit::format_id format,
                                    const weight_source& source, const save_progress& progress);

}  // namespace llm
