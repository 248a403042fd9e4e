// Calibration through whole models: what is sampled, what a fold or a rotation leaves alone, what a resumed run gives, and that it pays.
#include "calibrate/importance.hpp"
#include "calibrate/outliers.hpp"
#include "calibrate/pass.hpp"
#include "calibrate/rotate.hpp"
#include "calibrate/walk.hpp"
#include "files/names.hpp"
#include "files/save.hpp"
#include "../quantise/reference_gptq.hpp"
#include "tiny_model.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <set>

using namespace llm;

namespace {

const std::string shakespeare = LOWBIT_SOURCE_DIR "/examples/models/shakespeare";

checkpoint open(const std::string& path) {
  auto file = open_checkpoint(path);
  REQUIRE_MESSAGE(file.ok(), (file.ok() ? "" : file.error().message));
  return *std::move(file);
}

recipe method_of(const char* name) {
  auto r = recipe_named(name);
  REQUIRE(r.ok());
  return *r;
}

lowbit::format_id format_of(const char* name) { return *lowbit::find_format(name); }

std::vector<float> logits_of(const checkpoint& file, const weight_source& source, thread_pool& threads, const std::vector<int>& ids) {
  const auto model = build_llama(file, source, threads);
  REQUIRE_MESSAGE(model.ok(), (model.ok() ? "" : model.error().message));
  session s{*model, ids.size(), threads, lowbit::precision::exact};
  const matrix& logits = s.feed(ids, ids.size());
  return {logits.row(0), logits.row(0) + logits.rows() * logits.cols()};
}

double largest(const std::vector<float>& v) {
  double most = 0.0;
  for (const float x : v) most = std::max(most, std::abs(static_cast<double>(x)));
  return most;
}

double largest_difference(std::vector<float> a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return largest(a);
}

calibration_samples random_samples(const model_config& c, std::size_t sequences, std::size_t length) {
  calibration_samples s;
  std::mt19937 random{3};
  for (std::size_t i = 0; i < sequences; ++i)
    for (s.sequences.emplace_back(); s.sequences[i].size() < length;) s.sequences[i].push_back(static_cast<int>(random() % c.vocabulary));
  return s;
}

/// All tensors of a calibrated model, in memory.
struct calibrated_model {
  checkpoint model;
  step_store store;
  std::unique_ptr<requantisation> how;
};

calibrated_model calibrate(checkpoint model, const char* method, const char* format, const calibration_samples& samples, thread_pool& threads) {
  const recipe r = method_of(method);
  if (r.rotated) model = rotated(std::move(model), 5, threads);
  calibrated_model out{std::move(model), {}, nullptr};
  out.how = std::make_unique<requantisation>(plan_for(out.model, format_of(format), r.method));
  const lowbit::status done = calibration_pass{out.model, *out.how, r, samples, threads}.run(out.store);
  REQUIRE_MESSAGE(done.ok(), (done.ok() ? "" : done.error().message));
  return out;
}

weight_source source_of(const calibrated_model& m, thread_pool& threads) {
  return [&](const tensor& t) -> lowbit::result<weights> {
    if (const weights* const w = m.store.find(t.name)) return weights{w->view()};
    return requantise(*m.model.find(t.name), *m.how, threads);
  };
}

/// Every tensor's bytes, one after the other.
std::string bytes_of(const calibrated_model& m, thread_pool& threads) {
  std::string all;
  for (const tensor& t : m.model.tensors) {
    const auto w = source_of(m, threads)(t);
    REQUIRE(w.ok());
    all.append(reinterpret_cast<const char*>(w->view().data), w->view().size_bytes());
  }
  return all;
}

}  // namespace

