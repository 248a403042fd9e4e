#include "evaluate.hpp"

#include "sampler.hpp"

#include <limits>
#include <memory>

namespace llm {
namespace {

constexpr std::size_t chunk = 64;  // tokens whose logits are held at once

std::size_t total_tokens(const windows& w) {
  std::size_t n = 0;
  for (const auto& ids : w) n += ids.size();
  return n;
}

// KL(p || q) from the logits of both, summed in double. Rounding may bring it below zero; what is no number counts as infinite.
double divergence(const float* p, double p_norm, const float* q, double q_norm, std::size_t n) {
  const auto log_p = array_of(p, n).cast<double>() - p_norm, log_q = array_of(q, n).cast<double>() - q_norm;
  const double kl = (log_p.exp() * (log_p - log_q)).sum();
  return kl < 0.0 ? 0.0 : kl >= 0.0 ? kl : std::numeric_limits<double>::infinity();
}

}  // namespace

windows cut_windows(const std::vector<int>& ids, int bos, std::size_t context, std::size_t limit) {
  windows w;
  std::size_t at = 0, predicted = 0;
  while (at < ids.size() && (limit == 0 || predicted < limit)) {
    std::vector<int> window;
    if (bos >= 0) window.push_back(bos);
    const std::size_t room = limit == 0 ? context : std::min(context, limit - predicted + 1);
    while (window.size() < room && at < ids.size()) window.push_back(ids[at++]);
    if (window.size() < 2) break;
    predicted += window.size() - 1;
    w.push_back(std::move(window));
  }
  return w;
}

logit_source logits_of(session& s, const windows& w) {
  return [&](std::size_t window, std::size_t begin, std::size_t count) -> lowbit::matrix_view<const float> {
    if (begin == 0) s.clear();
    return lowbit::view(s.feed(std::span{w[window]}.subspan(begin, count), count));
  };
}

logit_source remember(const logit_source& source, const windows& w, const std::function<void(std::size_t, std::size_t)>& progress) {
  auto kept = std::make_shared<std::vector<std::vector<float>>>();
  std::size_t cols = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (progress) progress(i, w.size());
    auto& all = kept->emplace_back();
    for (std::size_t begin = 0; begin < w[i].size(); begin += chunk) {
      const auto part = source(i, begin, std::min(chunk, w[i].size() - begin));
      cols = part.cols;
      for (std::size_t r = 0; r < part.rows; ++r) all.insert(all.end(), part.row(r), part.row(r) + cols);
    }
  }
  return [kept, cols](std::size_t window, std::size_t begin, std::size_t count) -> lowbit::matrix_view<const float> {
    return {(*kept)[window].data() + begin * cols, count, cols};
  };
}

evaluation evaluate(const logit_source& model, const logit_source& reference, const windows& w,
                    const std::function<void(std::size_t, std::size_t)>& progress) {
  evaluation e;
  e.has_reference = static_cast<bool>(reference);
  std::vector<double> divergences;
  std::size_t agreed = 0, seen = 0;
  const std::size_t total = total_tokens(w);
  double nll = 0.0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    for (std::size_t begin = 0; begin < w[i].size(); begin += chunk) {
      const std::size_t count = std::min(chunk, w[i].size() - begin);
      const auto logits = model(i, begin, count);
      const auto expected = reference ? reference(i, begin, count) : lowbit::matrix_view<const float>{};
      for (std::size_t t = 0; t < count && begin + t + 1 < w[i].size(); ++t) {
        const float* row = logits.row(t);
        const double norm = log_sum_exp(row, logits.cols);
        nll += norm - static_cast<double>(row[w[i][begin + t + 1]]);
        ++e.tokens;
        if (!reference) continue;
        divergences.push_back(divergence(expected.row(t), log_sum_exp(expected.row(t), logits.cols), row, norm, logits.cols));
        agreed += largest(row, logits.cols) == largest(expected.row(t), logits.cols);
      }
      seen += count;
      if (progress) progress(seen, total);
    }
  }
  if (e.tokens == 0) return e;
  const auto n = static_cast<double>(e.tokens);
  e.nll = nll / n;
  e.perplexity = std::exp(e.nll);
  if (reference) {
    std::sort(divergences.begin(), divergences.end());
    e.kl_mean = std::accumulate(divergences.begin(), divergences.end(), 0.0) / n;
    e.kl_p99 = divergences[(divergences.size() - 1) * 99 / 100];
    e.kl_max = divergences.back();
    e.top1_agreement = static_cast<double>(agreed) / n;
  }
  return e;
}

windows sample_windows(session& s, int bos, std::size_t count, std::size_t length, std::uint64_t seed,
                       const std::function<void(std::size_t, std::size_t)>& progress) {
  windows w(count);
  sampler draw{{.temperature = 1.0f, .top_p = 1.0f, .seed = seed}};
  for (std::size_t i = 0; i < count; ++i) {
    s.clear();
    w[i].push_back(std::max(bos, 0));
    while (w[i].size() < length) {
      const matrix& logits = s.feed(std::span{w[i]}.last(1));
      w[i].push_back(static_cast<int>(draw.next(logits.row(0), logits.cols())));
    }
    if (progress) progress(i + 1, count);
  }
  return w;
}

}  // namespace llm
