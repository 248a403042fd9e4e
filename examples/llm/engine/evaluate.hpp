// How well a model predicts a text, and how far it is from a reference.
//
// Perplexity is exp(mean negative log-likelihood). The divergence of a token is KL(reference || model) in nats, over the whole
// vocabulary. Windows are independent sequences; every token of a window but its first is predicted from those before it.
#pragma once

#include "llama.hpp"

#include <functional>

namespace llm {

struct evaluation {
  std::size_t tokens = 0;         ///< that were predicted
  double nll = 0.0;               ///< mean, in nats a token
  double perplexity = 0.0;
  bool has_reference = false;     ///< the rest is only there with a reference
  double kl_mean = 0.0;           ///< nats a token
  double kl_p99 = 0.0;            ///< 99th percentile over tokens
  double kl_max = 0.0;
  double top1_agreement = 0.0;    ///< share of tokens for which both think the same token likeliest
};

using windows = std::vector<std::vector<int>>;

/// Cuts ids into windows of at most `context` tokens, each beginning with `bos` where that is not negative; stops after `limit`
/// predicted tokens (0: no limit). A rest too short to predict anything is left out.
windows cut_windows(const std::vector<int>& ids, int bos, std::size_t context, std::size_t limit);

/// Gives logits [tokens, vocabulary] for tokens [begin, begin + count) of a window; asked for in order. Valid until the next call.
using logit_source = std::function<lowbit::matrix_view<const float>(std::size_t window, std::size_t begin, std::size_t count)>;

/// The logits that a model computes in `s`, which must have room for the longest window.
logit_source logits_of(session& s, const windows& w);

/// Computes the logits of all windows once and keeps them: tokens x vocabulary floats.
logit_source remember(const logit_source& source, const windows& w, const std::function<void(std::size_t, std::size_t)>& progress = {});

/// Evaluates; `reference` may be empty, `progress(done, total)` is called now and then.
evaluation evaluate(const logit_source& model, const logit_source& reference, const windows& w,
                    const std::function<void(std::size_t, std::size_t)>& progress = {});

/// `count` windows of `length` tokens that the model itself writes at temperature 1 after `bos`. On them, a model's expected loss
/// over the writer's own is exactly the divergence of the two.
windows sample_windows(session& s, int bos, std::size_t count, std::size_t length, std::uint64_t seed,
                       const std::function<void(std::size_t, std::size_t)>& progress = {});

}  // namespace llm