TEST_CASE("a text gives disjoint whole sequences, the same for the same seed") {
  const temporary_folder folder;
  const checkpoint file = open(write_tiny_model(folder));
  const auto words = tokeniser::from(file.words);
  REQUIRE(words.ok());
  std::string text;
  std::mt19937 random{1};
  for (int i = 0; i < 4000; ++i) text += static_cast<char>('a' + random() % 10);
  const sampling_plan plan{.tokens = 20 * 16, .length = 16, .seed = 7};
  const auto once = sample_text(text, "t.txt", *words, file.config, plan), again = sample_text(text, "t.txt", *words, file.config, plan);
  REQUIRE((once.ok() && again.ok()));
  CHECK(once->sequences == again->sequences);
  CHECK(once->hash == again->hash);
  CHECK(once->sequences.size() == 20);
  CHECK(once->tokens() == 320);
  CHECK(std::set<std::uint32_t>(once->chosen.begin(), once->chosen.end()).size() == 20);
  CHECK(std::is_sorted(once->chosen.begin(), once->chosen.end()));
  // What was chosen is what stands there in the text: bos, then 15 tokens.
  std::vector<int> ids = words->encode(text);
  ids.erase(ids.begin());
  for (std::size_t i = 0; i < 20; ++i) {
    REQUIRE(once->sequences[i].size() == 16);
    CHECK(once->sequences[i][0] == file.words.bos);
    CHECK(std::equal(once->sequences[i].begin() + 1, once->sequences[i].end(), ids.begin() + 15 * static_cast<std::ptrdiff_t>(once->chosen[i])));
  }
  sampling_plan other = plan;
  other.seed = 8;
  CHECK(sample_text(text, "t.txt", *words, file.config, other)->chosen != once->chosen);
  other.tokens = 1 << 20;
  CHECK(sample_text(text, "t.txt", *words, file.config, other)->sequences.size() == (ids.size()) / 15);
  const auto refused = sample_text("abc", "short.txt", *words, file.config, plan);
  REQUIRE(!refused.ok());
  CHECK(refused.error().message.find("short.txt") != std::string::npos);
}

TEST_CASE("scales folded into every group leave the float model's logits alone, up to rounding") {
  const temporary_folder folder;
  thread_pool threads{2};
  for (const std::int32_t kv_heads : {4, 2, 1}) {
    tiny_shape shape;
    shape.kv_heads = kv_heads;
    const checkpoint file = open(write_tiny_model(folder, shape));
    const std::vector<int> ids{1, 17, 260, 5, 99, 3};
    const std::vector<float> before = logits_of(file, stored, threads, ids);
    std::mt19937 random{2};
    std::map<std::string, matrix, std::less<>> changed;
    for (std::size_t layer = 0; layer < file.config.layers; ++layer) {
      float_layer floats;
      const auto read = [&](const std::string& name) {
        const auto w = file.find("blk." + std::to_string(layer) + '.' + name)->read();
        matrix m(w->view().rows, w->view().cols);
        std::memcpy(m.row(0), w->view().data, w->view().size_bytes());
        return m;
      };
      for (const part p : all_parts) floats[p] = read(std::string{info_of(p).name});
      const matrix a = read("attn_norm.weight"), b = read("ffn_norm.weight");
      floats.attention_norm.assign(a.row(0), a.row(0) + a.cols());
      floats.mlp_norm.assign(b.row(0), b.row(0) + b.cols());
      for (const input_group g : input_groups) {
        const std::vector<std::uint32_t> from = producer_channels(g, file.config);
        std::vector<float> by_producer(channels_of(g, file.config)), scales(by_producer.size());
        for (float& s : by_producer) s = 0.25f + static_cast<float>(random() % 1000) / 300.0f;
        for (std::size_t c = 0; c < scales.size(); ++c) scales[c] = by_producer[from.empty() ? c : from[c]];
        fold(floats, g, scales, from);
      }
      const auto put = [&](const std::string& name, matrix m) { changed.insert_or_assign("blk." + std::to_string(layer) + '.' + name, std::move(m)); };
      for (const auto& [name, norm] : {std::pair{"attn_norm.weight", &floats.attention_norm}, std::pair{"ffn_norm.weight", &floats.mlp_norm}}) {
        matrix m(1, norm->size());
        std::copy(norm->begin(), norm->end(), m.row(0));
        put(name, std::move(m));
      }
      for (const part p : all_parts) put(std::string{info_of(p).name}, std::move(floats[p]));
    }
    checkpoint folded = file;
    for (tensor& t : folded.tensors)
      if (const auto found = changed.find(t.name); found != changed.end())
        t.read = [&m = found->second, spec = t.spec]() -> lowbit::result<weights> {
          return weights{lowbit::packed_view{spec, m.rows(), m.cols(), reinterpret_cast<const std::uint8_t*>(m.row(0))}};
        };
    const std::vector<float> after = logits_of(folded, stored, threads, ids);
    CHECK(largest_difference(after, before) < 1e-5 * largest(before));
  }
}

