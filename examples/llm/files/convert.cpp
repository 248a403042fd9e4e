#include "convert.hpp"

#include "names.hpp"

#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/recode.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>

namespace llm {
namespace {

using lowbit::format_spec;
using lowbit::packed_view;

/// Some rows of a matrix, in the order of a list.
lowbit::packed_matrix take_rows(packed_view w, const std::vector<std::uint32_t>& rows) {
  lowbit::packed_matrix out{*w.spec, w.rows, w.cols};
  if (w.inputs != nullptr) out.set_inputs({w.inputs, w.inputs + w.cols});
  out.set_factor(w.factor);
  for (std::size_t r = 0; r < w.rows; ++r) std::memcpy(out.row(r), w.row(rows[r]), w.row_bytes());
  return out;
}

/// |b - a| / |a| over all values, in double; rows in parallel, summed in their order, whatever runs of them they come in.
class relative_error {
 public:
  void add(packed_view a, packed_view b, thread_pool& threads);
  [[nodiscard]] bool is_finite() const noexcept { return std::isfinite(top_); }
  [[nodiscard]] double value() const noexcept { return bottom_ == 0.0 ? (top_ == 0.0 ? 0.0 : INFINITY) : std::sqrt(top_ / bottom_); }

 private:
  double top_ = 0.0, bottom_ = 0.0;
};

void relative_error::add(packed_view a, packed_view b, thread_pool& threads) {
  std::vector<double> difference(a.rows), size(a.rows);
  lowbit::for_parts(threads, a.rows, 4, [&](std::size_t begin, std::size_t end) {
    std::vector<float> x(a.cols), y(a.cols);
    for (std::size_t r = begin; r < end; ++r) {
      lowbit::decode(a.middle_rows(r, 1), {x.data(), 1, a.cols});
      lowbit::decode(b.middle_rows(r, 1), {y.data(), 1, b.cols});
      for (std::size_t c = 0; c < a.cols; ++c) {
        const double d = static_cast<double>(y[c]) - static_cast<double>(x[c]);
        difference[r] += d * d;
        size[r] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
      }
    }
  });
  for (std::size_t r = 0; r < a.rows; ++r) top_ += difference[r], bottom_ += size[r];
}

/// The exponent where a factor is a power of two, which scales may take in.
std::optional<int> power_of_two(double factor) {
  int e = 0;
  return std::frexp(factor, &e) == 0.5 ? std::optional<int>(e - 1) : std::nullopt;
}

/// The same values in another format, a factor that the target has no place for multiplied into the scales.
std::optional<lowbit::recoded> carry_over(packed_view w, const format_spec& to, bool keeps_factor, thread_pool& threads) {
  if (keeps_factor || w.factor == 1.0 || to.is_float()) return lowbit::recode(w, to, threads);
  const auto e = power_of_two(w.factor);
  if (!e) return std::nullopt;
  w.factor = 1.0;
  auto out = lowbit::recode(w, to, threads, *e);
  if (out) out->weights.set_factor(1.0);
  return out;
}

/// Rows of LLM.int8: absolute maxima as scales (bitsandbytes functional.py, int8_vectorwise_quant).
lowbit::packed_matrix quantise_int8(lowbit::matrix_view<const float> w) {
  const format_spec& s = lowbit::uniform_format(8, w.cols, true, lowbit::number::f32);
  lowbit::packed_matrix out{s, w.rows, w.cols};
  out.set_factor(lowbit::bitsandbytes_int8.constant);
  std::vector<std::uint8_t> codes(w.cols);
  for (std::size_t r = 0; r < w.rows; ++r) {
    float largest = 0.0f;
    for (std::size_t c = 0; c < w.cols; ++c) largest = std::max(largest, std::abs(w(r, c)));
    // torch divides a number by a tensor so. (Of rows that small the factor is infinite there.)
    const float factor = largest > 0.0f ? std::min(1.0f / largest * 127.0f, std::numeric_limits<float>::max()) : 0.0f;
    for (std::size_t c = 0; c < w.cols; ++c) codes[c] = static_cast<std::uint8_t>(128 + static_cast<int>(std::nearbyint(w(r, c) * factor)));
    std::memcpy(out.row(r), &largest, sizeof largest);
    lowbit::write_row_codes(s, codes.data(), w.cols, out.row(r));
  }
  return out;
}

/// The weights with the scales that are left of theirs when bitsandbytes nests them.
lowbit::packed_matrix nest(packed_view w) {
  lowbit::packed_matrix out{*w.spec, w.rows, w.cols};
  std::memcpy(out.bytes().data(), w.data, w.size_bytes());
  const auto scales = lowbit::nested_scales::of(lowbit::detail::block_scales(w));
  for (std::size_t i = 0; i < scales.codes.size(); ++i) {
    const float value = scales.value(i);
    std::memcpy(out.bytes().data() + i * w.spec->bytes, &value, sizeof value);
  }
  return out;
}

/// Evenly spaced codes of at most 4 bits in groups that a uniform format has.
bool is_plain_group(const format_spec& s) {
  return !s.is_float() && s.codes.bits() <= 4 && !s.values.present() && !s.sub_scale.present() && !s.minimum.present() && (s.block == 32 || s.block == 64 || s.block == 128);
}

/// A stored zero-point that the family's bias has no form of.
bool has_unstorable_zero(const lowbit::checkpoint_family& f, packed_view w) {
  const format_spec& s = *w.spec;
  if (f.zero_bias == 0 || !s.zero_point.present()) return false;
  for (std::size_t i = 0; i < w.rows * s.row_blocks(w.cols); ++i)
    if (s.zero_point.raw(w.data + i * s.bytes, 0) < f.zero_bias) return true;
  return false;
}

}  // namespace

std::string_view name_of(fidelity f) noexcept {
  constexpr std::string_view names[] = {"exact", "exact after permutation", "exact in a wider type", "re-quantised"};
  return names[static_cast<std::size_t>(f)];
}

const verdict* conversion_plan::inexact() const noexcept {
  for (const verdict& v : verdicts_)
    if (v.kind == fidelity::requantised) return &v;
  return nullptr;
}

// The weights as they go into the conversion: rows in their new order.
lowbit::result<weights> conversion_plan::source_of(const tensor& t, const step& s) const {
  auto w = t.read();
  if (!w) return w;
  if (s.reorder) {
    auto in_order = reorder_rows(w->view(), head_dim_, order_);
    if (!in_order) return in_tensor(t.name, in_order.error());
    w = weights{*std::move(in_order)};
  }
  if (!s.rows.empty()) w = weights{take_rows(w->view(), s.rows)};
  if (scaled_source_ != nullptr && !gguf_ && !layout_)
    if (auto values = lowbit::with_rounded_zeros(*scaled_source_, w->view())) w = weights{*std::move(values)};
  if (s.forget_inputs) {
    lowbit::packed_matrix out{*w->view().spec, t.rows, t.cols};
    std::memcpy(out.bytes().data(), w->view().data, w->view().size_bytes());
    out.set_factor(w->view().factor);
    w = weights{std::move(out)};
  }
  return w;
}

lowbit::result<weights> conversion_plan::apply(const tensor& t, const step& s, thread_pool& threads) const {
  auto w = source_of(t, s);
  if (!w) return w;
  const packed_view v = w->view();
  if (v.spec == s.to && !s.requantise && v.factor == s.factor) return w;
  if (s.rounded) {
    auto out = lowbit::recode_rounded(v, *s.to, threads);
    LOWBIT_EXPECTS(out.has_value());
    return weights{*std::move(out)};
  }
  if (!s.requantise) {
    auto out = carry_over(v, *s.to, s.factor != 1.0, threads);
    LOWBIT_EXPECTS(out.has_value());
    return weights{std::move(out->weights)};
  }
  lowbit::packed_matrix floats{lowbit::spec_of<lowbit::f32>, v.rows, v.cols};
  const lowbit::matrix_view<float> values{reinterpret_cast<float*>(floats.bytes().data()), v.rows, v.cols};
  lowbit::dequantise(v, values, threads);
  if (layout_ && layout_->family == &lowbit::bitsandbytes_int8) return weights{quantise_int8(values)};
  auto packed = lowbit::quantise(*lowbit::find_format(s.to->name), lowbit::method::rtn, lowbit::matrix_view<const float>{values}, threads);
  if (!packed) return lowbit::failure{packed.error().kind, "tensor " + t.name + ": " + packed.error().message};
  return weights{*std::move(packed)};
}

// Formats in which the target might hold these weights exactly, the best first.
std::vector<const format_spec*> conversion_plan::candidates(const packed_view& w) const {
  const format_spec& s = w.spec->planes();
  std::vector<const format_spec*> all;
  if (!gguf_ && !layout_) {
    for (const format_spec* f : {&lowbit::spec_of<lowbit::float16>, &lowbit::spec_of<lowbit::bfloat16>, &lowbit::spec_of<lowbit::f32>}) all.push_back(f);
  } else if (gguf_) {
    if (w.spec->gguf >= 0) all.push_back(w.spec);
    std::vector<const format_spec*> others;
    lowbit::for_each_format(lowbit::gguf_formats{}, [&]<class F>() {
      if (&lowbit::spec_of<F> != w.spec) others.push_back(&lowbit::spec_of<F>);
    });
    std::stable_sort(others.begin(), others.end(), [](const auto* a, const auto* b) { return a->bits_per_weight() < b->bits_per_weight(); });
    for (const format_spec* f : others)
      if (w.cols % f->block == 0) all.push_back(f);
  } else if (layout_->family == nullptr || layout_->family->table != nullptr) {
    all.push_back(layout_->family != nullptr ? layout_->family->table : &s);
  } else if (!s.values.present()) {
    const auto scale = s.scale.type;
    for (unsigned bits = s.codes.bits(); bits <= 8; ++bits)
      for (const bool symmetric : {true, false})
        for (const lowbit::number type : {scale, lowbit::number::f16, lowbit::number::bf16, lowbit::number::f32})
          if (layout_->family->has_width(bits) && (type == scale || scale == lowbit::number::none || scale == lowbit::number::f32 || type == lowbit::number::f32))
            all.push_back(&lowbit::uniform_format(bits, s.sub_block(), symmetric && bits > 1, type));
  }
  return all;
}

// The format for what has no exact form: the one asked for, or one that is like the source's.
const format_spec* conversion_plan::fallback(const tensor& t, const packed_view& w, const conversion& how) const {
  const auto named = [&](const char* name) { return *lowbit::find_format(name); };
  const unsigned bits = w.spec->is_float() ? 4 : w.spec->planes().codes.bits();
  if (!gguf_ && !layout_) return how.format ? &lowbit::spec_of_id(*how.format) : &lowbit::spec_of<lowbit::f32>;
  if (gguf_) {
    constexpr const char* like[] = {"q2_k", "q2_k", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "q8_0"};
    return &lowbit::spec_of_id(target_format(t, how.format.value_or(named(like[bits]))));
  }
  if (layout_->family == nullptr) return &lowbit::spec_of_id(how.format.value_or(named("nf4")));
  if (layout_->family == &lowbit::bitsandbytes_int8) return &lowbit::uniform_format(8, w.cols, true, lowbit::number::f32);
  if (layout_->family->table != nullptr) return layout_->family->table;
  if (how.format) return &lowbit::spec_of_id(*how.format);
  unsigned width = bits;
  while (width < 8 && !layout_->family->has_width(width)) ++width;
  if (!layout_->family->has_width(width)) width = 4;
  return &lowbit::uniform_format(width, group_, layout_->family->method != "awq", lowbit::number::f16);
}

/// One tensor's way into the target, a run of rows at a time, so that a tensor may be larger than memory. What is decided by formats and shapes
/// is by the first run.
class conversion_plan::decision {
 public:
  static lowbit::result<verdict> of(const conversion_plan& plan, const tensor& t, step& s, const conversion& how, thread_pool& threads) {
    const std::vector<tensor> runs = runs_of(t);
    const auto first = plan.source_of(runs[0], s);
    if (!first) return first.error();
    return decision{plan, t, s, how, threads, runs, first->view()}.decide();
  }

