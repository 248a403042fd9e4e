// The readers behind open_checkpoint, one for each kind of file.
#pragma once

#include "checkpoint.hpp"

namespace llm {

/// GGUF, architecture "llama" (gguf.cpp).
lowbit::result<checkpoint> open_gguf(const std::string& path);
/// A Hugging Face folder: config.json, tokenizer.json, and the tensors in model.safetensors or its shards, or in `weights` (hf.cpp).
lowbit::result<checkpoint> open_hf(const std::string& folder, const std::string& weights = {});
/// llama2.c's legacy .bin; an empty tokeniser_path looks beside the model (llama2c.cpp).
lowbit::result<checkpoint> open_llama2c(const std::string& path, const std::string& tokeniser_path);

}  // namespace llm