TEST_CASE("a rotated model computes the same, and in every order of rows") {
  const temporary_folder folder;
  thread_pool threads{2};
  for (const std::int32_t dim : {64, 48}) {  // 48: no power of two
    tiny_shape shape;
    shape.dim = dim;
    const checkpoint file = open(write_tiny_model(folder, shape));
    const std::vector<int> ids{1, 17, 260, 5, 99, 3};
    const std::vector<float> before = logits_of(file, stored, threads, ids);
    checkpoint turned = rotated(file, 9, threads);
    CHECK(turned.find("output.weight") != nullptr);
    CHECK(largest_difference(logits_of(turned, stored, threads, ids), before) < 2e-5 * largest(before));
    const auto rotated_embedding = turned.find("token_embd.weight")->read(), embedding = file.find("token_embd.weight")->read();
    CHECK(std::memcmp(rotated_embedding->view().data, embedding->view().data, embedding->view().size_bytes()) != 0);

    const requantisation how = plan_for(turned, format_of("f32"), lowbit::method::rtn);
    REQUIRE(save_model(folder / "turned.gguf", turned, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
    const checkpoint read = open(folder / "turned.gguf");
    CHECK(largest_difference(logits_of(read, stored, threads, ids), before) < 2e-5 * largest(before));
  }
}

TEST_CASE("a folder with tied embeddings that a rotation unties says so in its copy of the configuration") {
  const temporary_folder folder;
  thread_pool threads{2};
  const checkpoint file = open(LOWBIT_SOURCE_DIR "/examples/models/shakespeare");
  REQUIRE(file.find("output.weight") == nullptr);
  const std::vector<int> ids{1, 17, 260, 5, 99, 3};
  const std::vector<float> before = logits_of(file, stored, threads, ids);
  for (const bool is_rotated : {false, true}) {
    checkpoint model = is_rotated ? rotated(file, 9, threads) : file;
    const std::string out = folder / (is_rotated ? "turned" : "straight");
    const requantisation how = plan_for(model, format_of("s8_g32"), lowbit::method::rtn);
    REQUIRE(save_model(out, model, how.format, [&](const tensor& t) { return requantise(t, how, threads); }).ok());
    const checkpoint read = open(out);
    CHECK((read.find("output.weight") != nullptr) == is_rotated);
    CHECK(largest_difference(logits_of(read, stored, threads, ids), before) < 0.02 * largest(before));
  }
}

TEST_CASE("a pass into float32 changes nothing but what it folds") {
  const temporary_folder folder;
  thread_pool threads{2};
  const checkpoint file = open(write_tiny_model(folder));
  const std::vector<int> ids{1, 17, 260, 5, 99, 3};
  const std::vector<float> before = logits_of(file, stored, threads, ids);
  const calibration_samples samples = random_samples(file.config, 3, 20);
  for (const char* method : {"gptq", "awq", "smooth", "rotate+gptq"}) {
    CAPTURE(method);
    const calibrated_model m = calibrate(file, method, "f32", samples, threads);
    const weight_source source = source_of(m, threads);
    checkpoint changed = m.model;
    for (tensor& t : changed.tensors) t.read = [&source, &t] { return source(t); };
    CHECK(largest_difference(logits_of(changed, source, threads, ids), before) < 2e-5 * largest(before));
  }
}

TEST_CASE("an importance matrix holds the sums of squares of every matrix's inputs") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint file = open(write_tiny_model(folder));
  const calibration_samples samples = random_samples(file.config, 3, 20);
  const requantisation how = plan_for(file, format_of("f32"), lowbit::method::rtn);
  const auto m = gather_importance(file, how, samples, threads, [](std::size_t, std::size_t) {});
  REQUIRE(m.ok());
  CHECK(m->entries.size() == 7 * file.config.layers);
  for (const lowbit::imatrix_entry& e : m->entries) {
    CAPTURE(e.name);
    REQUIRE(file.find(e.name) != nullptr);
    CHECK(e.sums.size() == file.find(e.name)->cols);
    CHECK(e.counts == std::vector<float>{60});
  }
  // The first layer's attention reads normalised embeddings: written out here in double.
  const float_weights floats{file, how, threads};
  const auto embedding = floats.read("token_embd.weight");
  const auto norm = floats.read_vector("blk.0.attn_norm.weight");
  REQUIRE((embedding.ok() && norm.ok()));
  std::vector<double> sums(norm->size());
  for (const auto& ids : samples.sequences)
    for (const int id : ids) {
      const float* const x = embedding->row(static_cast<std::size_t>(id));
      double square = 0;
      for (std::size_t c = 0; c < norm->size(); ++c) square += static_cast<double>(x[c]) * static_cast<double>(x[c]);
      const double inverse = 1 / std::sqrt(square / static_cast<double>(norm->size()) + static_cast<double>(file.config.norm_epsilon));
      for (std::size_t c = 0; c < norm->size(); ++c) sums[c] += std::pow(static_cast<double>(x[c]) * inverse * static_cast<double>((*norm)[c]), 2);
    }
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"})
    for (std::size_t c = 0; c < sums.size(); ++c) CHECK(static_cast<double>(m->find(name)->sums[c]) == doctest::Approx(sums[c]).epsilon(1e-5));
}

TEST_CASE("the same bytes for any number of threads, and for a run that was interrupted anywhere and resumed") {
  const temporary_folder folder;
  tiny_shape shape;
  shape.layers = 3;
  const checkpoint file = open(write_tiny_model(folder, shape));
  const calibration_samples samples = random_samples(file.config, 4, 24);
  thread_pool one{1}, three{3};
  for (const auto& kind : {std::pair{"gptq", "q4_0"}, std::pair{"awq+gptq", "u3_g32"}, std::pair{"rotate+gptq", "q4_0"}, std::pair{"llm-int8", "q8_0"}}) {
    const char *const method = kind.first, *const format = kind.second;
    CAPTURE(method);
    const std::string whole = bytes_of(calibrate(file, method, format, samples, one), one);
    CHECK(bytes_of(calibrate(file, method, format, samples, three), three) == whole);

    const recipe r = method_of(method);
    for (std::size_t stop = 0; stop < 5; ++stop) {
      checkpoint model = r.rotated ? rotated(file, 5, one) : file;
      calibrated_model m{model, {}, nullptr};
      m.how = std::make_unique<requantisation>(plan_for(m.model, format_of(format), r.method));
      std::size_t reads = 0;
      checkpoint failing = m.model;  // fails at the stop-th layer's down matrix
      for (tensor& t : failing.tensors)
        if (t.name.ends_with("ffn_down.weight"))
          t.read = [&reads, stop, read = t.read]() -> lowbit::result<weights> {
            if (reads++ == stop) return lowbit::failure{lowbit::errc::cancelled, "stopped"};
            return read();
          };
      auto store = step_store::in_folder(folder / "work", 77, false);
      REQUIRE(store.ok());
      const bool finished = calibration_pass{failing, *m.how, r, samples, one}.run(*store).ok();
      const std::size_t steps = store->finished();
      auto again = step_store::in_folder(folder / "work", 77, true);
      REQUIRE(again.ok());
      CHECK(again->finished() == steps);
      REQUIRE(calibration_pass{m.model, *m.how, r, samples, three}.run(*again).ok());
      if (!finished) CHECK(again->finished() > steps);
      m.store = *std::move(again);
      CHECK(bytes_of(m, one) == whole);
      m.store.remove();
      CHECK(!std::filesystem::exists(folder / "work"));
    }
  }
}

TEST_CASE("outliers keep float columns: beside the model, from a file, and merged") {
  const temporary_folder folder;
  thread_pool threads{2};
  checkpoint file = open(write_tiny_model(folder, {}));
  for (tensor& t : file.tensors)  // three channels of every norm stand out
    if (t.name.ends_with("_norm.weight"))
      t.read = [read = t.read]() -> lowbit::result<weights> {
        auto w = read();
        if (!w) return w;
        lowbit::packed_matrix more(lowbit::spec_of<lowbit::f32>, w->view().rows, w->view().cols);
        std::memcpy(more.bytes().data(), w->view().data, more.bytes().size());
        auto* const gains = reinterpret_cast<float*>(more.bytes().data());
        for (const std::size_t c : {2, 31, 63}) gains[c] *= 40;
        return weights{std::move(more)};
      };
  const calibration_samples samples = random_samples(file.config, 4, 24);
  std::vector<int> ids;
  for (int i = 0; i < 30; ++i) ids.push_back(3 + i * 7);
  const auto find_in = [](const step_store& s) { return [&s](const std::string& name) { return s.find(name); }; };

  const calibrated_model m = calibrate(file, "llm-int8", "q8_0", samples, threads);
  const lowbit::adapter apart = adapter_of_outliers(m.model, find_in(m.store));
  for (const char* const name : {"blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.ffn_up.weight", "blk.1.ffn_gate.weight"}) {
    CAPTURE(name);
    REQUIRE(apart.weights.contains(name));
    const lowbit::low_rank_factors& f = apart.weights.at(name);
    CHECK(f.rank == 3);
    CHECK(std::count(f.a.begin(), f.a.end(), 1.0f) == 3);
    // The columns are the float model's, and what is quantised has zeros there.
    const auto floats = as_float32(threads)(*m.model.find(name));
    REQUIRE(floats.ok());
    std::vector<float> rest(f.rows * f.cols);
    lowbit::decode(m.store.find(name)->view(), {rest.data(), f.rows, f.cols});
    const std::size_t channels[] = {2, 31, 63};
    for (std::size_t r = 0; r < f.rows; ++r)
      for (std::size_t k = 0; k < 3; ++k) {
        CHECK(f.a[k * f.cols + channels[k]] == 1.0f);
        CHECK(rest[r * f.cols + channels[k]] == 0.0f);
      }
    if (!std::string_view(name).starts_with("blk.0.attn_q") && !std::string_view(name).starts_with("blk.1.attn_k"))  // rows are moved there
      for (std::size_t r = 0; r < f.rows; ++r)
        for (std::size_t k = 0; k < 3; ++k) {
          float w;
          std::memcpy(&w, floats->view().row(r) + channels[k] * sizeof w, sizeof w);
          CHECK(f.b[r * 3 + k] == w);
        }
  }

  // Closer to floats than all of it in blocks whose activations of 8 bits span the outliers, too.
  const std::vector<float> expected = logits_of(file, as_float32(threads), threads, ids);
  const auto run = [&](const checkpoint& of, const weight_source& source, const lowbit::adapter* a, lowbit::precision how) {
    auto model = build_llama(of, source, threads);
    REQUIRE(model.ok());
    if (a != nullptr) attach(*model, *a, threads);
    session s{*model, ids.size(), threads, how};
    const matrix& logits = s.feed(ids, ids.size());
    return std::vector<float>(logits.row(0), logits.row(0) + logits.rows() * logits.cols());
  };
  checkpoint nearest = file;
  const auto how = std::make_unique<requantisation>(plan_for(nearest, format_of("q8_0"), lowbit::method::rtn));
  const std::vector<float> split = run(m.model, source_of(m, threads), &apart, lowbit::precision::int8);
  const std::vector<float> whole = run(nearest, [&](const tensor& t) { return requantise(t, *how, threads); }, nullptr, lowbit::precision::int8);
  const auto distance = [&](const std::vector<float>& logits) {
    double sum = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) sum += std::pow(static_cast<double>(logits[i]) - static_cast<double>(expected[i]), 2.0);
    return std::sqrt(sum);
  };
  const double split_error = distance(split), whole_error = distance(whole);
  CAPTURE(split_error);
  CAPTURE(whole_error);
  CHECK(split_error < 0.7 * whole_error);

  // The same from a file; and merged into floats, but for the order of sums.
  const auto saved = save_adapter(folder / "small.outliers", apart, m.model);
  REQUIRE(saved.ok());
  checkpoint with_files = m.model;  // so that the adapter finds the codes that it was made for
  for (tensor& t : with_files.tensors)
    if (const weights* const w = m.store.find(t.name); w != nullptr) {
      t.spec = w->view().spec;
      t.read = [w]() -> lowbit::result<weights> { return weights{w->view()}; };
    }
  auto opened = open_adapters({*saved}, with_files);
  REQUIRE_MESSAGE(opened.ok(), (opened.ok() ? "" : opened.error().message));
  CHECK(run(m.model, source_of(m, threads), &*opened, lowbit::precision::int8) == split);
  const std::vector<float> exact = run(m.model, source_of(m, threads), &apart, lowbit::precision::exact);
  const checkpoint one = merged(with_files, std::make_shared<const lowbit::adapter>(*opened), threads);
  const std::vector<float> together = run(one, [](const tensor& t) { return t.read(); }, nullptr, lowbit::precision::exact);
  CHECK(largest_difference(together, exact) < 1e-4 * largest(exact));
}