 private:
  using made = lowbit::result<std::optional<weights>>;  // a run's new form; nothing where it has none
  using outcome = lowbit::result<bool>;                 // whether the question is settled

  decision(const conversion_plan& plan, const tensor& t, step& s, const conversion& how, thread_pool& threads, const std::vector<tensor>& runs, packed_view first)
      : plan_{plan}, t_{t}, s_{s}, how_{how}, threads_{threads}, runs_{runs}, first_run_{first} {}

  lowbit::result<verdict> decide() {
    if (lowbit::status finite = for_runs([&](const tensor&, packed_view run) { return check_finite(t_.name, run, threads_); }); !finite) return finite.error();
    const bool moved = s_.reorder || !s_.rows.empty() || s_.forget_inputs;
    v_ = {t_.name, std::string{t_.spec->name}, {}, moved ? fidelity::permuted : fidelity::exact, true, moved, 0.0};
    for (auto attempt : {&decision::stay_float, &decision::keep_values, &decision::nest_scales, &decision::round_scales, &decision::quantise_anew}) {
      const outcome settled = (this->*attempt)();
      if (!settled) return settled.error();
      if (!finite_) return lowbit::failure{lowbit::errc::bad_value, "tensor " + t_.name + " has values that are too large for " + v_.to};
      if (*settled) break;
    }
    return std::move(v_);
  }

