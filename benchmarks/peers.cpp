// lowbit beside ggml: the same bytes of weights, the same activations, the same threads, in turns within one process.
//
//   peers [part of a name]...      runs the rows whose names hold one of the parts: TYPE/MxK/tokens/threads, such as q4_0/4096x4096/1/1
//
// For every type that both have, ggml multiplies the weights as its files hold them and, where it has a layout of its own for this machine
// (its "extra buffers"), in that too; the faster one counts. One-token rows rotate through more memory than caches hold. Shares are of the
// bandwidth of reads (one token), or of the peak of integer dots, both measured here.
#include "pinned_executor.hpp"
#include "roofs.hpp"
#include "workload.hpp"

#include <lowbit/matrix/product.hpp>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

using namespace lowbit;
using bench::shape;

namespace {

struct deleter {
  void operator()(ggml_context* c) const { ggml_free(c); }
  void operator()(ggml_backend_buffer* b) const { ggml_backend_buffer_free(b); }
  void operator()(ggml_backend* b) const { ggml_backend_free(b); }
  void operator()(ggml_threadpool* p) const { ggml_threadpool_free(p); }
};
template <class T>
using owned = std::unique_ptr<T, deleter>;

/// ggml's name for a type, as lowbit has it.
std::string name_of(ggml_type type) {
  std::string name = ggml_type_name(type);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

std::optional<ggml_type> type_of(std::string_view name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i)
    if (const auto type = static_cast<ggml_type>(i); ggml_type_name(type) != nullptr && ggml_blck_size(type) > 0 && name_of(type) == name) return type;
  return std::nullopt;
}

/// y = x Wᵀ in ggml, W in `copies` places.
class ggml_product {
 public:
  ggml_product(ggml_backend_buffer_type_t where, ggml_type type, const packed_matrix& w, shape n, std::size_t tokens, std::size_t threads,
               std::size_t copies, const std::vector<float>& x)
      : backend_(ggml_backend_cpu_init()), weights_(context(copies)), values_(context(1 + copies)) {
    ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(threads));
    const std::vector<int>& processors = bench::processors();
    for (std::size_t i = 0; i < threads; ++i) params.cpumask[processors[i % processors.size()]] = true;
    params.strict_cpu = true;
    params.poll = 100;
    pool_.reset(ggml_threadpool_new(&params));
    ggml_backend_cpu_set_n_threads(backend_.get(), static_cast<int>(threads));
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());

    const auto cols = static_cast<std::int64_t>(n.cols), rows = static_cast<std::int64_t>(n.rows);
    std::vector<ggml_tensor*> each;
    for (std::size_t i = 0; i < copies; ++i) each.push_back(ggml_new_tensor_2d(weights_.get(), type, cols, rows));
    weight_memory_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), where));
    if (weight_memory_ == nullptr) return;
    ggml_backend_buffer_set_usage(weight_memory_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_tensor* const input = ggml_new_tensor_2d(values_.get(), GGML_TYPE_F32, cols, static_cast<std::int64_t>(tokens));
    for (ggml_tensor* t : each) {
      outputs_.push_back(ggml_mul_mat(values_.get(), t, input));
      graphs_.push_back(ggml_new_graph_custom(values_.get(), 8, false));
      ggml_build_forward_expand(graphs_.back(), outputs_.back());
    }
    if (!ggml_backend_supports_op(backend_.get(), outputs_[0])) return;
    for (ggml_tensor* t : each) ggml_backend_tensor_set(t, w.bytes().data(), 0, w.bytes().size());
    value_memory_.reset(ggml_backend_alloc_ctx_tensors_from_buft(values_.get(), ggml_backend_cpu_buffer_type()));
    ggml_backend_tensor_set(input, x.data(), 0, x.size() * sizeof(float));
  }

  /// Whether this place holds weights of this type and multiplies them.
  [[nodiscard]] bool works() const { return value_memory_ != nullptr; }
  void begin() { ggml_threadpool_resume(pool_.get()); }
  void run() { ggml_backend_graph_compute(backend_.get(), graphs_[turn_++ % graphs_.size()]); }
  void end() { ggml_threadpool_pause(pool_.get()); }
  [[nodiscard]] std::vector<float> result() const {
    std::vector<float> y(static_cast<std::size_t>(ggml_nelements(outputs_[0])));
    ggml_backend_tensor_get(outputs_[0], y.data(), 0, y.size() * sizeof(float));
    return y;
  }

 private:
  static owned<ggml_context> context(std::size_t tensors) {
    const std::size_t each = ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false);
    return owned<ggml_context>(ggml_init({(tensors + 1) * each * 2, nullptr, true}));
  }

  owned<ggml_threadpool> pool_;
  owned<ggml_backend> backend_;
  owned<ggml_context> weights_, values_;
  owned<ggml_backend_buffer> weight_memory_, value_memory_;
  std::vector<ggml_tensor*> outputs_;
  std::vector<ggml_cgraph*> graphs_;
  std::size_t turn_ = 0;
};

/// The same in lowbit.
class lowbit_product {
 public:
  lowbit_product(const packed_matrix& w, const std::vector<float>& x, std::size_t tokens, std::size_t threads, const kernel::unit& unit)
      : panels_(bench::panels_of(w, tokens, unit)), x_(x.data(), tokens, w.cols()), y_(tokens * w.rows() * sizeof(float)), threads_(threads) {}
  void begin() { executor_.emplace(threads_); }
  void run() { multiply(x_, panels_[turn_++ % panels_.size()], outputs(), space_, *executor_); }
  void end() { executor_.reset(); }
  [[nodiscard]] std::vector<float> result() {
    const matrix_view<float> y = outputs();
    return {y.data, y.data + y.rows * y.cols};
  }

