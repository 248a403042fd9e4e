#include "trainer.hpp"

#include "adam.hpp"
#include "engine/sampler.hpp"

#include <lowbit/glue/eigen.hpp>

#include <cmath>
#include <numbers>
#include <numeric>

namespace qat {
namespace {

using network_t = network<float>;

std::span<const int> inputs_of(const std::vector<int>& ids) { return std::span(ids).first(ids.size() - 1); }

/// The loss of some sequences, and its derivatives in the parameters. Sequences are summed in their order, whatever thread they ran on.
struct batch_result {
  double loss = 0;  // nats a token
  parameters<float> gradient;
};
batch_result run_batch(const network_t& net, const network_t* teacher, const parameters<float>& values,
                       const std::vector<const std::vector<int>*>& batch, llm::thread_pool& threads) {
  std::size_t tokens = 0;
  for (const auto* ids : batch) tokens += ids->size() - 1;
  std::vector<batch_result> each(batch.size());
  lowbit::for_parts(threads, batch.size(), 1, [&](std::size_t begin, std::size_t end) {
    network_t::tape tape;
    matrix<float> soft, of_logits;
    for (std::size_t i = begin; i < end; ++i) {
      const std::vector<int>& ids = *batch[i];
      if (teacher != nullptr) {
        soft = teacher->forward(inputs_of(ids), tape);
        softmax_rows(soft);
      }
      const matrix<float>& logits = net.forward(inputs_of(ids), tape);
      each[i].loss = loss_of_sequence(logits, ids, teacher != nullptr ? &soft : nullptr, 1.0f / static_cast<float>(tokens), &of_logits).sum;
      each[i].gradient = zeros_like(values);
      net.backward(inputs_of(ids), tape, of_logits, each[i].gradient);
    }
  });
  batch_result all = std::move(each[0]);
  for (std::size_t i = 1; i < each.size(); ++i) {
    all.loss += each[i].loss;
    for (std::size_t k = 0; k < values.size(); ++k) all.gradient[k] += each[i].gradient[k];
  }
  all.loss /= static_cast<double>(tokens);
  return all;
}

/// Scales the gradient to a norm of at most 1, so that one odd batch does no harm.
void clip(parameters<float>& gradient) {
  double square = 0;
  for (const auto& g : gradient) square += static_cast<double>(g.squaredNorm());
  if (square > 1)
    for (auto& g : gradient) g *= static_cast<float>(1 / std::sqrt(square));
}

float rate_at(std::size_t step, const recipe& how) {
  const double rise = std::max(1.0, static_cast<double>(how.steps) / 20), s = static_cast<double>(step) + 1, n = static_cast<double>(how.steps);
  const double share = s < rise ? s / rise : 0.5 * (1 + std::cos(std::numbers::pi * (s - rise) / std::max(1.0, n - rise)));
  return how.rate * static_cast<float>(share);
}

/// Sequences in an order that is shuffled anew for every pass.
class deal {
 public:
  deal(std::size_t count, std::uint64_t seed) : order_(count), random_(seed) { std::iota(order_.begin(), order_.end(), std::size_t{0}); }
  std::size_t next() {
    if (at_ == 0)
      for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random_.next() % i]);
    const std::size_t chosen = order_[at_];
    at_ = (at_ + 1) % order_.size();
    return chosen;
  }

 private:
  std::vector<std::size_t> order_;
  llm::random_bits random_;
  std::size_t at_ = 0;
};