  bool is_gguf() const { return plan_.gguf_; }
  const lowbit::checkpoint_layout* layout() const { return plan_.layout_ ? &*plan_.layout_ : nullptr; }
  const lowbit::checkpoint_family* family() const { return layout() != nullptr ? layout()->family : nullptr; }
  bool is_bitsandbytes4() const { return layout() != nullptr && family() == nullptr; }
  bool nests() const { return is_bitsandbytes4() && layout()->nested; }

  lowbit::status for_runs(auto&& f) const {
    if (lowbit::status done = f(runs_[0], first_run_); !done) return done;
    for (const tensor& run : std::span(runs_).subspan(1)) {
      auto read = plan_.source_of(run, s_);
      if (!read) return std::move(read).error();
      if (lowbit::status done = f(run, read->view()); !done) return done;
    }
    return lowbit::done{};
  }

  void keep(const packed_view& form) {
    s_.to = form.spec;
    s_.factor = form.factor;
    if (form.inputs != nullptr) s_.inputs.assign(form.inputs, form.inputs + form.cols);
    v_.to = form.spec->name;
  }

  bool has_scaled_zeros() const { return family() != nullptr && family()->zero == lowbit::zero_kind::scaled_floats; }
  /// Zero-points times scales are rounded on one side only: as they are written, or as the source has them.
  bool rounds_zeros() const { return has_scaled_zeros() != (plan_.scaled_source_ != nullptr); }

