// `lowbit inspect FILE`: what a GGUF or safetensors file, a model folder or a llama2.c checkpoint holds. Reads headers only.
#include "../files/checkpoint.hpp"
#include "commands.hpp"

#include <lowbit/io/gguf.hpp>
#include <lowbit/io/safetensors.hpp>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>

namespace llm {
namespace {

using json = nlohmann::ordered_json;

struct entry {
  std::string name, type;
  std::vector<std::uint64_t> shape;  // the slowest dimension first
  std::size_t bytes;
};
struct contents {
  std::string kind;
  json metadata = json::object();
  std::vector<entry> tensors;
};

template <class T>
json to_json(const std::vector<T>& array) {
  constexpr std::size_t shown = 8;  // vocabularies are long
  json items = json::array();
  for (std::size_t i = 0; i < array.size() && i < shown; ++i) {
    if constexpr (std::is_same_v<T, lowbit::gguf_boolean>) items.push_back(array[i].value != 0);
    else items.push_back(array[i]);
  }
  return {{"count", array.size()}, {"first", std::move(items)}};
}

lowbit::result<contents> read_gguf_file(const std::string& path) {
  auto file = lowbit::mapped_file::open(path);
  if (!file) return std::move(file).error();
  const auto content = lowbit::read_gguf(file->bytes());
  if (!content) return lowbit::failure{content.error().kind, path + ": " + content.error().message};
  contents c{"GGUF", json::object(), {}};
  auto& entries = c.metadata.get_ref<json::object_t&>();  // keys are unique already, and may be many: not looked for one by one
  for (const auto& e : content->metadata.entries()) {
    if (const auto* scalar = std::get_if<lowbit::gguf_scalar>(&e.value)) std::visit([&](const auto& v) { entries.push_back({e.key, v}); }, *scalar);
    else std::visit([&](const auto& v) { entries.push_back({e.key, to_json(v)}); }, std::get<lowbit::gguf_array>(e.value));
  }
  for (const lowbit::gguf_tensor& t : content->tensors)
    c.tensors.push_back({t.name, std::string{lowbit::find_gguf_type(t.type)->name}, {t.dims.rbegin(), t.dims.rend()}, t.data.size()});
  return c;
}

lowbit::result<contents> read_safetensors_path(const std::string& path) {
  const auto model = lowbit::safetensors_model::open(path);
  if (!model) return lowbit::failure{model.error().kind, model.error().message};
  contents c{"safetensors", json::object(), {}};
  for (const auto& t : model->tensors()) c.tensors.push_back({t.name, t.dtype, t.shape, t.bytes});
  return c;
}

lowbit::result<contents> read_llama2c(const std::string& path, const std::string& tokeniser) {
  const auto model = open_checkpoint(path, tokeniser);
  if (!model) return model.error();
  contents c{model->kind, json::object(), {}};
  for (const tensor& t : model->tensors)
    c.tensors.push_back({t.name, std::string{t.spec->name}, t.is_vector ? std::vector<std::uint64_t>{t.cols} : std::vector<std::uint64_t>{t.rows, t.cols}, t.bytes});
  return c;
}

lowbit::status run(const std::string& path, const common_options& common) {
  std::error_code ignored;
  const std::filesystem::path p{path};
  const bool safetensors = std::filesystem::is_directory(p, ignored) || p.extension() == ".safetensors" || p.extension() == ".json";
  const auto c = safetensors ? read_safetensors_path(path) : p.extension() == ".bin" ? read_llama2c(path, common.tokeniser) : read_gguf_file(path);
  if (!c) return c.error();

  struct total { std::size_t tensors = 0; std::uint64_t elements = 0; std::size_t bytes = 0; };
  std::map<std::string, total> by_type;
  total all;
  for (const entry& e : c->tensors) {
    std::uint64_t elements = 1;
    for (const std::uint64_t d : e.shape) elements *= d;
    for (total* t : {&by_type[e.type], &all}) t->tensors += 1, t->elements += elements, t->bytes += e.bytes;
  }
  const auto bits = [](const total& t) { return t.elements == 0 ? 0.0 : 8.0 * static_cast<double>(t.bytes) / static_cast<double>(t.elements); };
  if (common.json) {
    json tensors = json::array(), types = json::object();
    for (const entry& e : c->tensors) tensors.push_back({{"name", e.name}, {"type", e.type}, {"shape", e.shape}, {"bytes", e.bytes}});
    for (const auto& [type, t] : by_type)
      types[type] = {{"tensors", t.tensors}, {"elements", t.elements}, {"bytes", t.bytes}, {"bits_per_element", bits(t)}};
    const json j{{"kind", c->kind}, {"elements", all.elements}, {"bytes", all.bytes}, {"bits_per_element", bits(all)}, {"types", types},
                 {"metadata", c->metadata}, {"tensors", tensors}};
    print_json(j);
    return lowbit::done{};
  }
  fmt::print("{}\n\n", c->kind);
  for (const auto& [key, value] : c->metadata.items()) {
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > 90) text = text.substr(0, 87) + "...";
    fmt::print("{:<42} {}\n", line_of(key), line_of(text));
  }
  if (!c->metadata.empty()) fmt::print("\n");
  for (const entry& e : c->tensors) {
    std::string shape;
    for (const std::uint64_t d : e.shape) shape += (shape.empty() ? "" : " x ") + std::to_string(d);
    fmt::print("{:<42} {:<8} {:>18} {:>14}\n", line_of(e.name), e.type, shape, e.bytes);
  }
  fmt::print("\n{:<8} {:>8} {:>16} {:>16} {:>14}\n", "type", "tensors", "elements", "bytes", "bits/element");
  for (const auto& [type, t] : by_type) fmt::print("{:<8} {:>8} {:>16} {:>16} {:>14.3f}\n", type, t.tensors, t.elements, t.bytes, bits(t));
  fmt::print("{:<8} {:>8} {:>16} {:>16} {:>14.3f}\n", "all", all.tensors, all.elements, all.bytes, bits(all));
  return lowbit::done{};
}

}  // namespace

void add_inspect(CLI::App& app, const common_options& common, action& chosen) {
  const auto path = std::make_shared<std::string>();
  CLI::App* c = app.add_subcommand("inspect", "What a model file holds: metadata, tensors, sizes");
  c->add_option("file", *path, "A .gguf or .safetensors file, a Hugging Face folder, or a llama2.c .bin")->required();
  c->callback([path, &common, &chosen] { chosen = [path, &common] { return run(*path, common); }; });
}

}  // namespace llm
