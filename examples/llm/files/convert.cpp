#include "convert.hpp"

#include "names.hpp"

#include <lowbit/matrix/dequantise.hpp>
#include <lowbit/matrix/recode.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
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
    for (std::size_t c = 0; c < w.cols; ++c)
      codes[c] = static_cast<std::uint8_t>(128 + (largest > 0.0f ? static_cast<int>(std::nearbyint(w(r, c) * 127.0f / largest)) : 0));
    std::memcpy(out.row(r), &largest, sizeof largest);
    lowbit::write_row_codes(s, codes.data(), w.cols, out.row(r));
  }
  return out;
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
  if (s.heads) {
    if (*s.heads == 0 || t.rows % (2 * *s.heads) != 0) return lowbit::failure{lowbit::errc::shape, "tensor " + t.name + " has rows that are not whole heads"};
    w = weights{reorder_rows(w->view(), *s.heads, order_)};
  }
  if (!s.rows.empty()) w = weights{take_rows(w->view(), s.rows)};
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
  const std::size_t group = t.cols % 128 == 0 ? 128 : t.cols % 64 == 0 ? 64 : 32;
  return &lowbit::uniform_format(width, group, layout_->family->method != "awq", lowbit::number::f16);
}

lowbit::status conversion_plan::decide(const tensor& t, const conversion& how, thread_pool& threads) {
  step& s = steps_[static_cast<std::size_t>(verdicts_.size())];
  // A run of rows at a time, so that a tensor may be larger than memory; what is decided by formats and shapes is by the first.
  const std::vector<tensor> runs = parts_of(t, std::size_t{1} << 22);
  auto source = source_of(runs[0], s);
  if (!source) return std::move(source).error();
  const packed_view w = source->view();
  const auto for_runs = [&](auto&& f) -> lowbit::status {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      if (i == 0) {
        if (lowbit::status done = f(runs[0], w); !done) return done;
        continue;
      }
      auto read = source_of(runs[i], s);
      if (!read) return std::move(read).error();
      if (lowbit::status done = f(runs[i], read->view()); !done) return done;
    }
    return lowbit::done{};
  };
  if (lowbit::status finite = for_runs([&](const tensor&, packed_view run) { return check_finite(t.name, run, threads); }); !finite) return finite;
  verdict v{t.name, std::string{w.spec->name}, {}, s.heads || !s.rows.empty() || s.forget_inputs ? fidelity::permuted : fidelity::exact, true, 0.0};
  const auto fits = [&](const packed_view& form) {  // in the target
    if (form.spec->is_float()) return true;
    if (gguf_) return form.inputs == nullptr && form.cols % form.spec->block == 0 && (form.factor == 1.0 || form.spec == &lowbit::spec_of<lowbit::nvfp4>);
    if (!layout_) return false;
    if (layout_->family == nullptr) return lowbit::detail::bitsandbytes_base(*form.spec) != nullptr && form.inputs == nullptr && form.factor == 1.0 && form.cols % form.spec->block == 0;
    return !lowbit::cannot_hold(*layout_->family, form);
  };
  const auto keep = [&](const packed_view& form) {
    s.to = form.spec;
    s.factor = form.factor;
    if (form.inputs != nullptr) s.inputs.assign(form.inputs, form.inputs + form.cols);
    v.to = form.spec->name;
    return lowbit::done{};
  };
  const auto finish = [&] {
    verdicts_.push_back(std::move(v));
    return lowbit::done{};
  };

  // Floats stay what they are, but where a format is asked for; GGUF has its vectors in float32.
  const bool stays_float = t.is_vector || (w.spec->is_float() && ((!layout_ && !how.format) || (layout_ && is_vocabulary_matrix(t.name))));
  if (w.spec->is_float() && stays_float) {
    keep(w);
    if (t.is_vector && gguf_ && w.spec != &lowbit::spec_of<lowbit::f32>) {
      s.to = &lowbit::spec_of<lowbit::f32>;
      v.to = "f32";
      v.kind = fidelity::wider;
    }
    return finish();
  }
  if (!w.spec->is_float()) {
    std::vector<const format_spec*> tries = candidates(w);
    if (layout_ && is_vocabulary_matrix(t.name)) tries = {&lowbit::spec_of<lowbit::float16>, &lowbit::spec_of<lowbit::bfloat16>, &lowbit::spec_of<lowbit::f32>};
    if (how.format && !layout_) {
      if (!gguf_) tries.clear();  // plain floats of the type that was asked for
      tries.insert(tries.begin(), &lowbit::spec_of_id(*how.format));
    }
    for (const format_spec* to : tries) {
      packed_view form{to, w.rows, w.cols, nullptr, w.inputs, to->is_float() ? 1.0 : w.factor};
      if (to->is_float()) form.inputs = nullptr;
      bool keeps_factor = fits(form);
      if (!keeps_factor && w.factor != 1.0) {
        form.factor = 1.0;
        if (!fits(form)) continue;
      } else if (!keeps_factor) {
        continue;
      }
      bool exact = true, codes_kept = true;
      const step before = s;
      const lowbit::status read = for_runs([&](const tensor& part, packed_view run) -> lowbit::status {
        if (!exact) return lowbit::done{};
        const auto same = carry_over(run, *to, keeps_factor && form.factor != 1.0, threads);
        exact = same && !(layout_ && layout_->family != nullptr && has_unstorable_zero(*layout_->family, same->weights.view()));
        if (!exact) return lowbit::done{};
        codes_kept = codes_kept && same->codes_kept;
        if (&part == &runs[0]) keep(same->weights.view());
        return lowbit::done{};
      });
      if (!read) return read;
      if (!exact || (layout_ && layout_->nested && layout_->family == nullptr)) {  // nested scales are rounded
        s = before;
        if (exact) break;
        continue;
      }
      v.codes_kept = codes_kept;
      if (!codes_kept) v.kind = fidelity::wider;
      return finish();
    }
  }
  // No exact form. The same codes with rounded scales are closer than codes chosen anew.
  v.kind = fidelity::requantised;
  v.codes_kept = false;
  const format_spec* const wanted = fallback(t, w, how);
  s.requantise = true;
  if (layout_ && layout_->nested && layout_->family == nullptr && lowbit::detail::bitsandbytes_base(*w.spec) != nullptr && w.cols % w.spec->block == 0) {
    s.requantise = false;
    v.codes_kept = true;
    keep(w);
    lowbit::packed_matrix nested{*w.spec, w.rows, w.cols};
    std::memcpy(nested.bytes().data(), w.data, w.size_bytes());
    const auto scales = lowbit::nested_scales::of(lowbit::detail::block_scales(w));
    for (std::size_t i = 0; i < scales.codes.size(); ++i) {
      const float value = scales.value(i);
      std::memcpy(nested.bytes().data() + i * w.spec->bytes, &value, sizeof value);
    }
    relative_error error;  // such weights come whole
    error.add(w, nested.view(), threads);
    v.error = error.value();
    return finish();
  }
  if (!w.spec->is_float() && !how.format && gguf_) {
    for (const format_spec* to : candidates(w)) {
      if (to->codes.bits() != w.spec->codes.bits() || w.cols % to->block != 0 || to->values.present() != w.spec->values.present()) continue;
      bool possible = true;
      relative_error error;
      const step before = s;
      const lowbit::status read = for_runs([&](const tensor& part, packed_view run) -> lowbit::status {
        if (!possible) return lowbit::done{};
        const auto rounded = lowbit::recode_rounded(run, *to, threads);
        possible = rounded.has_value();
        if (!possible) return lowbit::done{};
        if (&part == &runs[0]) keep(rounded->view());
        error.add(run, rounded->view(), threads);
        return lowbit::done{};
      });
      if (!read) return read;
      if (!possible) {
        s = before;
        continue;
      }
      s.requantise = false;
      s.rounded = true;
      v.codes_kept = true;
      v.error = error.value();
      return finish();
    }
  }
  s.to = wanted;
  if (wanted->is_float() && gguf_ && !w.spec->is_float()) s.to = &lowbit::spec_of<lowbit::float16>;
  const bool known = lowbit::find_format(s.to->name).has_value() || (layout_ && layout_->family == &lowbit::bitsandbytes_int8);
  if (!known) return lowbit::failure{lowbit::errc::unsupported, "tensor " + t.name + " cannot be quantised to " + std::string{s.to->name}};
  s.factor = layout_ && layout_->family == &lowbit::bitsandbytes_int8 ? lowbit::bitsandbytes_int8.constant : 1.0;
  const packed_view form{s.to, w.rows, w.cols, nullptr, nullptr, s.factor};
  if (!fits(form)) {
    const std::string why = layout_ && layout_->family != nullptr ? lowbit::cannot_hold(*layout_->family, form).value_or("") : "it does not hold " + std::string{s.to->name};
    return lowbit::failure{lowbit::errc::unsupported, "tensor " + t.name + " cannot be written to " + how.target + ": " + why};
  }
  relative_error error;
  const step how_to = s;
  const lowbit::status made = for_runs([&](const tensor& part, packed_view run) -> lowbit::status {
    const auto out = apply(part, how_to, threads);
    if (!out) return out.error();
    if (&part == &runs[0]) keep(out->view());
    error.add(run, out->view(), threads);
    return lowbit::done{};
  });
  if (!made) return made;
  s.requantise = true;
  v.error = error.value();
  if (w.spec->is_float() && s.to->is_float() && v.error == 0.0) v.kind = w.spec->bytes < s.to->bytes ? fidelity::wider : fidelity::exact;
  return finish();
}

