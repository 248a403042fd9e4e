// Training a Llama whose weights are seen through fake quantisation.
#pragma once

#include "network.hpp"

#include "engine/evaluate.hpp"
#include "engine/thread_pool.hpp"

#include <lowbit/adapt/fake_quantise.hpp>

#include <functional>

namespace qat {

/// What stands in for the derivatives of rounding. Scales begin where mse_search puts them; straight_through leaves them there.
enum class estimator : unsigned char { straight_through, lsq, lsq_plus };

struct recipe {
  estimator gradient = estimator::lsq_plus;
  std::size_t steps = 80, batch = 4;  ///< sequences in a step
  float rate = 5e-4f;                 ///< Adam's, at its height: it rises over a twentieth of the steps and falls as half a cosine
  std::uint64_t seed = 1;              ///< of the order of the sequences
};

struct trained {
  parameters<float> values;                     ///< as the packed weights decode
  std::vector<lowbit::packed_matrix> weights;   ///< in the formats that were asked for
  std::vector<double> losses;                   ///< of each step's sequences before it, in nats a token; with a teacher the divergence
};

/// Trains from `start` with every parameter in its format (f32: as it is). With a teacher the loss is the divergence from its
/// probabilities, otherwise the negative log-likelihood of the tokens that come. Fails where the loss or a weight is no longer finite.
lowbit::result<trained> train(const llm::model_config& config, const parameters<float>& start,
                              const std::vector<const lowbit::format_spec*>& formats, const llm::windows& text,
                              const parameters<float>* teacher, const recipe& how, llm::thread_pool& threads,
                              const std::function<void(std::size_t step, double loss)>& progress = {});

/// The mean loss over all sequences, in nats a token.
double loss_of(const llm::model_config& config, const parameters<float>& values, const llm::windows& text, llm::thread_pool& threads);

}  // namespace qat