  /// Adds what a form costs, with the numbers that the target itself rounds: factors of whole tensors, zero-points times scales.
  void add_error(relative_error& error, packed_view run, packed_view form) {
    const double factor = is_gguf() ? static_cast<double>(static_cast<float>(form.factor)) : family() != nullptr ? lowbit::stored_factor(*family(), form.factor) : form.factor;
    rounded_ |= factor != form.factor;
    form.factor = factor;
    const auto rounded = [&](bool is_so, const lowbit::checkpoint_family* by, packed_view w) { return is_so && rounds_zeros() ? lowbit::with_rounded_zeros(*by, w) : std::nullopt; };
    const auto from = rounded(!has_scaled_zeros(), plan_.scaled_source_, run), to = rounded(has_scaled_zeros(), family(), form);
    rounded_ |= from || to;
    error.add(from ? from->view() : run, to ? to->view() : form, threads_);
    finite_ = finite_ && error.is_finite();
  }

  /// Brings every run to the form that `make` gives it; the step stays what it was where one run has none. Adds up what it costs.
  outcome carry(auto&& make, relative_error* error) {
    const step before = s_;
    bool possible = true;
    finite_ = true;
    const lowbit::status read = for_runs([&](const tensor& part, packed_view run) -> lowbit::status {
      if (!possible) return lowbit::done{};
      const made form = make(part, run);
      if (!form) return form.error();
      possible = form->has_value();
      if (!possible) return lowbit::done{};
      if (&part == &runs_[0]) keep((*form)->view());
      if (error != nullptr) add_error(*error, run, (*form)->view());
      return lowbit::done{};
    });
    if (!read) return read.error();
    if (!possible) s_ = before;
    return possible;
  }

  /// Whether the target holds weights of such a form.
  bool fits(const packed_view& form) const {
    if (form.spec->is_float()) return true;
    if (is_gguf()) return form.inputs == nullptr && form.cols % form.spec->block == 0 && (form.factor == 1.0 || form.spec == &lowbit::spec_of<lowbit::nvfp4>);
    if (layout() == nullptr) return false;
    if (is_bitsandbytes4())
      return lowbit::detail::bitsandbytes_base(*form.spec) != nullptr && form.inputs == nullptr && form.factor == 1.0 && form.cols % form.spec->block == 0;
    return !lowbit::cannot_hold(*family(), form);
  }

