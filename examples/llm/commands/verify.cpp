// `lowbit verify FILE`: a GGUF or safetensors file, or a folder of them, looked at to the last byte: its structure, every weight, and a hash
// of every tensor. Tensors that make a quantised weight together are looked at as that weight, and a whole model is opened as by who runs it.
#include "commands.hpp"
#include "progress.hpp"

#include "../engine/thread_pool.hpp"
#include "../files/build.hpp"
#include "../files/hf.hpp"
#include "../text/tokeniser.hpp"

#include <lowbit/io/gguf_model.hpp>
#include <lowbit/io/integrity.hpp>
#include <lowbit/io/panel_cache.hpp>
#include <lowbit/io/safetensors.hpp>
#include <lowbit/io/sha256.hpp>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <mutex>

namespace llm {
namespace {

using json = nlohmann::ordered_json;

struct options {
  std::string path;
  bool allow_zero_blocks = false;
};

/// A tensor of any file: rows of a format where it has weights, bytes in any case.
struct subject {
  std::string name, type;                       // no name: all of the file
  std::vector<std::uint64_t> shape;             // the slowest dimension first
  std::size_t bytes = 0;
  const lowbit::format_spec* spec = nullptr;    // null: integers and other types without weights
  std::size_t rows = 0, cols = 0;
  std::function<lowbit::result<lowbit::mapped_file>(std::size_t first, std::size_t bytes)> map;
  std::function<lowbit::result<lowbit::weight_findings>()> weight{};  // not a tensor, but what several make
};

struct verdict {
  std::string sha256, problem;
  bool is_damage = true;  // the problem: not only something that lowbit cannot run
  lowbit::weight_findings found;
};

/// The model that the tensors make, opened as `generate` does. One that lowbit does not run is not damaged.
subject whole_model(const std::string& path) {
  subject s;
  s.weight = [path]() -> lowbit::result<lowbit::weight_findings> {
    const auto model = open_checkpoint(path);
    if (!model) return model.error();
    const auto in_file = [&](const lowbit::failure& f) { return lowbit::failure{f.kind, path + ": " + f.message}; };
    if (const auto words = tokeniser::from(model->words); !words) return in_file(words.error());
    if (const lowbit::status valid = check_model(*model); !valid) return in_file(valid.error());
    return lowbit::weight_findings{};
  };
  return s;
}

/// The checksums that a cache of panels has of its own, whatever model it is for.
subject whole_cache(const std::string& path, std::string source) {
  subject s;
  s.weight = [path, source = std::move(source)]() -> lowbit::result<lowbit::weight_findings> {
    const auto cache = lowbit::panel_cache::open(path, source);
    if (!cache) return cache.error();
    if (const lowbit::status whole = cache->check(); !whole) return lowbit::failure{whole.error().kind, path + ": " + whole.error().message};
    return lowbit::weight_findings{};
  };
  return s;
}

/// Bytes behind a GGUF file's last tensor that are more than its padding.
std::vector<subject> bytes_behind(const std::string& path, const lowbit::gguf_model& model) {
  const std::size_t alignment = model.metadata().find<std::uint32_t>("general.alignment").value_or(32);
  const auto files = files_of(path);
  std::vector<std::size_t> ends(model.parts());
  for (const lowbit::gguf_model::tensor& t : model.tensors()) ends[t.file] = lowbit::round_up(t.offset + t.bytes, alignment);
  std::vector<subject> all;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    std::error_code unknown;
    const std::size_t size = std::filesystem::file_size(files[i], unknown);
    if (ends[i] == 0 || unknown || size <= ends[i]) continue;
    all.emplace_back().weight = [file = files[i].string(), count = size - ends[i]]() -> lowbit::result<lowbit::weight_findings> {
      return lowbit::failure{lowbit::errc::malformed, fmt::format("{}: has bytes behind its last tensor: {}", file, count)};
    };
  }
  return all;
}

lowbit::result<std::vector<subject>> open_gguf_subjects(const std::string& path) {
  auto opened = lowbit::gguf_model::open(path);
  if (!opened) return std::move(opened).error();
  const auto model = std::make_shared<const lowbit::gguf_model>(*std::move(opened));
  std::vector<subject> all = bytes_behind(path, *model);
  const lowbit::gguf_metadata& m = model->metadata();
  // Not an adapter or an importance matrix, which say so, nor a vocabulary alone.
  if (m.find("general.architecture") != nullptr && (m.find("general.type") == nullptr || m.find<std::string>("general.type") == "model") && !model->tensors().empty())
    all.push_back(whole_model(path));
  if (m.find<std::string>("general.type") == "lowbit.panels") all.push_back(whole_cache(path, m.find<std::string>("lowbit.source").value_or("")));
  for (const lowbit::gguf_model::tensor& t : model->tensors()) {
    subject s;
    s.name = t.name;
    s.type = lowbit::find_gguf_type(t.type)->name;
    s.shape.assign(t.dims.rbegin(), t.dims.rend());
    s.bytes = t.bytes;
    if (const auto format = lowbit::find_gguf_format(static_cast<int>(t.type)); format && !t.dims.empty()) {
      s.spec = &lowbit::spec_of_id(*format);
      s.cols = static_cast<std::size_t>(t.dims[0]);
      s.rows = static_cast<std::size_t>(t.elements()) / s.cols;
    }
    s.map = [model, &t](std::size_t first, std::size_t bytes) { return model->map(t, first, bytes); };
    all.push_back(std::move(s));
  }
  return all;
}

/// The quantised weight of a module, where there is one; `expected`: there has to be one.
subject quantised_weight(std::shared_ptr<const lowbit::safetensors_model> model, const std::string& module, bool expected,
                         const lowbit::quantisation_config& settings) {
  subject s;
  s.name = module;
  s.weight = [model = std::move(model), module, expected, settings]() -> lowbit::result<lowbit::weight_findings> {
    lowbit::safetensors_parts parts(*model);
    const auto found = find_quantised(parts, module, settings);
    if (!found && expected) return lowbit::failure{lowbit::errc::not_found, "module '" + module + "' has codes, but not what would make them a weight"};
    if (!found) return lowbit::weight_findings{};
    if (!*found) return found->error();
    lowbit::serial_executor serial;
    const auto w = (*found)->read(serial);
    if (!w) return w.error();
    return lowbit::find_in_weights(w->view(), lowbit::kernel::best_unit());
  };
  return s;
}

/// A part of a weight that has no codes.
subject orphan(const std::string& name) {
  subject s;
  s.name = name;
  s.weight = [name]() -> lowbit::result<lowbit::weight_findings> {
    return lowbit::failure{lowbit::errc::not_found, "tensor '" + name + "' belongs to a weight whose codes are missing"};
  };
  return s;
}

lowbit::result<std::vector<subject>> open_safetensors_subjects(const std::string& path) {
  auto opened = lowbit::safetensors_model::open(path);
  if (!opened) return std::move(opened).error();
  const auto model = std::make_shared<const lowbit::safetensors_model>(*std::move(opened));
  std::error_code ignored;
  auto settings = std::filesystem::is_directory(path, ignored) ? read_quantisation(path) : lowbit::quantisation_config{};
  if (!settings && settings.error().kind != lowbit::errc::unsupported) return settings.error();
  // A shard may lack what another one has; of a method that is not read nothing is known.
  const bool is_shard = !std::filesystem::is_directory(path, ignored) && std::filesystem::path{path}.filename().string().find("-of-") != std::string::npos;
  const bool whole = settings && !is_shard;
  const auto module_with = [&](const lowbit::safetensor& t) { return whole && !lowbit::is_checkpoint_part(t.name) ? module_of(*model, t) : std::nullopt; };
  std::map<std::string, bool, std::less<>> modules;  // whether the configuration says that such integers are codes
  for (const lowbit::safetensors_model::tensor& t : model->tensors())
    if (auto module = module_with(t)) modules.emplace(*std::move(module), !settings->method.empty() && (t.dtype == "I8" || t.dtype == "U8" || t.dtype == "I32"));
  const auto has_codes = [&](std::string_view part) {  // m.scales, m_scales and m.weight.absmax are parts of m
    for (std::size_t end = part.find_first_of("._"); end != part.npos; end = part.find_first_of("._", end + 1))
      if (modules.contains(part.substr(0, end))) return true;
    return false;
  };
  std::vector<subject> all;
  if (std::filesystem::exists(std::filesystem::path{path} / "config.json", ignored)) all.push_back(whole_model(path));
  for (const auto& [module, expected] : modules) all.push_back(quantised_weight(model, module, expected, *settings));
  for (const lowbit::safetensors_model::tensor& t : model->tensors()) {
    const bool is_part = !modules.empty() && lowbit::is_checkpoint_part(t.name);
    if (is_part && !has_codes(t.name)) all.push_back(orphan(t.name));
    subject s{t.name, t.dtype, t.shape, t.bytes, is_part || module_with(t) ? nullptr : float_format(t.dtype), 1, 1, {}};
    if (!t.shape.empty()) s.cols = static_cast<std::size_t>(t.shape.back());
    for (std::size_t i = 0; i + 1 < t.shape.size(); ++i) s.rows *= static_cast<std::size_t>(t.shape[i]);
    s.map = [model, &t](std::size_t first, std::size_t bytes) { return model->map(t, first, bytes); };
    all.push_back(std::move(s));
  }
  return all;
}

/// Reads the tensor once, some rows at a time.
lowbit::result<verdict> examine(const subject& s) {
  constexpr std::size_t at_once = std::size_t{16} << 20;
  const std::size_t row = s.spec != nullptr ? s.spec->row_bytes(s.cols) : 1, step = std::max<std::size_t>(1, at_once / std::max<std::size_t>(row, 1)) * row;
  verdict v;
  if (s.weight) {
    auto found = s.weight();
    if (found) v.found = *std::move(found);
    else v.problem = found.error().message, v.is_damage = found.error().kind != lowbit::errc::unsupported || !s.name.empty();
    return v;
  }
  lowbit::sha256 hash;
  for (std::size_t at = 0; at < s.bytes; at += step) {
    const std::size_t bytes = std::min(step, s.bytes - at);
    auto part = s.map(at, bytes);
    if (!part) return std::move(part).error();
    const auto data = part->bytes();
    hash.update(data);
    if (s.spec != nullptr) v.found.append(lowbit::find_in_weights({s.spec, bytes / row, s.cols, data.data()}, lowbit::kernel::best_unit()), at / row);
  }
  v.sha256 = hash.finish();
  return v;
}

/// One line for each kind of finding of a tensor.
std::vector<std::pair<std::string, bool>> lines_of(const subject& s, const verdict& v, bool allow_zero_blocks) {
  std::vector<std::pair<std::string, bool>> lines;
  const lowbit::weight_findings& f = v.found;
  if (!v.problem.empty()) lines.emplace_back(v.problem, v.is_damage);
  const bool floats = s.spec != nullptr && s.spec->is_float();
  const auto add = [&](const lowbit::weight_findings::kind& k, const char* things, const char* what, bool counts) {
    if (k.count != 0)
      lines.emplace_back(fmt::format("{}: {} {} {}, the first at row {}, column {}", s.name, k.count, things, what, k.row, k.col), counts);
  };
  add(f.not_finite, floats ? "weights" : "blocks", floats ? "are NaN or infinite" : "have a scale or minimum that is NaN or infinite", true);
  add(f.out_of_range, "blocks", "have a code, zero-point or scale out of range", true);
  if (s.shape.size() != 1) add(f.zero, floats ? "rows" : "blocks", "are all zero", !allow_zero_blocks);  // as biases often are
  return lines;
}

lowbit::status run(const options& o, const common_options& common) {
  std::error_code ignored;
  const std::filesystem::path p{o.path};
  const bool safetensors = std::filesystem::is_directory(p, ignored) || (!begins_as_gguf(p) && (p.extension() == ".safetensors" || p.extension() == ".json"));
  const auto subjects = safetensors ? open_safetensors_subjects(o.path) : open_gguf_subjects(o.path);
  if (!subjects) return subjects.error();

  thread_pool threads{common.threads};
  std::vector<verdict> verdicts(subjects->size());
  std::optional<lowbit::failure> problem;
  std::mutex guard;
  progress bar{"verifying"};
  std::size_t looked_at = 0;
  threads.run(subjects->size(), [&](std::size_t i) {
    auto v = examine((*subjects)[i]);
    const std::lock_guard lock{guard};
    bar(++looked_at, subjects->size());
    if (v) verdicts[i] = *std::move(v);
    else problem = std::move(v).error();
  });
  bar.clear();
  if (problem) return *problem;

  std::size_t findings = 0, tensor_count = 0;
  json tensors = json::array(), list = json::array();
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < subjects->size(); ++i) {
    const subject& s = (*subjects)[i];
    if (!s.weight) {
      ++tensor_count;
      tensors.push_back({{"name", s.name}, {"type", s.type}, {"shape", s.shape}, {"bytes", s.bytes}, {"sha256", verdicts[i].sha256}});
      if (!common.json) fmt::print("{}  {:<8} {}\n", verdicts[i].sha256, s.type, line_of(s.name));
    }
    for (auto& [line, counts] : lines_of(s, verdicts[i], o.allow_zero_blocks)) {
      findings += counts;
      list.push_back({{"tensor", s.name.empty() ? json() : json(s.name)}, {"what", line}, {"is_error", counts}});
      lines.push_back(std::move(line));
    }
  }
  if (common.json) {
    print_json(json{{"file", o.path}, {"tensors", tensors}, {"findings", list}});
  } else {
    for (const std::string& line : lines) fmt::print("{}\n", line_of(line));
  }
  if (findings != 0) return lowbit::failure{lowbit::errc::bad_value, fmt::format("{}: {} finding{} in {} tensors", o.path, findings, findings == 1 ? "" : "s", tensor_count)};
  if (!common.json) fmt::print("{}: {} tensors, nothing found\n", o.path, tensor_count);
  return lowbit::done{};
}

}  // namespace

void add_verify(CLI::App& app, const common_options& common, action& chosen) {
  const auto o = std::make_shared<options>();
  CLI::App* c = app.add_subcommand("verify", "Check a model file to the last byte, and hash its tensors");
  c->add_option("file", o->path, "A .gguf or .safetensors file, or a Hugging Face folder")->required();
  c->add_flag("--allow-zero-blocks", o->allow_zero_blocks, "Blocks of nothing but zeros are normal in this model: say how many, without an error");
  c->callback([o, &common, &chosen] { chosen = [o, &common] { return run(*o, common); }; });
}

}  // namespace llm
