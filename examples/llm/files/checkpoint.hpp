// A model as files hold it: configuration, tokeniser and tensors, whatever the kind of file. Tensors stay where they are mapped
// until somebody asks for one, so that a model larger than memory can be quantised.
#pragma once

#include "../engine/config.hpp"
#include "../text/vocabulary.hpp"

#include <lowbit/core/error.hpp>
#include <lowbit/matrix/packed_matrix.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace llm {

/// Weights that a file maps, or that memory owns.
class weights {
 public:
  weights() = default;
  explicit weights(lowbit::packed_view mapped) : view_(mapped) {}
  explicit weights(lowbit::packed_matrix owned) : owned_(std::move(owned)), view_(owned_.view()) {}
  [[nodiscard]] const lowbit::packed_view& view() const noexcept { return view_; }

 private:
  lowbit::packed_matrix owned_;  // its bytes stay where they are when it moves, and with them the view
  lowbit::packed_view view_;
};

/// One tensor. A vector is a matrix of one row.
struct tensor {
  std::string name;                        ///< as GGUF names it
  bool is_vector = false;
  std::size_t rows = 0, cols = 0;
  const lowbit::format_spec* spec = nullptr;
  std::size_t bytes = 0;                   ///< in its file
  std::function<lowbit::result<weights>()> read;
};

struct checkpoint {
  std::string name;                        ///< the model's, for people
  std::string kind;                        ///< "GGUF", "safetensors" or "llama2.c"
  model_config config;
  vocabulary words;
  std::vector<tensor> tensors;             ///< in the file's order
  std::shared_ptr<const void> files;       ///< what the tensors read from

  [[nodiscard]] const tensor* find(std::string_view wanted) const noexcept {
    for (const tensor& t : tensors)
      if (t.name == wanted) return &t;
    return nullptr;
  }
};

/// Opens a model: a .gguf file, a folder with config.json and safetensors, or llama2.c's .bin with its tokenizer beside it or
/// named by `tokeniser_path`.
lowbit::result<checkpoint> open_checkpoint(const std::string& path, const std::string& tokeniser_path = {});

/// The rows of a query or key matrix of `heads` heads, brought from HF's order (halves) to GGUF's (pairs): new row 2i + s of a
/// head is old row s * head_dim / 2 + i. Rows are whole blocks, so this holds in any format.
lowbit::packed_matrix interleave_rows(lowbit::packed_view w, std::size_t heads);

/// Fails, naming the tensor, where a weight, scale or minimum is not finite.
lowbit::status check_finite(std::string_view name, lowbit::packed_view w);

}  // namespace llm
