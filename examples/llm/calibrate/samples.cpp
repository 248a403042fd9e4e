#include "samples.hpp"

#include "hash.hpp"

#include "../engine/sampler.hpp"

#include <algorithm>
#include <numeric>

namespace llm {
namespace {

std::uint64_t hash_of(const windows& w) {
  hasher h;
  for (const auto& ids : w) {
    h.add(ids.size());
    for (const int id : ids) h.add(static_cast<std::uint64_t>(id));
  }
  return h.value();
}

std::string hexadecimal(std::uint64_t v) {
  std::string digits(16, '0');
  for (std::size_t i = 16; i-- != 0; v >>= 4) digits[i] = "0123456789abcdef"[v & 15];
  return digits;
}

}  // namespace

std::size_t calibration_samples::tokens() const noexcept {
  std::size_t n = 0;
  for (const auto& ids : sequences) n += ids.size();
  return n;
}

std::string calibration_samples::description() const {
  return std::to_string(sequences.size()) + " sequences, " + std::to_string(tokens()) + " tokens, of " + source + " (seed " +
         std::to_string(seed) + ", tokens' hash " + hexadecimal(hash) + ")";
}

void calibration_samples::disclose(lowbit::gguf_metadata& notes) const {
  notes.set("lowbit.calibration.text", source);
  notes.set("lowbit.calibration.seed", seed);
  notes.set("lowbit.calibration.sequences", static_cast<std::uint32_t>(sequences.size()));
  notes.set("lowbit.calibration.sequence_length", static_cast<std::uint32_t>(sequences.empty() ? 0 : sequences.front().size()));
  notes.set("lowbit.calibration.tokens", static_cast<std::uint64_t>(tokens()));
  notes.set("lowbit.calibration.token_hash", hexadecimal(hash));
  if (!chosen.empty()) notes.set("lowbit.calibration.chosen_sequences", chosen);
}

std::size_t calibration_length(const sampling_plan& plan, const model_config& c) {
  return std::clamp<std::size_t>(plan.length != 0 ? plan.length : 512, 2, std::max<std::size_t>(c.context, 2));
}

lowbit::result<calibration_samples> sample_text(std::string_view text, const std::string& source, const tokeniser& words,
                                                const model_config& c, const sampling_plan& plan) {
  const std::size_t length = calibration_length(plan, c);
  std::vector<int> ids = words.encode(text);
  const int bos = words.data().add_bos ? words.data().bos : -1;
  if (bos >= 0) ids.erase(ids.begin());  // every sequence gets its own
  windows all = cut_windows(ids, bos, length, 0);
  if (!all.empty() && all.back().size() < length) all.pop_back();
  if (all.empty())
    return lowbit::failure{lowbit::errc::bad_value, source + ": " + std::to_string(ids.size()) + " tokens are too few to calibrate on; one sequence has " +
                                                        std::to_string(length)};

  calibration_samples s;
  s.source = source;
  s.seed = plan.seed;
  s.chosen.resize(all.size());
  std::iota(s.chosen.begin(), s.chosen.end(), 0u);
  const std::size_t wanted = std::clamp<std::size_t>(plan.tokens / length, 1, all.size());
  random_bits random{plan.seed};
  for (std::size_t i = 0; i < wanted; ++i)  // Fisher and Yates, as far as it is needed
    std::swap(s.chosen[i], s.chosen[i + static_cast<std::size_t>(random.uniform() * static_cast<double>(all.size() - i))]);
  s.chosen.resize(wanted);
  std::sort(s.chosen.begin(), s.chosen.end());
  for (const std::uint32_t i : s.chosen) s.sequences.push_back(std::move(all[i]));
  s.hash = hash_of(s.sequences);
  return s;
}

calibration_samples sample_model(session& s, int bos, const model_config& c, const sampling_plan& plan,
                                 const std::function<void(std::size_t, std::size_t)>& progress) {
  const std::size_t length = calibration_length(plan, c);
  calibration_samples out;
  out.sequences = sample_windows(s, bos, std::max<std::size_t>(plan.tokens / length, 1), length, plan.seed, progress);
  out.source = "text that the float32 model wrote itself";
  out.seed = plan.seed;
  out.hash = hash_of(out.sequences);
  return out;
}

}  // namespace llm