  /// Floats stay what they are, but where a format is asked for; GGUF has its vectors in float32.
  outcome stay_float() {
    const bool stays = t_.is_vector || (layout() != nullptr ? is_vocabulary_matrix(t_.name) : !how_.format);
    if (!first_run_.spec->is_float() || !stays) return false;
    keep(first_run_);
    if (t_.is_vector && is_gguf() && first_run_.spec != &lowbit::spec_of<lowbit::f32>) {
      s_.to = &lowbit::spec_of<lowbit::f32>;
      v_.to = "f32";
      v_.kind = fidelity::wider;
    }
    if (first_run_.spec != t_.spec) v_.kind = fidelity::wider;  // as source_of brings it
    return true;
  }

  /// The same values in a format of the target's.
  outcome keep_values() {
    if (first_run_.spec->is_float()) return false;
    std::vector<const format_spec*> tries = plan_.candidates(first_run_);
    if (layout() != nullptr && is_vocabulary_matrix(t_.name)) tries = {&lowbit::spec_of<lowbit::float16>, &lowbit::spec_of<lowbit::bfloat16>, &lowbit::spec_of<lowbit::f32>};
    if (how_.format && layout() == nullptr) {
      if (!is_gguf()) tries.clear();  // plain floats of the type that was asked for
      tries.insert(tries.begin(), &lowbit::spec_of_id(*how_.format));
    }
    for (const format_spec* to : tries) {
      if (nests() && !to->is_float()) continue;  // nested scales are rounded
      packed_view form{to, t_.rows, t_.cols, nullptr, to->is_float() ? nullptr : first_run_.inputs, to->is_float() ? 1.0 : first_run_.factor};
      if (!fits(form)) {
        form.factor = 1.0;
        if (first_run_.factor == 1.0 || !fits(form)) continue;
      }
      bool codes_kept = true;
      relative_error error;
      rounded_ = false;
      const bool may_round = form.factor != 1.0 || rounds_zeros();
      const outcome kept = carry(
          [&](const tensor&, packed_view run) -> made {
            auto same = carry_over(run, *to, form.factor != 1.0, threads_);
            if (!same || (family() != nullptr && has_unstorable_zero(*family(), same->weights.view()))) return {std::nullopt};
            codes_kept = codes_kept && same->codes_kept;
            return {weights{std::move(same->weights)}};
          },
          may_round ? &error : nullptr);
      if (!kept) return kept;
      if (!*kept) continue;
      v_.codes_kept = codes_kept;
      if (!codes_kept) v_.kind = fidelity::wider;
      if (rounded_) v_.kind = fidelity::requantised, v_.error = error.value();
      return true;
    }
    return false;
  }

  /// The same codes, the scales as bitsandbytes' nested quantisation rounds them when the file is written.
  outcome nest_scales() {
    if (!nests() || lowbit::detail::bitsandbytes_base(*first_run_.spec) == nullptr || first_run_.cols % first_run_.spec->block != 0) return false;
    v_.kind = fidelity::requantised;
    keep(first_run_);
    relative_error error;  // such weights come whole
    error.add(first_run_, nest(first_run_).view(), threads_);
    v_.error = error.value();
    return true;
  }

  /// The same codes with rounded scales, which are closer than codes chosen anew.
  outcome round_scales() {
    if (first_run_.spec->is_float() || how_.format || !is_gguf()) return false;
    for (const format_spec* to : plan_.candidates(first_run_)) {
      if (to->codes.bits() != first_run_.spec->codes.bits() || first_run_.cols % to->block != 0 || to->values.present() != first_run_.spec->values.present()) continue;
      relative_error error;
      const outcome rounded = carry(
          [&](const tensor&, packed_view run) -> made {
            auto out = lowbit::recode_rounded(run, *to, threads_);
            if (!out) return {std::nullopt};
            return {weights{*std::move(out)}};
          },
          &error);
      if (!rounded) return rounded;
      if (!*rounded) continue;
      s_.rounded = true;
      v_.kind = fidelity::requantised;
      v_.error = error.value();
      return true;
    }
    return false;
  }

