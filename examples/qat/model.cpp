#include "model.hpp"

namespace qat {
namespace {

std::vector<std::string> names_of(const llm::checkpoint& model) { return parameter_names(model.config, model.find("output.weight") == nullptr); }

}  // namespace

lowbit::result<parameters<float>> read_parameters(const llm::checkpoint& model, const llm::requantisation& how, llm::thread_pool& threads) {
  if (lowbit::status valid = llm::check_model(model); !valid) return std::move(valid).error();
  parameters<float> p;
  for (const std::string& name : names_of(model)) {
    const auto w = llm::read_floats(*model.find(name), how, threads);
    if (!w) return w.error();
    const lowbit::packed_view v = w->view();
    const auto rows = static_cast<Eigen::Index>(v.rows), cols = static_cast<Eigen::Index>(v.cols);
    p.push_back(Eigen::Map<const matrix<float>>(reinterpret_cast<const float*>(v.data), rows, cols));
  }
  return p;
}

std::vector<const lowbit::format_spec*> parameter_formats(const llm::checkpoint& model, lowbit::format_id format) {
  std::vector<const lowbit::format_spec*> specs;
  for (const std::string& name : names_of(model)) specs.push_back(&lowbit::spec_of_id(llm::target_format(*model.find(name), format)));
  return specs;
}

llm::checkpoint with_weights(llm::checkpoint model, std::vector<lowbit::packed_matrix> weights) {
  const auto kept = std::make_shared<const std::vector<lowbit::packed_matrix>>(std::move(weights));
  const auto names = names_of(model);
  LOWBIT_EXPECTS(kept->size() == names.size());
  for (llm::tensor& t : model.tensors) {
    const lowbit::packed_matrix* const w = &(*kept)[static_cast<std::size_t>(std::find(names.begin(), names.end(), t.name) - names.begin())];
    t.spec = &w->spec();
    t.bytes = w->bytes().size();
    t.read = [kept, w]() -> lowbit::result<llm::weights> { return llm::weights{w->view()}; };
    t.read_rows = {};
  }
  return model;
}

}  // namespace qat
