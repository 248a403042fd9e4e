// The writers behind save_model, one for each kind of file.
#pragma once

#include "save.hpp"

#include <lowbit/io/checkpoint.hpp>

#include <filesystem>

namespace llm {

/// What a tensor will be: its format, shape, order of columns and factor, without data. A file is declared before weights are at hand.
using tensor_forms = std::function<lowbit::packed_view(const tensor&)>;

/// The forms that quantising to one format gives.
tensor_forms target_forms(lowbit::format_id format);

/// A tensor's weights as they are to be written. Fails, naming the place, where they are not finite any more: a format's scales or floats
/// may hold less than the source's.
lowbit::result<weights> weights_to_write(const tensor& t, const weight_source& source);

/// GGUF (gguf_save.cpp). `format` names what most matrices are. Factors of NVFP4 become tensors of their own, "blk.N.attn_q.scale".
/// `source` is asked for a tensor of the model, or for a run of its rows. With `part_bytes`, several files of at most so many bytes of
/// tensors each.
lowbit::result<std::size_t> save_gguf(const std::string& path, const checkpoint& model, const tensor_forms& forms, std::string_view format,
                                      const weight_source& source, const save_progress& progress, std::size_t part_bytes = 0);
/// Fails where what is to be written would be in a folder that is not there.
lowbit::status check_parent(const std::filesystem::path& path);
/// The folder that save_hf would write; fails where that exists already, is named like a GGUF file, or would be in a folder that is not there.
lowbit::result<std::filesystem::path> target_folder(const std::string& path);
/// A Hugging Face folder (hf_save.cpp): matrices in `layout`, or without one plain floats.
lowbit::result<std::size_t> save_hf(const std::string& folder, const checkpoint& model, const tensor_forms& forms,
                                    const std::optional<lowbit::checkpoint_layout>& layout, const weight_source& source, const save_progress& progress);

}  // namespace llm