  outcome quantise_anew() {
    s_.requantise = true;
    s_.to = plan_.fallback(t_, first_run_, how_);
    if (s_.to->is_float() && is_gguf() && !first_run_.spec->is_float()) s_.to = &lowbit::spec_of<lowbit::float16>;
    const bool is_int8 = family() == &lowbit::bitsandbytes_int8;
    if (!lowbit::find_format(s_.to->name) && !is_int8)
      return lowbit::failure{lowbit::errc::unsupported, "tensor " + t_.name + " cannot be quantised to " + std::string{s_.to->name}};
    s_.factor = is_int8 ? lowbit::bitsandbytes_int8.constant : 1.0;
    const packed_view form{s_.to, t_.rows, t_.cols, nullptr, nullptr, s_.factor};
    if (!fits(form)) {
      const std::string why = family() != nullptr ? lowbit::cannot_hold(*family(), form).value_or("") : "it does not hold " + std::string{s_.to->name};
      return lowbit::failure{lowbit::errc::unsupported, "tensor " + t_.name + " cannot be written to " + how_.target + ": " + why};
    }
    relative_error error;
    const step how_to = s_;
    lowbit::packed_matrix nested;  // scales are nested by what all of the tensor's are
    if (nests() && !how_to.to->is_float()) {
      lowbit::packed_matrix whole{*how_to.to, t_.rows, t_.cols};
      const lowbit::status quantised = for_runs([&](const tensor& part, packed_view) -> lowbit::status {
        const auto out = plan_.apply(part, how_to, threads_);
        if (!out) return out.error();
        std::memcpy(whole.row(part.first_row), out->view().data, out->view().size_bytes());
        return lowbit::done{};
      });
      if (!quantised) return quantised.error();
      nested = nest(whole.view());
    }
    const outcome done = carry(
        [&](const tensor& part, packed_view) -> made {
          if (nested.rows() != 0) return {weights{nested.view().middle_rows(part.first_row, part.rows)}};
          auto out = plan_.apply(part, how_to, threads_);
          if (!out) return std::move(out).error();
          return {*std::move(out)};
        },
        &error);
    if (!done) return done;
    v_.codes_kept = false;
    v_.error = error.value();
    v_.kind = fidelity::requantised;
    if (first_run_.spec->is_float() && s_.to->is_float() && v_.error == 0.0) v_.kind = first_run_.spec->bytes < s_.to->bytes ? fidelity::wider : fidelity::exact;
    return true;
  }