template <class Gradient>
lowbit::result<trained> train_by(const llm::model_config& config, parameters<float> p, const std::vector<const lowbit::format_spec*>& formats,
                                 const llm::windows& text, const parameters<float>* teacher, const recipe& how, llm::thread_pool& threads,
                                 const std::function<void(std::size_t, double)>& progress) {
  const auto at = [&](std::size_t k, const lowbit::failure& f) {
    return lowbit::failure{f.kind, "parameter " + std::to_string(k) + ": " + f.message};
  };
  std::vector<lowbit::fake_quantiser<Gradient>> quantisers;
  for (std::size_t k = 0; k < p.size(); ++k) {
    auto q = lowbit::fake_quantiser<Gradient>::template fitted<lowbit::mse_search<20>>(*formats[k], p[k]);
    if (!q) return at(k, q.error());
    quantisers.push_back(*std::move(q));
  }
  trained out;
  out.values = zeros_like(p);
  const auto see = [&]() -> lowbit::status {
    for (std::size_t k = 0; k < p.size(); ++k)
      if (auto s = quantisers[k].forward(p[k], out.values[k], threads); !s) return at(k, s.error());
    return lowbit::done{};
  };
  std::optional<network_t> teaching;
  if (teacher != nullptr) teaching.emplace(config, *teacher);
  deal sequences(text.size(), how.seed);
  adam optimiser;
  lowbit::fake_gradients steps;
  for (std::size_t step = 0; step < how.steps; ++step) {
    if (auto s = see(); !s) return std::move(s).error();
    std::vector<const std::vector<int>*> batch(how.batch);
    for (auto& ids : batch) ids = &text[sequences.next()];
    batch_result r = run_batch(network_t(config, out.values), teaching ? &*teaching : nullptr, out.values, batch, threads);
    if (!std::isfinite(r.loss))
      return lowbit::failure{lowbit::errc::bad_value, "the loss of step " + std::to_string(step) + " is not finite; a lower rate may help"};
    out.losses.push_back(r.loss);
    if (progress) progress(step, r.loss);
    clip(r.gradient);
    optimiser.begin_step(rate_at(step, how));
    for (std::size_t k = 0; k < p.size(); ++k) {
      if (auto s = quantisers[k].backward(p[k], r.gradient[k], r.gradient[k], steps, threads); !s) return at(k, s.error());
      optimiser.update(p[k].data(), r.gradient[k].data(), p[k].size());
      // A step is as large as its weights, give or take, so the same rate serves both.
      if constexpr (!std::is_same_v<Gradient, lowbit::straight_through>) {
        optimiser.update(quantisers[k].scales().data(), steps.scales.data(), steps.scales.size());
        optimiser.update(quantisers[k].offsets().data(), steps.offsets.data(), steps.offsets.size());
      }
    }
  }
  if (auto s = see(); !s) return std::move(s).error();
  for (std::size_t k = 0; k < p.size(); ++k) {
    auto packed = quantisers[k].pack(p[k], threads);
    if (!packed) return at(k, packed.error());
    out.weights.push_back(*std::move(packed));
  }
  return out;
}

}  // namespace

lowbit::result<trained> train(const llm::model_config& config, const parameters<float>& start,
                              const std::vector<const lowbit::format_spec*>& formats, const llm::windows& text,
                              const parameters<float>* teacher, const recipe& how, llm::thread_pool& threads,
                              const std::function<void(std::size_t, double)>& progress) {
  LOWBIT_EXPECTS(start.size() == formats.size() && how.batch != 0);
  if (text.empty()) return lowbit::failure{lowbit::errc::bad_value, "there is no text to train on"};
  switch (how.gradient) {
    case estimator::straight_through: return train_by<lowbit::straight_through>(config, start, formats, text, teacher, how, threads, progress);
    case estimator::lsq: return train_by<lowbit::learnt_step>(config, start, formats, text, teacher, how, threads, progress);
    case estimator::lsq_plus: break;
  }
  return train_by<lowbit::learnt_step_and_offset>(config, start, formats, text, teacher, how, threads, progress);
}

double loss_of(const llm::model_config& config, const parameters<float>& values, const llm::windows& text, llm::thread_pool& threads) {
  const network_t net(config, values);
  std::vector<sequence_loss> each(text.size());
  lowbit::for_parts(threads, text.size(), 1, [&](std::size_t begin, std::size_t end) {
    network_t::tape tape;
    for (std::size_t i = begin; i < end; ++i)
      each[i] = loss_of_sequence<float>(net.forward(inputs_of(text[i]), tape), text[i], nullptr, 0.0f, nullptr);
  });
  sequence_loss all;
  for (const sequence_loss& l : each) {
    all.sum += l.sum;
    all.tokens += l.tokens;
  }
  return all.tokens != 0 ? all.sum / static_cast<double>(all.tokens) : 0.0;
}

}  // namespace qat
