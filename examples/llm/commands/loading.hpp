// What several subcommands do first: open a model, build it, read a text.
#pragma once

#include "../engine/evaluate.hpp"
#include "../files/build.hpp"
#include "../text/tokeniser.hpp"
#include "commands.hpp"

#include <memory>

namespace llm {

/// A model that can be run. Movable: the parts that refer to each other are on the heap.
struct loaded_model {
  checkpoint file;
  tokeniser words;
  std::unique_ptr<lowbit::panel_cache> panels;  // which the model's matrices may be views of
  std::unique_ptr<llama> model;
};

/// One line on standard error where a file has something odd in it.
void warn(const checkpoint& file);

/// Opens and builds; `source` decides what the weights become.
lowbit::result<loaded_model> load_model(const std::string& path, const common_options& common, thread_pool& threads,
                                        const weight_source& source);
/// The weights as stored. With `common.cache`, panels come from MODEL.panels (in a folder: model.panels) where that was made from these
/// files as they are now; otherwise they are built and written there, in the place of
/// nothing but an older cache. That nothing can be written is said, and no failure.
lowbit::result<loaded_model> load_model(const std::string& path, const common_options& common, thread_pool& threads);

/// The weights quantised as they are loaded, tensor by tensor: no second file, no second copy. Fails for an unknown format.
lowbit::result<weight_source> quantised_source(const std::string& format, thread_pool& threads);

/// Adds --activations.
void add_activations(CLI::App& command, lowbit::precision& how);
/// The format that --kv-format names; float32 for an empty name. Fails for an unknown format, and for one that a cache cannot hold.
lowbit::result<const lowbit::format_spec*> kv_format_named(const std::string& name);
/// What --adapter says of itself.
inline constexpr const char* adapter_help = "An adapter to run beside the weights: a folder of PEFT's, or a GGUF adapter; several add up";
/// Opens adapters and puts them beside the weights of the model from `path`. Without one, says so where the model has outliers beside it.
lowbit::status attach_adapters(loaded_model& model, const std::string& path, const std::vector<std::string>& adapters, thread_pool& threads);

/// A text file, checked to be UTF-8.
lowbit::result<std::string> read_text(const std::string& path);

/// Tokens in a sequence: what was asked for, or else `otherwise`; never more than the model was trained for.
std::size_t sequence_length(std::size_t asked, std::size_t otherwise, const model_config& c);

/// The text's windows: of `context` tokens, `limit` predicted tokens in all (0: the whole text). Fails where nothing is left to predict.
lowbit::result<windows> windows_of_text(const std::string& path, const tokeniser& words, std::size_t context, std::size_t limit);

}  // namespace llm