TEST_CASE("on a real model's layers, error feedback with the reference's options is the reference's loop in float64") {
  thread_pool threads{2};
  const checkpoint file = open(shakespeare);
  const auto model = build_llama(file, as_float32(threads), threads);
  REQUIRE(model.ok());
  session writer{*model, 128, threads, lowbit::precision::exact};
  const auto words = tokeniser::from(file.words);
  REQUIRE(words.ok());
  const calibration_samples samples = sample_model(writer, words->data().bos, file.config, {.tokens = 4096, .length = 128}, {});
  walk states{file.config, samples.sequences, threads};
  states.start(model->embedding);
  Eigen::Index same = 0, narrow_same = 0, all = 0, rows_tied = 0, differ_without_tie = 0;
  const auto as_double = [](lowbit::matrix_view<const float> m) -> Eigen::MatrixXd {
    using rows_first = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    return Eigen::Map<const rows_first>(m.data, static_cast<Eigen::Index>(m.rows), static_cast<Eigen::Index>(m.cols)).cast<double>();
  };
  const auto compare = [&](part p, std::size_t layer, const lowbit::layer_statistics& about) {
    const std::string name = layer_name(layer, info_of(p).name);
    CAPTURE(name);
    auto w = as_float32(threads)(*file.find(name));
    REQUIRE(w.ok());
    const std::size_t rows = w->view().rows, cols = w->view().cols;
    const lowbit::matrix_view<const float> floats(reinterpret_cast<const float*>(w->view().data), rows, cols);
    using four_bits = test::asymmetric_f32<4, 128>;
    const auto got = lowbit::detail::quantise_by<lowbit::minmax, lowbit::error_feedback>(
        lowbit::spec_of<four_bits>, floats, about, threads,
        {.shrink = false, .order = lowbit::column_order::natural, .headers = lowbit::header_source::spans, .guard = false});
    REQUIRE(got.ok());
    const Eigen::MatrixXd given = as_double(floats), h = about.get<lowbit::hessian>().matrix().cast<double>();
    double loss = 0;
    std::vector<bool> tied;
    const Eigen::MatrixXd expected = test::reference_gptq<double>(given, h, 4, 128, 0.01, loss, &tied);
    float narrow_loss = 0;
    const Eigen::MatrixXd narrow = test::reference_gptq<float>(given.cast<float>(), h.cast<float>(), 4, 128, 0.01, narrow_loss).cast<double>();
    matrix decoded(rows, cols);
    lowbit::decode(got->weights.view(), lowbit::view(decoded));
    const Eigen::MatrixXd values = as_double(lowbit::view(std::as_const(decoded))), e = given - values;
    const double near = 1e-6 * given.cwiseAbs().maxCoeff();
    for (Eigen::Index r = 0; r < values.rows(); ++r) {
      const Eigen::Index agreed = ((values.row(r) - expected.row(r)).array().abs() < near).count();
      same += agreed;
      if (tied[static_cast<std::size_t>(r)]) ++rows_tied;
      else differ_without_tie += values.cols() - agreed;
    }
    narrow_same += ((narrow - expected).array().abs() < near).count();
    all += values.size();
    CHECK((e * test::damped<double>(h, 0.01)).cwiseProduct(e).sum() == doctest::Approx(loss).epsilon(1e-3));
  };
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const layer_weights& w = model->layers[layer];
    for (const input_group g : input_groups) {
      if (g == input_group::mlp) states.pass_attention(w);
      const lowbit::layer_statistics about = states.statistics_of(g, w);
      for (const part p : consumers_of(g)) compare(p, layer, about);
    }
    states.pass_mlp(w);
  }
  // The model's weights are bfloat16: now and then the range of a group is symmetric, its zero-point exactly 7.5 steps, and float32 and float64 break
  // the tie to different sides, after which the rest of that row differs. Where nothing is a tie every code is float64's, and where something is, no
  // fewer than of the reference's own loop in float32.
  MESSAGE("of " << all << " codes " << same << " are float64's; of the reference's loop in float32 " << narrow_same << "; " << rows_tied
                << " rows have a tie");
  CHECK(differ_without_tie == 0);
  CHECK(rows_tied < 128);  // of 4096
  CHECK(same >= narrow_same);
  CHECK(static_cast<double>(same) >= 0.998 * static_cast<double>(all));
}

