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

/// Takes some rows of a tensor, and their weights.
using run_writer = std::function<lowbit::status(const tensor& run, const lowbit::packed_view& w)>;
/// Gives a tensor's weights as they are to be written, a run of rows at a time, so that it may be larger than memory. Fails, naming the place,
/// where they are not finite any more: a format's scales or floats may hold less than the source's.
lowbit::status write_runs(const tensor& t, const weight_source& source, const run_writer& write);

/// GGUF (gguf_save.cpp). `format` names what most matrices are. Factors of NVFP4 become tensors of their own, "blk.N.attn_q.scale".
/// `source` is asked for a tensor of the model, or for a run of its rows. With `part_bytes`, several files of at most so many bytes of
/// tensors each.
lowbit::result<std::size_t> save_gguf(const std::string& path, const checkpoint& model, const tensor_forms& forms, std::string_view format,
                                      const weight_source& source, const save_progress& progress, std::size_t part_bytes = 0);
/// Fails where what is to be written would be in a folder that is not there.
lowbit::status check_parent(const std::filesystem::path& path);
/// The folder that save_hf would write; fails where that exists already, is named like a GGUF file, or would be in a folder that is not there.
lowbit::result<std::filesystem::path> target_folder(const std::string& path);
/// A Hugging Face folder (hf_save.cpp): matrices in `layout`, or without one plain floats. Files have at most `part_bytes` of weights (0: 4 GiB),
/// but for one weight that has more.
lowbit::result<std::size_t> save_hf(const std::string& folder, const checkpoint& model, const tensor_forms& forms,
                                    const std::optional<lowbit::checkpoint_layout>& layout, const weight_source& source, const save_progress& progress, std::size_t part_bytes = 0);

}  // namespace llm