 private:
  matrix_view<float> outputs() { return {reinterpret_cast<float*>(y_.data()), x_.rows, panels_[0].rows()}; }

  std::vector<panel_matrix> panels_;
  matrix_view<const float> x_;
  aligned_buffer y_;
  std::size_t threads_, turn_ = 0;
  std::optional<bench::pinned_executor> executor_;
  workspace space_;
};

/// Where ggml's processor keeps weights: as in the file, and in its own layouts.
std::vector<ggml_backend_buffer_type_t> places() {
  std::vector<ggml_backend_buffer_type_t> out{ggml_backend_cpu_buffer_type()};
  ggml_backend_dev_t const device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
  const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
  if (extra != nullptr)
    for (ggml_backend_buffer_type_t* b = extra(device); b != nullptr && *b != nullptr; ++b) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14
      // Compiled by these, its set-up of matrix registers is lost (GCC bug 114098), and it ends at an illegal instruction.
      if (std::string_view(ggml_backend_buft_name(*b)) == "AMX") continue;
#endif
      out.push_back(*b);
    }
  return out;
}

double median(std::vector<double>& v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// Takes the times of a few calls, the other threads of which are there only meanwhile.
void take_turn(auto& product, std::vector<double>& times, double& spent) {
  product.begin();
  product.run();  // not timed: threads wake up
  const double until = spent + 0.03;
  do {
    const auto start = std::chrono::steady_clock::now();
    product.run();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    spent += times.back();
  } while (spent < until);
  product.end();
}

bool run_row(const format_spec& s, ggml_type type, shape n, std::size_t tokens, std::size_t threads, const std::string& name) {
  const packed_matrix w = bench::random_weights(s, n);
  const std::vector<float> x = bench::normal_floats(tokens * n.cols, 1.0f, 2);
  const kernel::unit& unit = kernel::best_unit();
  lowbit_product own(w, x, tokens, threads, unit);
  const std::size_t copies = tokens == 1 ? ceil_div(bench::streamed_bytes, w.bytes().size()) : 1;
  std::vector<std::unique_ptr<ggml_product>> peers;
  for (ggml_backend_buffer_type_t where : places()) {
    auto peer = std::make_unique<ggml_product>(where, type, w, n, tokens, threads, copies, x);
    peer->end();
    if (peer->works()) peers.push_back(std::move(peer));
  }
  if (peers.empty()) return true;

  std::vector<std::vector<double>> times(1 + peers.size());
  for (double spent = 0; spent < 0.4 * static_cast<double>(times.size()) || times[0].size() < 9;) {
    take_turn(own, times[0], spent);
    for (std::size_t i = 0; i < peers.size(); ++i) take_turn(*peers[i], times[1 + i], spent);
  }
  std::vector<double> seconds;
  for (auto& t : times) seconds.push_back(median(t));

  // Both round activations to 8 bits in their own ways: the results differ by that, or somebody multiplied something else.
  const std::vector<float> y = own.result(), theirs = peers[0]->result();
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    difference += static_cast<double>(y[i] - theirs[i]) * static_cast<double>(y[i] - theirs[i]);
    size += static_cast<double>(theirs[i]) * static_cast<double>(theirs[i]);
  }
  if (!(difference <= 1e-3 * size)) {
    std::printf("%-28s the results differ: squared difference %.2g of the squared size\n", name.c_str(), difference / size);
    return false;
  }

  const double peer = *std::min_element(seconds.begin() + 1, seconds.end());
  const double work = tokens == 1 ? static_cast<double>(w.bytes().size()) : 2.0 * static_cast<double>(n.rows * n.cols * tokens);
  const double roof = tokens == 1 ? bench::read_roof(threads) : static_cast<double>(threads) * bench::int8_roof(unit.name);
  std::printf("%-28s %9.3f %9.3f   %5.2f   %6.1f %6.1f %s   %5.1f%% %5.1f%%\n", name.c_str(), peer * 1e3, seconds[0] * 1e3, peer / seconds[0],
              work / peer / 1e9, work / seconds[0] / 1e9, tokens == 1 ? "GB/s" : "GOP/s", 100 * work / peer / roof, 100 * work / seconds[0] / roof);
  std::fflush(stdout);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  const std::vector<int>& processors = bench::processors();  // before anybody is pinned
  std::printf("%-28s %9s %9s   %5s   %6s %6s         %6s %6s\n", "type/MxK/tokens/threads", "ggml ms", "lowbit ms", "ratio", "ggml", "lowbit", "ggml",
              "lowbit");
  bool all_agree = true;
  for (const format_spec* s : all_formats::specs) {
    const std::optional<ggml_type> type = type_of(s->name);
    if (!type || s->is_float() || s->is_recoded()) continue;
    for (const shape n : {shape{4096, 4096}, shape{4096, 14336}})
      for (const std::size_t threads : {1, 2})
        for (const std::size_t tokens : {1, 4, 16, 512}) {
          const std::string name = std::string(s->name) + "/" + std::to_string(n.rows) + "x" + std::to_string(n.cols) + "/" + std::to_string(tokens) + "/" +
                                   std::to_string(threads);
          const auto wanted = [&](const char* part) { return name.find(part) != std::string::npos; };
          if (threads > processors.size() || (argc > 1 && std::none_of(argv + 1, argv + argc, wanted))) continue;
          all_agree &= run_row(*s, *type, n, tokens, threads, name);
        }
  }
  return all_agree ? 0 : 1;
}
