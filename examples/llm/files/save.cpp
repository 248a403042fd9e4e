#include "save.hpp"

#include "build.hpp"
#include "names.hpp"
#include "save_formats.hpp"

#include <lowbit/io/checkpoint.hpp>
#include <lowbit/matrix/non_finite.hpp>

namespace llm {

container container_of(const checkpoint& model, lowbit::format_id format) {
  if (in_gguf(format)) return container::gguf;
  container c = container::none;
  for (const tensor& t : model.tensors) {
    if (target_format(t, format) != format) continue;
    const auto layout = lowbit::layout_for_format(lowbit::spec_of_id(format), t.cols);
    if (!layout) return container::none;
    c = layout->family == nullptr ? container::bitsandbytes : container::compressed_tensors;
  }
  return c;
}

tensor_forms target_forms(lowbit::format_id format) {
  return [format](const tensor& t) { return lowbit::packed_view{&lowbit::spec_of_id(target_format(t, format)), t.rows, t.cols}; };
}

std::string_view name_of(container c) noexcept {
  constexpr std::string_view names[] = {"", "gguf", "bitsandbytes", "compressed-tensors"};
  return names[static_cast<std::size_t>(c)];
}

requantisation plan_for(checkpoint& model, lowbit::format_id format, lowbit::method method) {
  requantisation how{format, method, {}, model.config.head_dim};
  const container c = container_of(model, format);
  const rope_order order = c == container::none ? model.config.rope : c == container::gguf ? rope_order::pairs : rope_order::halves;
  if (order != model.config.rope) how.reorder = order;
  model.config.rope = order;
  return how;
}

namespace {
lowbit::result<weights> run_to_write(const tensor& run, const weight_source& source) {
  auto w = source(run);
  if (!w && run.first_row != 0) return lowbit::failure{w.error().kind, w.error().message + ", counting rows from " + std::to_string(run.first_row)};
  if (!w) return w;
  auto bad = lowbit::find_non_finite(w->view());
  if (!bad) return w;
  bad->row += run.first_row;
  const lowbit::failure f = lowbit::non_finite(*bad);
  return in_tensor(run.name, {f.kind, "cannot be written in " + std::string{w->view().spec->name} + ": " + f.message});
}
}  // namespace

lowbit::status write_runs(const tensor& t, const weight_source& source, const run_writer& write) {
  for (const tensor& run : runs_of(t)) {
    const auto w = run_to_write(run, source);
    if (!w) return w.error();
    if (lowbit::status done = write(run, w->view()); !done) return done;
  }
  return lowbit::done{};
}

lowbit::status check_parent(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path parent = path.parent_path();
  if (parent.empty() || std::filesystem::is_directory(parent, ignored)) return lowbit::done{};
  return lowbit::failure{lowbit::errc::io, "cannot write " + path.string() + ": there is no folder " + parent.string()};
}

lowbit::status check_output(const std::filesystem::path& path, const checkpoint& model) {
  std::error_code ignored;  // what is not there is not the same
  for (const std::filesystem::path& input : model.files)
    if (std::filesystem::equivalent(path, input, ignored))
      return lowbit::failure{lowbit::errc::bad_value, path.string() + ": is not written, as it would replace " + input.string() + ", which is read"};
  return lowbit::done{};
}

lowbit::status check_destination(const std::string& path, const checkpoint& model, bool is_gguf, std::size_t part_bytes) {
  if (!is_gguf) {
    const auto folder = target_folder(path);
    return folder ? lowbit::status{lowbit::done{}} : folder.error();
  }
  if (lowbit::status there = check_parent(path); !there || part_bytes != 0) return there;  // parts have names of their own
  return check_output(path, model);
}

lowbit::status check_target(const std::string& path, const checkpoint& model, lowbit::format_id format, std::size_t part_bytes) {
  const container into = container_of(model, format);
  const std::string name{lowbit::spec_of_id(format).name};
  if (into == container::gguf) return check_destination(path, model, true, part_bytes);
  if (into == container::none) return lowbit::failure{lowbit::errc::unsupported, "no file that lowbit writes holds this model in " + name};
  if (path.ends_with(".gguf")) return lowbit::failure{lowbit::errc::bad_value, path + " names a GGUF file, which does not hold " + name + "; that is written as a folder"};
  return check_destination(path, model, false);
}

lowbit::result<std::size_t> save_model(const std::string& path, const checkpoint& model, lowbit::format_id format,
                                       const weight_source& source, const save_progress& progress, std::size_t part_bytes) {
  if (lowbit::status valid = check_model(model); !valid) return std::move(valid).error();
  if (lowbit::status possible = check_target(path, model, format, part_bytes); !possible) return std::move(possible).error();
  const lowbit::format_spec& spec = lowbit::spec_of_id(format);
  if (container_of(model, format) == container::gguf) return save_gguf(path, model, target_forms(format), spec.name, source, progress, part_bytes);
  return save_hf(path, model, target_forms(format), *lowbit::layout_for_format(spec, spec.block), source, progress, part_bytes);
}

}  // namespace llm