TEST_CASE("work of other inputs, or damaged work, is refused, not used") {
  const temporary_folder folder;
  auto store = step_store::in_folder(folder / "work", 1, false);
  REQUIRE(store.ok());
  lowbit::packed_matrix w{lowbit::spec_of<lowbit::q4_0>, 2, 64};
  w.bytes()[5] = 9;
  named_weights step;
  step.emplace("a", weights{std::move(w)});
  REQUIRE(store->keep(std::move(step)).ok());
  CHECK(store->find("a")->view().data[5] == 9);
  CHECK(store->find("b") == nullptr);
  const auto other = step_store::in_folder(folder / "work", 2, true);
  REQUIRE(!other.ok());
  CHECK(other.error().message.find("another model") != std::string::npos);
  const std::string whole = read_bytes(folder / "work/step-0");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    write_bytes(folder / "work/step-0", whole.substr(0, n));
    CHECK(!step_store::in_folder(folder / "work", 1, true).ok());
  }
  write_bytes(folder / "work/step-0", whole + "x");
  CHECK(!step_store::in_folder(folder / "work", 1, true).ok());
  const auto fresh = step_store::in_folder(folder / "work", 2, false);
  REQUIRE(fresh.ok());
  CHECK(fresh->finished() == 0);
}

TEST_CASE("a weight that is not a number is named before anything is written") {
  const temporary_folder folder;
  thread_pool threads{1};
  std::string bytes = tiny_checkpoint({});
  const float nan = std::nanf("");
  std::memcpy(bytes.data() + 28 + 4 * (270 * 64 + 2 * 64 + 2 * 64 * 64 + 10), &nan, 4);  // blk.0.attn_k.weight
  const std::string bin = write_tiny_model(folder);
  write_bytes(bin, bytes);
  for (const char* method : {"gptq", "rotate+gptq"}) {
    const recipe r = method_of(method);
    checkpoint model = open(bin);
    if (r.rotated) model = rotated(std::move(model), 1, threads);
    const requantisation how = plan_for(model, format_of("q4_0"), r.method);
    step_store store;
    const lowbit::status s = calibration_pass{model, how, r, random_samples(model.config, 2, 10), threads}.run(store);
    REQUIRE(!s.ok());
    CHECK(s.error().message.find("blk.0.attn_k.weight") != std::string::npos);
  }
}