lowbit::result<conversion_plan> conversion_plan::make(checkpoint& model, const conversion& how, thread_pool& threads) {
  conversion_plan p;
  p.gguf_ = how.target == "gguf";
  p.layout_ = lowbit::find_layout(how.target);
  if (!p.gguf_ && how.target != "hf" && !p.layout_) {
    std::string known = "gguf, hf";
    for (const std::string_view name : lowbit::layout_names()) known.append(", ").append(name);
    return lowbit::failure{lowbit::errc::unsupported, "unknown target '" + how.target + "'; there are " + known};
  }
  if (how.format && p.gguf_ && !in_gguf(*how.format))
    return lowbit::failure{lowbit::errc::unsupported, "GGUF does not hold " + std::string{lowbit::spec_of_id(*how.format).name}};
  if (lowbit::status valid = check_model(model); !valid) return std::move(valid).error();
  p.order_ = p.gguf_ ? rope_order::pairs : rope_order::halves;
  p.steps_.resize(model.tensors.size());
  std::unordered_map<std::string_view, std::size_t> index;
  for (std::size_t i = 0; i < model.tensors.size(); ++i) index.emplace(model.tensors[i].name, i);
  if (p.order_ != model.config.rope)
    for (std::size_t i = 0; i < model.tensors.size(); ++i) {
      if (is_query(model.tensors[i].name)) p.steps_[i].heads = model.config.heads;
      if (is_key(model.tensors[i].name)) p.steps_[i].heads = model.config.kv_heads;
    }
  // A down projection's inputs are gate's and up's rows: where it has them out of order and the target cannot say so, the rows move.
  const bool says_order = p.layout_ && p.layout_->family != nullptr && !p.layout_->family->index.empty();
  for (std::size_t layer = 0; layer < model.config.layers && !model.layout.empty() && !says_order && how.target != "hf"; ++layer) {
    const std::size_t down = index.at(layer_name(layer, "ffn_down.weight"));
    auto w = model.tensors[down].read();
    if (!w) return std::move(w).error();
    if (w->view().inputs == nullptr) continue;
    const std::vector<std::uint32_t> order{w->view().inputs, w->view().inputs + w->view().cols};
    p.steps_[down].forget_inputs = true;
    for (const char* producer : {"ffn_gate.weight", "ffn_up.weight"}) p.steps_[index.at(layer_name(layer, producer))].rows = order;
  }
  for (std::size_t i = 0; i < model.tensors.size(); ++i)
    if (p.steps_[i].heads || !p.steps_[i].rows.empty()) model.tensors[i].read_rows = nullptr;  // rows that move are only there all together
  for (const tensor& t : model.tensors)
    if (lowbit::status s = p.decide(t, how, threads); !s) return std::move(s).error();
  model.config.rope = p.order_;
  return p;
}

lowbit::result<std::size_t> conversion_plan::save(const std::string& path, const checkpoint& model, thread_pool& threads, const save_progress& progress) const {
  std::unordered_map<std::string_view, const step*> by_name;
  for (std::size_t i = 0; i < steps_.size(); ++i) by_name.emplace(model.tensors[i].name, &steps_[i]);
  const auto step_of = [&](const tensor& t) -> const step& { return *by_name.at(t.name); };  // a run of rows has its tensor's
  const tensor_forms forms = [&](const tensor& t) {
    const step& s = step_of(t);
    return packed_view{s.to, t.rows, t.cols, nullptr, s.inputs.empty() ? nullptr : s.inputs.data(), s.factor};
  };
  const weight_source source = [&](const tensor& t) { return apply(t, step_of(t), threads); };
  if (!gguf_) return save_hf(path, model, forms, layout_, source, progress);
  std::unordered_map<std::string_view, std::size_t> weight;  // the format of most weights names the file's type
  std::string_view most = "f32";
  for (const tensor& t : model.tensors) {
    const std::string_view name = step_of(t).to->name;
    if ((weight[name] += t.rows * t.cols) > weight[most]) most = name;
  }
  return save_gguf(path, model, forms, most, source, progress);
}

}  // namespace llm