  const conversion_plan& plan_;
  const tensor& t_;
  step& s_;
  const conversion& how_;
  thread_pool& threads_;
  const std::vector<tensor>& runs_;
  packed_view first_run_;
  bool rounded_ = false, finite_ = true;  // see add_error
  verdict v_;
};

lowbit::status check(const conversion& how) {
  const bool is_gguf = how.target == "gguf";
  const auto layout = lowbit::find_layout(how.target);
  if (!is_gguf && how.target != "hf" && !layout) {
    std::string known = "gguf, hf";
    for (const std::string_view name : lowbit::layout_names()) known.append(", ").append(name);
    return lowbit::failure{lowbit::errc::unsupported, "unknown target '" + how.target + "'; there are " + known};
  }
  if (!how.format) return lowbit::done{};
  const format_spec& format = lowbit::spec_of_id(*how.format);
  if (is_gguf && !in_gguf(*how.format)) return lowbit::failure{lowbit::errc::unsupported, "GGUF does not hold " + std::string{format.name}};
  if (layout && format.is_float())
    return lowbit::failure{lowbit::errc::unsupported, how.target + " holds quantised matrices, which --format " + std::string{format.name} + " is not; plain floats are --to hf"};
  const lowbit::checkpoint_family* const family = layout ? layout->family : nullptr;
  if (family != nullptr && (family == &lowbit::bitsandbytes_int8 || family->table != nullptr) && family->table != &format)
    return lowbit::failure{lowbit::errc::unsupported, how.target + " has a format of its own, which --format " + std::string{format.name} + " is not"};
  return lowbit::done{};
}

lowbit::result<conversion_plan> conversion_plan::make(checkpoint& model, const conversion& how, thread_pool& threads) {
  if (lowbit::status possible = check(how); !possible) return std::move(possible).error();
  conversion_plan p;
  p.gguf_ = how.target == "gguf";
  p.layout_ = lowbit::find_layout(how.target);
  const lowbit::checkpoint_family* const family = p.layout_ ? p.layout_->family : nullptr;
  if (lowbit::status valid = check_model(model); !valid) return std::move(valid).error();
  const auto source = lowbit::find_layout(model.layout);
  if (source && source->family != nullptr && source->family->zero == lowbit::zero_kind::scaled_floats) p.scaled_source_ = source->family;
  p.group_ = 128;
  if (family != nullptr && family->method == "awq")  // one size for all: that of matrices that keep their codes
    for (const tensor& t : model.tensors)
      if (const format_spec& s = t.spec->planes(); is_plain_group(s)) p.group_ = s.block;
  for (const tensor& t : model.tensors)
    while (!t.is_vector && !is_vocabulary_matrix(t.name) && p.group_ > 32 && t.cols % p.group_ != 0) p.group_ /= 2;
  p.head_dim_ = model.config.head_dim;
  p.order_ = p.gguf_ ? rope_order::pairs : rope_order::halves;
  p.steps_.resize(model.tensors.size());
  std::unordered_map<std::string_view, std::size_t> index;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) index.emplace(model.tensors[i].name, i);
  if (p.order_ != model.config.rope)
    for (std::size_t i = 0; i < model.tensors.size(); ++i) p.steps_[i].reorder = is_query(model.tensors[i].name) || is_key(model.tensors[i].name);
  std::vector<std::optional<verdict>> decided(model.tensors.size());
  const auto decide = [&](std::size_t i) -> lowbit::status {
    if (decided[i]) return lowbit::done{};
    tensor& t = model.tensors[i];
    if (!p.steps_[i].rows.empty()) t.read_rows = nullptr;  // rows that move are only there all together
    auto v = decision::of(p, t, p.steps_[i], how, threads);
    if (!v) return std::move(v).error();
    decided[i] = *std::move(v);
    return lowbit::done{};
  };
  // A down projection's inputs are gate's and up's rows: where it has them out of order and the target cannot say so, the rows move, unless
  // it is quantised anew all the same.
  const bool says_order = family != nullptr && !family->index.empty();
  for (std::size_t layer = 0; layer < model.config.layers && !model.layout.empty() && !says_order && how.target != "hf"; ++layer) {
    const std::size_t down = index.at(layer_name(layer, "ffn_down.weight"));
    auto w = model.tensors[down].read();
    if (!w) return std::move(w).error();
    if (w->view().inputs == nullptr) continue;
    const std::vector<std::uint32_t> order{w->view().inputs, w->view().inputs + w->view().cols};
    p.steps_[down].forget_inputs = true;
    if (lowbit::status s = decide(down); !s) return std::move(s).error();
    if (decided[down]->kind == fidelity::requantised && !decided[down]->codes_kept) {
      p.steps_[down] = {};
      decided[down].reset();
      continue;
    }
    for (const char* producer : {"ffn_gate.weight", "ffn_up.weight"}) p.steps_[index.at(layer_name(layer, producer))].rows = order;
  }
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    if (lowbit::status s = decide(i); !s) return std::move(s).error();
    p.verdicts_.push_back(*std::move(decided[i]));
  }
  model.config.rope = p.order_;
  return p;
}

lowbit::result<std::size_t> conversion_plan::save(const std::string& path, const checkpoint& model, thread_pool& threads, const save_progress& progress, std::size_t part_bytes) const {
  std::unordered_map<std::string_view, const step*> by_name;
  for (std::size_t i = 0; i < steps_.size(); ++i) by_name.emplace(model.tensors[i].name, &steps_[i]);
  const auto step_of = [&](const tensor& t) -> const step& { return *by_name.at(t.name); };  // a run of rows has its tensor's
  const tensor_forms forms = [&](const tensor& t) {
    const step& s = step_of(t);
    return packed_view{s.to, t.rows, t.cols, nullptr, s.inputs.empty() ? nullptr : s.inputs.data(), s.factor};
  };
  const weight_source source = [&](const tensor& t) { return apply(t, step_of(t), threads); };
  if (!gguf_) return save_hf(path, model, forms, layout_, source, progress, part_bytes);
  std::unordered_map<std::string_view, std::size_t> weight;  // the format of most weights names the file's type
  std::string_view most = "f32";
  for (const tensor& t : model.tensors) {
    const std::string_view name = step_of(t).to->name;
    if ((weight[name] += t.rows * t.cols) > weight[most]) most = name;
  }
  return save_gguf(path, model, forms, most, source, progress, part_bytes);
}

}  // namespace llm
