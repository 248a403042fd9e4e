// An adapter of a model: factors of low rank for some of its weights, as files hold them.
#pragma once

#include <lowbit/matrix/low_rank.hpp>

#include <map>
#include <string>

namespace lowbit {

/// What a file holds. Whether it fits a model is for the engine to say, which knows the model's names and shapes.
struct adapter {
  /// By the weight's name, as the file's kind names it: "model.layers.0.self_attn.q_proj.weight" (PEFT) or "blk.0.attn_q.weight" (GGUF). Ranks
  /// and scales may differ.
  std::map<std::string, low_rank_factors, std::less<>> weights;
  /// The base that a weight's factors were made for, where the file says so: its format's name, or that and the SHA-256 of its bytes
  /// ("q4_0 5f70bf18…"). A correction of what quantising lost is worth nothing beside other codes.
  std::map<std::string, std::string, std::less<>> bases;
  /// GGUF's general.architecture; empty where the file does not say.
  std::string architecture;
};

}  // namespace lowbit
