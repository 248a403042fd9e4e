// One program that uses the main entry points of every layer; quiet.sh looks at what it needs from the outside.
#include <lowbit/glue/eigen_executor.hpp>
#include <lowbit/glue/eigen_tensor.hpp>
#include <lowbit/lowbit.hpp>

#ifndef WITHOUT_FILES
#include <lowbit/io/checkpoint.hpp>
#include <lowbit/io/gguf_writer.hpp>
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
  calibrated<channel_magnitude, hessian> statistics(weights.cols);
  statistics.add(weights);

#ifdef WITHOUT_FILES
  return path == nullptr ? status(failure{errc::io, "no path"}) : status(done{});
#else
  auto file = mapped_file::open(path);
  if (!file) return std::move(file).error();
  auto gguf = read_gguf(file->bytes());
  if (!gguf) return std::move(gguf).error();
  auto model = safetensors_model::open(path);
  if (!model) return std::move(model).error();
  auto found = read_checkpoint([&](const std::string& name) { return model->find(name); }, "w.weight");
  if (found && !*found) return std::move(*found).error();
  auto out = gguf_writer::create(path, gguf->metadata, gguf->tensors);
  if (!out) return std::move(out).error();
  if (status s = out->commit(); !s) return s;
  auto parts = checkpoint_parts("w.weight", own->weights.view());
  if (!parts) return std::move(parts).error();
  auto tensors = safetensors_writer::create(path, {{"format", "pt"}}, {});
  if (!tensors) return std::move(tensors).error();
  return tensors->commit();
#endif
}
