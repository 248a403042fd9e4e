// The trainer: its derivatives by finite differences in float64, its forward pass against the engine's, and a training whose file gives
// the loss that was trained.
#include "qat/model.hpp"
#include "qat/trainer.hpp"
#include "tiny_model.hpp"

#include <doctest/doctest.h>

using namespace qat;

namespace {

llm::model_config small_config(llm::rope_order order, std::size_t kv_heads) {
  llm::model_config c;
  c.vocabulary = 11, c.hidden = 12, c.intermediate = 10, c.layers = 2, c.heads = 4, c.kv_heads = kv_heads, c.head_dim = 4, c.context = 16;
  c.rope = order;
  return c;
}

template <class Scalar>
parameters<Scalar> random_parameters(const llm::model_config& c, bool tied, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto index = [](std::size_t n) { return static_cast<Eigen::Index>(n); };
  parameters<Scalar> p;
  const auto add = [&](std::size_t rows, std::size_t cols, double mean, double spread) {
    p.push_back(matrix<Scalar>::NullaryExpr(index(rows), index(cols), [&] { return static_cast<Scalar>(mean + spread * normal(random)); }));
  };
  add(c.vocabulary, c.hidden, 0, 1);
  add(1, c.hidden, 1, 0.2);
  for (std::size_t l = 0; l < c.layers; ++l) {
    add(1, c.hidden, 1, 0.2);
    add(c.query_size(), c.hidden, 0, 0.4);
    for (int i = 0; i < 2; ++i) add(c.kv_size(), c.hidden, 0, 0.4);
    add(c.hidden, c.query_size(), 0, 0.4);
    add(1, c.hidden, 1, 0.2);
    for (int i = 0; i < 2; ++i) add(c.intermediate, c.hidden, 0, 0.4);
    add(c.hidden, c.intermediate, 0, 0.4);
  }
  if (!tied) add(c.vocabulary, c.hidden, 0, 0.5);
  return p;
}

const std::vector<int> sequence{0, 3, 7, 3, 10, 1, 1, 4};
std::span<const int> inputs() { return std::span(sequence).first(sequence.size() - 1); }

}  // namespace

TEST_CASE("every derivative of the network is that of finite differences, in float64") {
  for (const bool tied : {true, false})
    for (const auto order : {llm::rope_order::halves, llm::rope_order::pairs})
      for (const bool soft : {false, true}) {
        const llm::model_config c = small_config(order, tied ? 2 : 4);
        parameters<double> p = random_parameters<double>(c, tied, 1);
        matrix<double> teacher = random_parameters<double>(c, true, 2)[embedding].leftCols(7).transpose();  // any logits will do
        softmax_rows(teacher);
        const auto loss = [&](matrix<double>* of_logits, network<double>::tape& t) {
          const network<double> net(c, p);
          return loss_of_sequence(net.forward(inputs(), t), sequence, soft ? &teacher : nullptr, 1.0, of_logits).sum;
        };
        network<double>::tape tape, other;
        matrix<double> of_logits;
        loss(&of_logits, tape);
        parameters<double> gradient = zeros_like(p);
        network<double>(c, p).backward(inputs(), tape, of_logits, gradient);
        constexpr double h = 1e-5;
        double worst = 0;
        for (std::size_t k = 0; k < p.size(); ++k)
          for (Eigen::Index i = 0; i < p[k].size(); ++i) {
            double& x = p[k].data()[i];
            const double was = x;
            x = was + h;
            const double above = loss(nullptr, other);
            x = was - h;
            const double below = loss(nullptr, other);
            x = was;
            const double expected = (above - below) / (2 * h);
            worst = std::max(worst, std::fabs(gradient[k].data()[i] - expected) / std::max(1.0, std::fabs(expected)));
          }
        CHECK(worst < 1e-7);
      }
}

TEST_CASE("the network in float is the network in double, but for rounding") {
  const llm::model_config c = small_config(llm::rope_order::halves, 2);
  const parameters<double> exact = random_parameters<double>(c, true, 3);
  parameters<float> p;
  for (const auto& m : exact) p.push_back(m.cast<float>());
  network<float>::tape t;
  network<double>::tape t64;
  matrix<float> of_logits;
  matrix<double> of_logits64;
  const double loss = loss_of_sequence<float>(network<float>(c, p).forward(inputs(), t), sequence, nullptr, 1.0f, &of_logits).sum;
  const double loss64 = loss_of_sequence<double>(network<double>(c, exact).forward(inputs(), t64), sequence, nullptr, 1.0, &of_logits64).sum;
  CHECK(loss == doctest::Approx(loss64).epsilon(1e-5));
  parameters<float> g = zeros_like(p);
  parameters<double> g64 = zeros_like(exact);
  network<float>(c, p).backward(inputs(), t, of_logits, g);
  network<double>(c, exact).backward(inputs(), t64, of_logits64, g64);
  for (std::size_t k = 0; k < p.size(); ++k) CHECK((g[k].cast<double>() - g64[k]).norm() < 1e-4 * (1 + g64[k].norm()));
}

