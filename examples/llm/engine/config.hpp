// The numbers that make a Llama of a pile of weights (Touvron et al. 2023).
#pragma once

#include <lowbit/core/error.hpp>

#include <cstddef>
#include <string>
#include <vector>

namespace llm {

/// Which elements of a head RoPE turns together: i and i + head_dim/2 (HF), or 2i and 2i+1 (GGUF, llama2.c).
enum class rope_order : unsigned char { halves, pairs };

struct model_config {
  std::size_t vocabulary = 0;   ///< rows of the embedding
  std::size_t hidden = 0;       ///< width of the residual stream
  std::size_t intermediate = 0; ///< width inside the SwiGLU
  std::size_t layers = 0;
  std::size_t heads = 0;        ///< query heads
  std::size_t kv_heads = 0;     ///< key and value heads; each serves heads / kv_heads query heads
  std::size_t head_dim = 0;
  std::size_t context = 0;      ///< positions that the model was trained for
  float norm_epsilon = 1e-5f;
  float rope_base = 10000.0f;
  rope_order rope = rope_order::pairs;
  std::vector<float> rope_divisors;  ///< divides the frequency of pair i (llama3 scaling); empty: nothing is divided

  [[nodiscard]] std::size_t query_size() const noexcept { return heads * head_dim; }
  [[nodiscard]] std::size_t kv_size() const noexcept { return kv_heads * head_dim; }
};

/// Fails, in one line, where the numbers contradict each other or are absurd.
inline lowbit::status check(const model_config& c) {
  const auto fail = [](std::string what) { return lowbit::failure{lowbit::errc::malformed, "the model's configuration: " + std::move(what)}; };
  constexpr std::size_t limit = std::size_t{1} << 24;  // of any extent; keeps every product of two within 64 bits
  const struct { const char* name; std::size_t value; } extents[] = {
      {"vocabulary size", c.vocabulary}, {"hidden size", c.hidden}, {"intermediate size", c.intermediate}, {"layer count", c.layers},
      {"head count", c.heads}, {"key/value head count", c.kv_heads}, {"head size", c.head_dim}, {"context length", c.context}};
  for (const auto& e : extents)
    if (e.value == 0 || e.value > limit) return fail(std::string{e.name} + " is " + std::to_string(e.value));
  if (c.heads % c.kv_heads != 0)
    return fail(std::to_string(c.heads) + " heads cannot share " + std::to_string(c.kv_heads) + " key/value heads");
  if (c.head_dim % 2 != 0) return fail("the head size is odd");
  if (!(c.norm_epsilon >= 0.0f && c.norm_epsilon < 1.0f)) return fail("the epsilon of the norms is out of range");
  if (!(c.rope_base > 0.0f && c.rope_base < 1e12f)) return fail("the base of RoPE is out of range");
  for (const float d : c.rope_divisors)
    if (!(d > 0.0f)) return fail("a RoPE factor is not positive");
  if (!c.rope_divisors.empty() && c.rope_divisors.size() != c.head_dim / 2) return fail("another number of RoPE factors than of pairs");
  return lowbit::done{};
}

}  // namespace llm