TEST_CASE("error feedback pays: less divergence than rounding to nearest on text that the model writes") {
  thread_pool threads{2};
  const checkpoint file = open(shakespeare);
  const auto reference = build_llama(file, as_float32(threads), threads);
  REQUIRE(reference.ok());
  const auto words = tokeniser::from(file.words);
  session s{*reference, 128, threads, lowbit::precision::exact};
  const windows text = sample_windows(s, words->data().bos, 16, 128, 1);
  const logit_source expected = remember(llm::logits_of(s, text), text);
  const calibration_samples samples = sample_model(s, words->data().bos, file.config, {.tokens = 64 * 128, .length = 128, .seed = 2});
  CHECK(samples.tokens() == 64 * 128);
  for (const char* format : {"u3_g128", "q3_k", "q4_0"}) {
    double kl[2];
    for (const bool feedback : {false, true}) {
      checkpoint model = file;
      const requantisation how = plan_for(model, format_of(format), lowbit::method::rtn);
      const calibrated_model m = feedback ? calibrate(file, "gptq", format, samples, threads) : calibrated_model{model, {}, std::make_unique<requantisation>(how)};
      const auto built = build_llama(m.model, source_of(m, threads), threads);
      REQUIRE(built.ok());
      session q{*built, 128, threads, lowbit::precision::exact};
      kl[feedback] = evaluate(llm::logits_of(q, text), expected, text).kl_mean;
    }
    CAPTURE(format);
    CAPTURE(kl[0]);
    CAPTURE(kl[1]);
    CHECK(kl[1] < kl[0]);
  }
}