TEST_CASE("products by the kernels are Eigen's, whatever the shape") {
  std::srand(4);
  for (const auto& [depth, rows, cols] : {std::array<Eigen::Index, 3>{1, 1, 1}, {5, 97, 3}, {100, 96, 192}, {256, 70, 130}}) {
    const matrix<float> a = matrix<float>::Random(depth, rows), b = matrix<float>::Random(depth, cols);
    const matrix<float> start = matrix<float>::Random(rows, cols);
    matrix<float> c = start, turned = start;
    add_product(factor<float>::of(a), factor<float>::of(b), c);
    add_product(factor<float>::transposed(a.transpose()), factor<float>::transposed(b.transpose()), turned);
    const matrix<double> expected = start.cast<double>() + a.cast<double>().transpose() * b.cast<double>();
    CHECK((c.cast<double>() - expected).cwiseAbs().maxCoeff() < 1e-4);
    CHECK(c == turned);
  }
}

namespace {

/// A tiny random model as a file, its parameters, and a text that it wrote.
struct setting {
  temporary_folder folder;
  llm::thread_pool threads{2};
  llm::checkpoint model;
  llm::windows text;
  setting() {
    auto file = llm::open_checkpoint(write_tiny_model(folder));
    REQUIRE(file);
    model = *std::move(file);
    const auto built = llm::build_llama(model, llm::stored, threads);
    REQUIRE(built);
    llm::session writer{*built, 32, threads, lowbit::precision::exact};
    text = llm::sample_windows(writer, 1, 12, 32, 1);
  }
  double loss_in_engine(const llm::checkpoint& m, const llm::weight_source& source) {
    const auto built = llm::build_llama(m, source, threads);
    REQUIRE(built);
    llm::session s{*built, 32, threads, lowbit::precision::exact};
    return llm::evaluate(llm::logits_of(s, text), {}, text).nll;
  }
};

}  // namespace

TEST_CASE("a short training at 2 bits recovers half of what rounding to nearest lost, and its file has the loss that was trained") {
  setting s;
  for (const char* name : {"u2_g32", "q2_k", "iq4_nl"}) {
    CAPTURE(std::string(name));
    const auto format = *lowbit::find_format(name);
    llm::checkpoint model = s.model;
    const llm::requantisation how = llm::plan_for(model, format, lowbit::method::rtn);
    const auto start = read_parameters(model, how, s.threads);
    REQUIRE(start);
    const double exact = s.loss_in_engine(s.model, llm::stored);
    CHECK(loss_of(model.config, *start, s.text, s.threads) == doctest::Approx(exact).epsilon(1e-5));
    const double nearest = s.loss_in_engine(model, [&](const llm::tensor& t) { return llm::requantise(t, how, s.threads); });
    const recipe how_to_train{.steps = 40, .batch = 4, .rate = 1e-2f};
    auto result = train(model.config, *start, parameter_formats(model, format), s.text, &*start, how_to_train, s.threads);
    REQUIRE_MESSAGE(result.ok(), (result.ok() ? "" : result.error().message));
    CHECK(result->losses.size() == 40);
    const double own = loss_of(model.config, result->values, s.text, s.threads);
    if (std::string_view(name) == "u2_g32") CHECK(own - exact < 0.5 * (nearest - exact));  // the rate is one for 2 bits of this model

    const llm::checkpoint after = with_weights(model, std::move(result->weights));
    const std::string path = s.folder / (std::string(name) + (llm::container_of(after, format) == llm::container::gguf ? ".gguf" : ""));
    REQUIRE(llm::save_model(path, after, format, llm::stored));
    const auto again = llm::open_checkpoint(path);
    REQUIRE(again);
    CHECK(s.loss_in_engine(*again, llm::stored) == doctest::Approx(own).epsilon(1e-5));
  }
}

TEST_CASE("training does not depend on the number of threads, and bad weights are named") {
  setting s;
  const auto start = read_parameters(s.model, {lowbit::id_of<lowbit::f32>(), lowbit::method::rtn}, s.threads);
  REQUIRE(start);
  const auto formats = parameter_formats(s.model, *lowbit::find_format("s3_g32"));
  llm::thread_pool one{1};
  for (const auto gradient : {estimator::straight_through, estimator::lsq}) {
    const recipe how{.gradient = gradient, .steps = 2, .batch = 3};
    const auto a = train(s.model.config, *start, formats, s.text, nullptr, how, s.threads);
    const auto b = train(s.model.config, *start, formats, s.text, nullptr, how, one);
    REQUIRE(a);
    REQUIRE(b);
    CHECK(a->losses == b->losses);
    for (std::size_t k = 0; k < a->weights.size(); ++k) CHECK(std::ranges::equal(a->weights[k].bytes(), b->weights[k].bytes()));
  }
  parameters<float> bad = *start;
  bad[place(0, value)](1, 2) = std::nanf("");
  const auto failed = train(s.model.config, bad, formats, s.text, nullptr, {.steps = 1}, s.threads);
  REQUIRE(!failed);
  CHECK(failed.error().message == "parameter 5: NaN at row 1, column 2");
  CHECK(train(s.model.config, *start, formats, {}, nullptr, {}, s.threads).error().kind == lowbit::errc::bad_value);
}
