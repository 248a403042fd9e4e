// A model as files hold it: configuration, tokeniser and tensors, whatever the kind of file. Tensors stay where they are mapped
// until somebody asks for one, so that a model larger than memory can be quantised. Its files must not be cut off meanwhile, which would end
// in SIGBUS (lowbit/io/mapped_file.hpp); what is written into them is noticed where it would be read out of bounds.
#pragma once

#include "../engine/config.hpp"
#include "../engine/thread_pool.hpp"
#include "../text/vocabulary.hpp"

#include <lowbit/core/error.hpp>
#include <lowbit/format/registry.hpp>
#include <lowbit/io/gguf_metadata.hpp>
#include <lowbit/io/mapped_file.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace llm {

/// Weights that a file maps, that memory owns, or that somebody else keeps.
class weights {
 public:
  weights() = default;
  explicit weights(lowbit::packed_view kept) : view_(kept) {}
  weights(lowbit::packed_view view, lowbit::mapped_file part) : mapped_(std::move(part)), view_(view) {}
  explicit weights(lowbit::packed_matrix owned) : owned_(std::move(owned)), view_(owned_.view()) {}
  [[nodiscard]] const lowbit::packed_view& view() const noexcept { return view_; }

 private:
  lowbit::packed_matrix owned_;  // the bytes of both stay where they are when they move, and with them the view
  lowbit::mapped_file mapped_;
  lowbit::packed_view view_;
};

/// One tensor, or some rows of one. A vector is a matrix of one row.
struct tensor {
  std::string name;                        ///< as GGUF names it
  bool is_vector = false;
  std::size_t rows = 0, cols = 0;
  const lowbit::format_spec* spec = nullptr;
  std::size_t bytes = 0;                   ///< in its file
  std::function<lowbit::result<weights>()> read;
  std::size_t first_row = 0;               ///< of these rows in the whole tensor
  std::function<lowbit::result<weights>(std::size_t first, std::size_t count)> read_rows{};  ///< a part of them; may be empty
  std::size_t together = 1;                ///< rows that are only read together: those of a head, which change places with the order of RoPE
  std::optional<lowbit::format_id> wanted{};  ///< the format that it is to get; nothing: that of the whole model
};

/// The tensor as runs of rows of at most `most` weights each (or as few more as go together), for who wants no more than that in memory;
/// itself where its rows cannot be read apart.
std::vector<tensor> runs_of(const tensor& t, std::size_t most = std::size_t{4} << 20);

struct checkpoint {
  std::string name;                        ///< the model's, for people
  std::string kind;                        ///< "GGUF", "safetensors" or "llama2.c"
  model_config config;
  vocabulary words;
  std::vector<tensor> tensors;             ///< in the file's order
  std::shared_ptr<const lowbit::gguf_metadata> metadata;  ///< as the file has it; null if it is not GGUF
  lowbit::gguf_metadata notes;                            ///< how it was quantised: for the metadata of files that are written
  std::string folder;                      ///< its Hugging Face folder, if it is one: for the files that are carried over
  std::vector<std::filesystem::path> files;  ///< what it is read from, and what goes with it: no output may take their place
  std::string layout;                      ///< how matrices are stored, if as a quantised checkpoint: "gptq", "awq", ...
  std::vector<std::string> warnings;       ///< one line each, about something odd that was dealt with

  [[nodiscard]] const tensor* find(std::string_view wanted) const noexcept {
    for (const tensor& t : tensors)
      if (t.name == wanted) return &t;
    return nullptr;
  }
};

/// Maps some of a tensor's bytes.
using mapper = std::function<lowbit::result<lowbit::mapped_file>(std::size_t first, std::size_t bytes)>;

/// A tensor that lies in a file as it is; `factor` multiplies its values.
tensor mapped_tensor(std::string name, bool is_vector, std::size_t rows, std::size_t cols, const lowbit::format_spec& spec, mapper map, double factor = 1.0);

/// Whether a file is GGUF, whatever it is called.
bool begins_as_gguf(const std::filesystem::path& path);

/// Opens a model: a GGUF file, a folder with config.json and safetensors or one such file of a folder, or llama2.c's .bin with its
/// tokenizer beside it or named by `tokeniser_path`.
lowbit::result<checkpoint> open_checkpoint(const std::string& path, const std::string& tokeniser_path = {});

/// The files that the model at this path is in, sorted: its folder's, the parts of a GGUF, or the one file.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& path);

/// A query or key matrix, or some of its heads, with its rows brought from the other order of RoPE to this one: row 2i + s of a head in pairs
/// is row s * head_dim / 2 + i in halves. Rows are whole blocks, so this holds in any format. Fails (shape) where rows are not whole heads of
/// an even size.
lowbit::result<lowbit::packed_matrix> reorder_rows(lowbit::packed_view w, std::size_t head_dim, rope_order to);

/// What is wrong with the tensor of that name.
inline lowbit::failure in_tensor(std::string_view name, const lowbit::failure& f) { return {f.kind, "tensor " + std::string{name} + ": " + f.message}; }

/// Fails, naming the tensor, where a weight, scale or minimum is not finite.
lowbit::status check_finite(std::string_view name, lowbit::packed_view w, thread_pool& threads);

}  // namespace llm
