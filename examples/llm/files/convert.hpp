// From one kind of file to another without quantising anew, wherever the codes can be kept.
//
// Every tensor gets a verdict before anything is written. Rows move freely (the order of RoPE; gate and up for a down projection whose
// inputs are out of order), codes may become wider, scales may be repeated; what the target has no exact form of is quantised anew and its
// error measured.
#pragma once

#include "save_formats.hpp"

namespace llm {

enum class fidelity : unsigned char {
  exact,        ///< the codes are kept, or the floats
  permuted,     ///< the same after rows were put in another order
  wider,        ///< the same values in a wider type
  requantised   ///< other values
};
std::string_view name_of(fidelity f) noexcept;

/// What becomes of a tensor.
struct verdict {
  std::string tensor, from, to;      ///< its GGUF name; the formats
  fidelity kind = fidelity::exact;
  bool codes_kept = true;            ///< although scales may have been rounded
  bool rows_moved = false;           ///< rows, or the inputs that they are for, were put in another order
  double error = 0.0;                ///< |new - old| / |old|, over the whole tensor
};

struct conversion {
  std::string target;                            ///< "gguf", "hf" (plain floats), or a checkpoint layout's name
  std::optional<lowbit::format_id> format;       ///< for matrices that are quantised (anew); nothing: one like the source's
};

/// Whether there is such a target, and whether it holds the format. Fails (unsupported) where not.
lowbit::status check(const conversion& how);

/// How each tensor of a model is to be converted.
class conversion_plan {
 public:
  /// Looks at all tensors, one at a time, and decides. Brings the model's order of RoPE to the target's. Fails where a tensor cannot be read,
  /// or as check() does.
  static lowbit::result<conversion_plan> make(checkpoint& model, const conversion& how, thread_pool& threads);

  [[nodiscard]] const std::vector<verdict>& verdicts() const noexcept { return verdicts_; }
  /// The first tensor that is not carried over exactly, or null.
  [[nodiscard]] const verdict* inexact() const noexcept;
  /// Writes the file or folder, in parts as save_model does; returns its bytes. `model` as make() left it.
  lowbit::result<std::size_t> save(const std::string& path, const checkpoint& model, thread_pool& threads, const save_progress& progress, std::size_t part_bytes = 0) const;

 private:
  struct step {
    const lowbit::format_spec* to = nullptr;
    bool requantise = false, rounded = false;
    bool reorder = false;                        // rows, for RoPE
    std::vector<std::uint32_t> rows;             // take rows in this order
    bool forget_inputs = false;                  // the producers' rows are in the stored order already
    std::vector<std::uint32_t> inputs;           // of the result, as a declaration needs them
    double factor = 1.0;
  };
  class decision;
  lowbit::result<weights> source_of(const tensor& t, const step& s) const;
  lowbit::result<weights> apply(const tensor& t, const step& s, thread_pool& threads) const;
  std::vector<const lowbit::format_spec*> candidates(const lowbit::packed_view& w) const;
  const lowbit::format_spec* fallback(const tensor& t, const lowbit::packed_view& w, const conversion& how) const;

  std::optional<lowbit::checkpoint_layout> layout_;   // nothing: GGUF or plain floats
  const lowbit::checkpoint_family* scaled_source_ = nullptr;  // the source's, if it stores products of scales and zero-points
  bool gguf_ = false;
  std::size_t group_ = 0;                             // of matrices that are quantised anew by groups: one that divides all
  std::size_t head_dim_ = 0;
  rope_order order_ = rope_order::pairs;
  std::vector<step> steps_;                           // of the model's tensors, in their order
  std::vector<verdict> verdicts_;
};

}  // namespace llm
