// One program that uses the main entry points of every layer; quiet.sh looks at what it needs from the outside.
#include <lowbit/glue/eigen_executor.hpp>
#include <lowbit/glue/eigen_tensor.hpp>
#include <lowbit/adapt/closest_low_rank.hpp>
#include <lowbit/lowbit.hpp>

#ifndef WITHOUT_FILES
#include <lowbit/io/checkpoint.hpp>
#include <lowbit/io/gguf_adapter.hpp>
#include <lowbit/io/gguf_writer.hpp>
#include <lowbit/io/integrity.hpp>
#include <lowbit/io/panel_cache.hpp>
#include <lowbit/io/peft_adapter.hpp>
#include <lowbit/io/safetensors_writer.hpp>
#endif

using namespace lowbit;

struct q3_g40 {
  static constexpr format_spec spec = uniform({.bits = 3, .group = 40});
};

status everything(matrix_view<const float> weights, const char* path);
status everything(matrix_view<const float> weights, const char* path) {
  serial_executor serial;
  auto own = rtn<q3_g40, mse_search<20>>::quantise(weights);
  if (!own) return std::move(own).error();
  auto packed = quantise(*find_format("q4_k"), method::rtn, weights, serial);
  if (!packed) return std::move(packed).error();
  const auto unit = kernel::unit_for<simd::native, q3_g40, q4_k>();
  const panel_matrix panels = panel_matrix::from(packed->view(), serial, unit);
  workspace space;
  std::vector<float> y(weights.rows * weights.rows);
  multiply(weights, panels, {y.data(), weights.rows, weights.rows}, space);
  calibrated<channel_magnitude, channel_maximum, hessian> statistics(weights.cols);
  statistics.add(weights);
  auto scaled = quantiser<q3_g40, minmax, round_nearest, smooth_quant<>, activation_aware_scaling>::quantise(weights, statistics);
  if (!scaled) return std::move(scaled).error();
  auto apart = quantise_with_outliers(spec_of<q8_0>, weights, outlier_channels(statistics.get<channel_maximum>()), serial, statistics);
  if (!apart) return std::move(apart).error();
  auto faked = fake_quantiser<learnt_step_and_offset>::fitted(spec_of<q3_g40>, weights);
  if (!faked) return std::move(faked).error();
  fake_gradients of_steps;
  std::vector<float> seen(weights.rows * weights.cols);
  const matrix_view<float> values(seen.data(), weights.rows, weights.cols);
  if (status s = faked->forward(weights, values); !s) return s;
  if (status s = faked->backward(weights, values, values, of_steps); !s) return s;
  if (auto exported = faked->pack(weights); !exported) return std::move(exported).error();
  if (status s = fake_activations<parameterised_clip>::clipped_at(unsigned_levels(4), 6.0f).forward(weights, values); !s) return s;
  growing_panels keys(spec_of<q8_0>, weights.cols, weights.rows, kernel::best_unit());
  growing_rows kept(spec_of<q8_0>, weights.cols, weights.rows);
  if (status s = keys.append(weights, serial); !s) return s;
  if (status s = kept.append(weights, serial); !s) return s;
  transposed_workspace sums;
  multiply_transposed({y.data(), weights.rows, weights.rows}, kept.view(), {y.data(), weights.rows, weights.cols}, sums, serial);
  adapter a;
  low_rank_factors& factors = a.weights["w"] = closest_low_rank(weights, &statistics.get<hessian>(), serial);
  const low_rank ready = low_rank::from(factors, serial);
  const low_rank* const list[] = {&ready};
  adapter_workspace adapters;
  const adapted_product beside{{weights, &panels, {y.data(), weights.rows, weights.rows}}, list};
  multiply(std::span(&beside, 1), {}, adapters, serial);
  factors = sum_of(std::span(&factors, 1));
  if (measure_survival(weights, weights, factors, nullptr, serial).is_weak())
    if (auto exact = merge_offsets(factors, *packed); !exact) return std::move(exact).error();
  const rotation turned(weights.rows, 1);
  turned.rotate_rows({y.data(), 1, weights.rows}, serial);
  const std::vector<allocated_tensor> tensors{{"w", {{id_of<q4_k>(), 1.0, packed->bytes().size()}}}};
  if (auto chosen = allocate(tensors, 1000); !chosen) return std::move(chosen).error();
  if (mix_format(mix::q4_k_m, "output.weight", 2, weights.cols, {})) own = std::move(scaled);

#ifdef WITHOUT_FILES
  return path == nullptr ? status(failure{errc::io, "no path"}) : status(done{});
#else
  auto file = mapped_file::open(path);
  if (!file) return std::move(file).error();
  if (status s = write_gguf_adapter(path, a); !s) return s;
  if (auto read = read_gguf_adapter(file->bytes()); !read) return std::move(read).error();
  if (status s = write_peft_adapter(path, a, "base"); !s) return s;
  if (auto read = read_peft_adapter(path); !read) return std::move(read).error();
  auto gguf = read_gguf(file->bytes());
  if (!gguf) return std::move(gguf).error();
  auto split = gguf_model::open(path);
  if (!split) return std::move(split).error();
  const panel_cache::entry entry{"w", &panels};
  if (status s = panel_cache::write(path, "source", std::span(&entry, 1)); !s) return s;
  auto cache = panel_cache::open(path, "source");
  if (!cache) return std::move(cache).error();
  (void)find_in_weights(packed->view(), unit);
  auto model = safetensors_model::open(path);
  if (!model) return std::move(model).error();
  safetensors_parts mapped(*model);
  auto found = find_weight([&](const std::string& name) { return mapped.find(name); }, "w");
  if (found && !*found) return std::move(*found).error();
  if (found)
    if (auto read = (*found)->read(serial); !read) return std::move(read).error();
  auto out = gguf_writer::create(path, gguf->metadata, gguf->tensors);
  if (!out) return std::move(out).error();
  if (status s = out->commit(); !s) return s;
  auto parts = checkpoint_parts("w", own->weights.view(), *find_layout("compressed-tensors"));
  if (!parts) return std::move(parts).error();
  auto file_tensors = safetensors_writer::create(path, {{"format", "pt"}}, {});
  if (!file_tensors) return std::move(file_tensors).error();
  return file_tensors->commit();
#endif
}
