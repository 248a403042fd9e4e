// Writing a model in another format, a run of rows at a time where the source can be read so (all but quantised checkpoints): no more of it is
// in memory, and of checkpoints, whose layouts take weights apart, one quantised matrix. The file only appears when it is whole.
#pragma once

#include "requantise.hpp"

namespace llm {

/// Called after each run of rows with how many bytes of the source are done, and of how many.
using save_progress = std::function<void(std::size_t done, std::size_t total)>;

/// What save_model would write the format as.
enum class container : unsigned char { none, gguf, bitsandbytes, compressed_tensors };
/// Of this model: a layout may not hold rows of every length.
container container_of(const checkpoint& model, lowbit::format_id format);
/// "gguf", "bitsandbytes", "compressed-tensors", or "" for none.
std::string_view name_of(container c) noexcept;

/// Fails where the file to be written is one that the model is read from, by whatever name.
lowbit::status check_output(const std::filesystem::path& path, const checkpoint& model);

/// Whether that is a GGUF file or a folder that can be written, as far as its place says.
lowbit::status check_destination(const std::string& path, const checkpoint& model, bool is_gguf, std::size_t part_bytes = 0);

/// Whether save_model can write that, to be asked before the work is done: there is a container, and if it is a folder, none of this name,
/// or if it is one file, not one of the model's own.
lowbit::status check_target(const std::string& path, const checkpoint& model, lowbit::format_id format, std::size_t part_bytes = 0);

/// How to requantise this model for save_model: with the row order of the container. Tells `model` about it, so that it runs as well.
requantisation plan_for(checkpoint& model, lowbit::format_id format, lowbit::method method);

/// Writes a .gguf file for formats that GGUF has, or else a Hugging Face folder; fails where there is no container. `source` gives the
/// weights as plan_for says: from requantise() as they are needed, or from memory. With `part_bytes`, there are several files of at most so
/// many bytes of tensors each, but for one that has more, for GGUF path-00001-of-….gguf. Returns the bytes written.
lowbit::result<std::size_t> save_model(const std::string& path, const checkpoint& model, lowbit::format_id format,
                                       const weight_source& source, const save_progress& progress = {}, std::size_t part_bytes = 0);

}  // namespace llm
