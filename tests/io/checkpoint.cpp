// Checkpoint layouts: golden words, values read a second time by hand from each format's definition, and byte-for-byte round trips.
#include "../kernel/random_weights.hpp"

#include <lowbit/io/checkpoint.hpp>
#include <lowbit/quantise/by_id.hpp>

#include <doctest/doctest.h>

#include <random>

using namespace lowbit;

namespace {

/// Tensors by name, as a file would have them.
struct tensors {
  std::map<std::string, safetensor> all;
  std::map<std::string, std::vector<std::uint8_t>> bytes;

  template <class T>
  void put(const std::string& name, const char* dtype, std::vector<std::uint64_t> shape, const std::vector<T>& values) {
    auto& b = bytes[name];
    b.resize(values.size() * sizeof(T));
    if (!b.empty()) std::memcpy(b.data(), values.data(), b.size());
    all[name] = {name, dtype, std::move(shape), b};
  }
  explicit tensors(const std::vector<checkpoint_part>& parts) {
    for (const auto& p : parts) put(p.declaration.name, p.declaration.dtype.c_str(), p.declaration.shape, p.bytes);
  }
  tensors() = default;
  tensors(const tensors&) = delete;
  [[nodiscard]] auto finder() const {
    return [this](const std::string& name) -> const safetensor* {
      const auto at = all.find(name);
      return at != all.end() ? &at->second : nullptr;
    };
  }
  [[nodiscard]] std::uint32_t word(const std::string& name, std::size_t i) const {
    std::uint32_t w;
    std::memcpy(&w, bytes.at(name).data() + 4 * i, 4);
    return w;
  }
};

serial_executor serial;

std::vector<float> values_of(packed_view w) {
  std::vector<float> v(w.rows * w.cols);
  decode(w, {v.data(), w.rows, w.cols});
  return v;
}

/// A random matrix whose zero-points are within the codes' range, and above 0 where asked.
packed_matrix random_matrix(const format_spec& s, std::size_t rows, std::size_t cols, unsigned seed, unsigned least_zero = 1) {
  packed_matrix w = test::random_blocks(s, rows, cols, seed);
  std::mt19937 random(seed);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t b = 0; b < s.row_blocks(cols); ++b) {
      for (std::size_t j = 0; s.sub_number != number::none && j < s.sub_blocks(); ++j)  // no NaN, no sign
        s.sub_scale.set_raw(w.row(r) + b * s.bytes, j, random() % 0x7f);
      if (s.zero_point.present()) {
        const unsigned levels = 1u << s.codes.bits();
        s.zero_point.set_raw(w.row(r) + b * s.bytes, 0, least_zero + random() % (levels - least_zero));
      }
    }
  return w;
}

/// What the definitions say of family, width, rows and cols: the value at (o, i), from the raw tensors alone.
double by_hand(const tensors& t, const checkpoint_family& f, unsigned bits, std::size_t rows, std::size_t cols, std::size_t group, std::size_t o, std::size_t i) {
  const std::string name = std::string(f.name);
  const auto bit_of = [&](const std::string& tensor, std::size_t bit, std::size_t word_stride, std::size_t first) {  // of a stream of words
    return (t.word(tensor, first + bit / 32 * word_stride) >> (bit % 32)) & 1u;
  };
  const auto dense = [&](const std::string& tensor, std::size_t index, std::size_t word_stride, std::size_t first) {
    unsigned v = 0;
    for (unsigned b = 0; b < bits; ++b) v |= bit_of(tensor, index * bits + b, word_stride, first) << b;
    return v;
  };
  const auto planar = [&](const std::string& tensor, std::size_t index, std::size_t word_stride, std::size_t first) {
    unsigned v = 0, shift = 0, at = 0;
    for (const unsigned width : {4u, 2u, 1u})
      if (bits == 8 ? width == 4 : (bits & width) != 0) {
        const unsigned w = bits == 8 ? 8 : width;
        const std::size_t j = index % 32, word = index / 32 * bits + at + j / (32 / w);
        v |= ((t.word(tensor, first + word * word_stride) >> (w * (j % (32 / w)))) & ((1u << w) - 1)) << shift;
        shift += w;
        at += w;
      }
    return v;
  };
  const auto half_float = [&](const std::string& tensor, std::size_t at) {
    std::uint16_t h;
    std::memcpy(&h, t.bytes.at(tensor).data() + 2 * at, 2);
    return static_cast<double>(to_float(f16{h}));
  };
  const std::size_t g = i / group, groups = ceil_div(cols, group);
  if (f.method == "gptq") {
    std::int32_t index;
    std::memcpy(&index, t.bytes.at("m.g_idx").data() + 4 * i, 4);
    const auto k = static_cast<std::size_t>(index);
    const auto code = name == "gptq_p" ? planar("m.qweight", i, rows, o) : dense("m.qweight", i, rows, o);
    const std::size_t zero_words = rows * bits / 32;
    const auto zero = name == "gptq_p" ? planar("m.qzeros", o, 1, k * zero_words) : dense("m.qzeros", o, 1, k * zero_words);
    return half_float("m.scales", k * rows + o) * (static_cast<int>(code) - static_cast<int>((zero + (name == "gptq" ? 1 : 0)) & ((1u << bits) - 1)));
  }
  const unsigned rev[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  if (name == "awq") {
    const auto code = (t.word("m.qweight", i * rows / 8 + o / 8) >> (4 * rev[o % 8])) & 15u;
    const auto zero = (t.word("m.qzeros", g * rows / 8 + o / 8) >> (4 * rev[o % 8])) & 15u;
    return half_float("m.scales", g * rows + o) * (static_cast<int>(code) - static_cast<int>(zero));
  }
  const std::size_t m = group >= 128 ? 1 : group == 64 ? 2 : 4, zero_words = ceil_div(ceil_div(cols / group, 8), m) * m;
  if (name == "awq_gemv") {
    const auto code = (t.word("m.qweight", o * cols / 8 + i / 8) >> (4 * (i % 8))) & 15u;
    const auto zero = (t.word("m.qzeros", o * zero_words + g / 8) >> (4 * (g % 8))) & 15u;
    return half_float("m.scales", o * zero_words * 8 + g) * (static_cast<int>(code) - static_cast<int>(zero));
  }
  if (name == "awq_gemv_fast" || name == "llm_awq") {
    // Follow a weight through pack_intweight: 32 inputs as [4, 4, 2] with the first two swapped, each 8 as [4, 2] transposed, four rows
    // interleaved every 64 inputs.
    const std::size_t k = i % 32, swapped = k / 2 % 4 * 8 + k / 8 * 2 + k % 2, in8 = swapped % 8;
    const std::size_t place = i / 32 * 32 + swapped / 8 * 8 + in8 % 2 * 4 + in8 / 2;
    const std::size_t nibble = place / 64 * 256 + o % 4 * 64 + place % 64;
    std::uint16_t word;
    std::memcpy(&word, t.bytes.at("m.qweight").data() + 2 * (o / 4 * cols + nibble / 4), 2);
    const double scale = half_float("m.scales", g * rows + o), product = half_float(name == "llm_awq" ? "m.scaled_zeros" : "m.qzeros", g * rows + o);
    return scale * ((word >> (4 * (nibble % 4))) & 15) - scale * std::nearbyint(-product / scale);
  }
  if (f.shape == ".weight_shape") {
    const bool padded = name.ends_with("padded");
    const std::size_t words = padded ? ceil_div(cols, 32 / bits) : ceil_div(cols * bits, 32);
    const auto at = [&](const std::string& tensor, std::size_t index, std::size_t stride, std::size_t first) {
      if (!padded) return dense(tensor, index, stride, first);
      return (t.word(tensor, first + index / (32 / bits) * stride) >> (bits * (index % (32 / bits)))) & ((1u << bits) - 1);
    };
    const auto code = at("m.weight_packed", i, 1, o * words);
    const unsigned zero = t.all.contains("m.weight_zero_point") ? at("m.weight_zero_point", o, groups, g) : 1u << (bits - 1);
    return half_float("m.weight_scale", o * groups + g) * (static_cast<int>(code) - static_cast<int>(zero));
  }
  if (name == "compressed-tensors-int") {
    const auto code = static_cast<std::int8_t>(t.bytes.at("m.weight")[o * cols + i]);
    const int zero = t.all.contains("m.weight_zero_point") ? static_cast<std::int8_t>(t.bytes.at("m.weight_zero_point")[o * groups + g]) : 0;
    return half_float("m.weight_scale", o * groups + g) * (code - zero);
  }
  // E2M1 with block scales.
  const double e2m1[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  const std::string codes = std::string("m") + std::string(f.codes.suffix), scales = std::string("m") + std::string(f.scales);
  const unsigned code = (t.bytes.at(codes)[(o * cols + i) / 2] >> (i % 2 * 4)) & 15u;
  const unsigned scale = t.bytes.at(scales)[o * groups + g];
  double value = (code & 8u ? -1.0 : 1.0) * e2m1[code & 7u];
  if (f.scale_dtype == "U8") value *= std::ldexp(1.0, static_cast<int>(scale) - 127);
  else value *= scale < 8 ? scale * 0x1p-9 : (1.0 + (scale & 7u) / 8.0) * std::ldexp(1.0, static_cast<int>(scale >> 3) - 7);
  if (!f.factor.empty()) {
    float factor;
    std::memcpy(&factor, t.bytes.at("m" + std::string(f.factor)).data(), 4);
    value = f.factor_divides ? value / static_cast<double>(factor) : value * static_cast<double>(factor);
  }
  return value;
}

quantisation_config config_of(const checkpoint_family& f, unsigned bits, std::size_t group) {
  quantisation_config c;
  c.method = f.method;
  if (f.method == "gptq" || f.method == "awq") c.family = &f;
  c.hints = {bits, group, {}};
  return c;
}

}  // namespace

TEST_CASE("golden words: GPTQ 0x76543210, AWQ 0x75316420, three bits as one stream") {
  const auto code_words = [](const checkpoint_family& f, unsigned bits, std::size_t cols, bool along_out) {
    const format_spec& s = uniform_format(bits, cols, false);
    packed_matrix w(s, 32, cols);
    std::vector<std::uint8_t> codes(cols);
    for (std::size_t r = 0; r < 32; ++r) {
      for (std::size_t c = 0; c < cols; ++c) codes[c] = static_cast<std::uint8_t>((along_out ? r : c) % 8);
      s.zero_point.set_raw(w.row(r), 0, 1 + r % 7);
      write_row_codes(s, codes.data(), cols, w.row(r));
    }
    const auto parts = checkpoint_parts("m", w.view(), f);
    REQUIRE_MESSAGE(parts.ok(), (parts.ok() ? "" : parts.error().message));
    std::vector<std::uint32_t> words((*parts)[0].bytes.size() / 4);
    std::memcpy(words.data(), (*parts)[0].bytes.data(), words.size() * 4);
    return words;
  };
  CHECK(code_words(*find_family("gptq"), 4, 32, false)[0] == 0x76543210u);
  CHECK(code_words(*find_family("gptq_v2"), 4, 32, false)[33] == 0x76543210u);
  const auto three = code_words(*find_family("gptq"), 3, 32, false);  // [3, 32]
  CHECK(three[0] == 0x88fac688u);
  CHECK(three[32] == 0xc688fac6u);
  CHECK(three[64] == 0xfac688fau);
  CHECK(code_words(*find_family("awq"), 4, 128, true)[0] == 0x75316420u);
  CHECK(code_words(*find_family("awq_gemv"), 4, 128, false)[0] == 0x76543210u);
  CHECK(code_words(*find_family("compressed-tensors"), 4, 32, false)[0] == 0x76543210u);
  // Three bits, ten to a word: codes 0 1 2 3 4 5 6 7 0 1.
  CHECK(code_words(*find_family("compressed-tensors-padded"), 3, 32, false)[0] == 0b001'000'111'110'101'100'011'010'001'000u);
}

TEST_CASE("symmetric zero-points are the known words of both versions") {
  const struct { const char* family; unsigned bits; std::uint32_t word; } cases[] = {
      {"gptq", 4, 0x77777777u}, {"gptq_v2", 4, 0x88888888u}, {"gptq", 8, 0x7f7f7f7fu}, {"gptq_v2", 8, 0x80808080u}, {"awq", 4, 0x88888888u}};
  for (const auto& c : cases) {
    const packed_matrix w(uniform_format(c.bits, 32, true), 32, 64);
    const tensors t(*checkpoint_parts("m", w.view(), *find_family(c.family)));
    for (std::size_t i = 0; i < t.bytes.at("m.qzeros").size() / 4; ++i) CHECK(t.word("m.qzeros", i) == c.word);
  }
}

TEST_CASE("every family, width, group and shape comes back bit for bit, and means what its definition says") {
  std::size_t checked = 0;
  for (const checkpoint_family& f : checkpoint_families)
    for (unsigned bits = 1; bits <= 8; ++bits)
      for (const std::size_t group : {32u, 64u, 128u, 40u, 0u})
        for (const auto& shape : {std::pair{32u, 128u}, {64u, 160u}, {96u, 320u}, {37u, 172u}, {8u, 128u}, {1u, 33u}})
          for (const bool symmetric : {true, false}) {
            const std::size_t rows = shape.first, cols = shape.second;
            if (!f.has_width(bits) || (symmetric && bits == 1)) continue;
            const std::size_t block = group == 0 ? cols : group;
            const format_spec& s = f.table != nullptr ? *f.table : uniform_format(bits, block, symmetric);
            if (f.table != nullptr && (group != 32 || !symmetric)) continue;
            packed_matrix w = random_matrix(s, rows, cols, 7 * bits + rows);
            if (!f.factor.empty()) w.set_factor(f.factor_divides ? 1.0 / 1234.5 : 0.0123f);
            if (cannot_hold(f, w.view())) continue;
            // Rows of an odd length may take as many words with either of compressed-tensors' packers: then they are read as the newer one's.
            if (f.name == "compressed-tensors-padded" && dense_words(bits).words_for(cols) == padded_words(bits).words_for(cols) && 32 % bits != 0) continue;
            CAPTURE(std::string(f.name));
            CAPTURE(bits);
            CAPTURE(block);
            CAPTURE(cols);
            CAPTURE(symmetric);
            const auto parts = checkpoint_parts("m", w.view(), f);
            REQUIRE_MESSAGE(parts.ok(), (parts.ok() ? "" : parts.error().message));
            const tensors t(*parts);
            const auto declared = checkpoint_parts("m", packed_view{&s, rows, cols, nullptr, nullptr, w.factor()}, f);
            REQUIRE((declared.ok() && declared->size() == parts->size()));
            for (std::size_t i = 0; i < parts->size(); ++i) {
              CHECK((*declared)[i].declaration.shape == (*parts)[i].declaration.shape);
              std::size_t bytes = *safetensors_bits((*parts)[i].declaration.dtype) / 8;
              for (const auto d : (*parts)[i].declaration.shape) bytes *= d;
              CHECK(bytes == (*parts)[i].bytes.size());
            }
            const auto found = find_weight(t.finder(), "m", config_of(f, bits, block));
            REQUIRE(found);
            REQUIRE_MESSAGE(found->ok(), (found->ok() ? "" : found->error().message));
            CHECK(((*found)->warning.empty() || (*found)->warning.find("likely") != std::string::npos));  // codes at random are no weights around zero
            CHECK((*found)->rows == rows);
            CHECK((*found)->cols == cols);
            const auto back = (*found)->read(serial);
            REQUIRE(back.ok());
            const std::vector<float> a = values_of(w.view()), b = values_of(back->view());
            REQUIRE(std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
            std::mt19937 random(3);
            for (int n = 0; n < 200; ++n) {
              const std::size_t o = random() % rows, i = random() % cols;
              const double expected = by_hand(t, f, bits, rows, cols, f.table != nullptr ? s.sub_block() : block, o, i);
              const double tolerance = f.factor.empty() ? 0.0 : 1.2e-7 * std::abs(expected);  // the factor is one rounding more
              REQUIRE(std::abs(static_cast<double>(b[o * cols + i]) - expected) <= tolerance);
            }
            // The same family writes the same bytes again, but that the packers agree where no word has bits left over.
            const auto again = checkpoint_parts("m", back->view(), f);
            REQUIRE(again.ok());
            for (std::size_t i = 0; i < parts->size(); ++i) CHECK((*again)[i].bytes == (*parts)[i].bytes);
            ++checked;
          }
  MESSAGE(checked, " combinations");
  CHECK(checked > 300);
}

TEST_CASE("any bytes of a GPTQ or AWQ checkpoint survive") {
  std::mt19937 random(11);
  for (const char* name : {"gptq_v2", "gptq_p", "awq"})
    for (const unsigned bits : {2u, 3u, 4u, 5u, 8u}) {
      const checkpoint_family& f = *find_family(name);
      if (!f.has_width(bits)) continue;
      const std::size_t rows = 64, cols = 96, group = 32;
      packed_matrix w(uniform_format(bits, group, false), rows, cols);
      tensors t(*checkpoint_parts("m", w.view(), f));
      for (const char* tensor : {"m.qweight", "m.qzeros"})
        for (std::uint8_t& b : t.bytes[tensor]) b = static_cast<std::uint8_t>(random());
      for (std::size_t i = 0; i < t.bytes["m.scales"].size(); i += 2) t.bytes["m.scales"][i + 1] = 0x2c;
      const auto found = find_weight(t.finder(), "m", config_of(f, bits, group));
      REQUIRE((found && found->ok()));
      const auto back = (*found)->read(serial);
      REQUIRE(back.ok());
      const tensors again(*checkpoint_parts("m", back->view(), f));
      for (const auto& [tensor, bytes] : t.bytes) CHECK(again.bytes.at(tensor) == bytes);
    }
}

TEST_CASE("act-order: groups come together, products take the inputs in their order, and g_idx is written back") {
  const checkpoint_family& f = *find_family("gptq_v2");
  const std::size_t rows = 32, cols = 192;
  std::mt19937 random(5);
  for (const auto& sizes : {std::vector<std::size_t>{64, 64, 64}, {128, 64}, {96, 48, 48}, {10, 22, 160}}) {
    const std::size_t groups = sizes.size();
    packed_matrix plain = random_matrix(uniform_format(4, ceil_div(cols, groups), false), rows, cols, 9);
    tensors t(*checkpoint_parts("m", plain.view(), f));
    std::vector<std::int32_t> index;
    for (std::size_t g = 0; g < groups; ++g) index.insert(index.end(), sizes[g], static_cast<std::int32_t>(g));
    std::shuffle(index.begin(), index.end(), random);
    t.put("m.g_idx", "I32", {cols}, index);
    const auto found = find_weight(t.finder(), "m", config_of(f, 4, 64));
    REQUIRE(found);
    REQUIRE_MESSAGE(found->ok(), (found->ok() ? "" : found->error().message));
    const auto w = (*found)->read(serial);
    REQUIRE(w.ok());
    REQUIRE(!w->inputs().empty());
    const std::vector<float> values = values_of(w->view());
    for (std::size_t o = 0; o < rows; ++o)
      for (std::size_t i = 0; i < cols; ++i) REQUIRE(static_cast<double>(values[o * cols + i]) == by_hand(t, f, 4, rows, cols, 64, o, i));
    if (sizes == std::vector<std::size_t>{64, 64, 64}) {
      const tensors again(*checkpoint_parts("m", w->view(), f));
      for (const auto& [tensor, bytes] : t.bytes) CHECK(again.bytes.at(tensor) == bytes);
      CHECK(!checkpoint_parts("m", w->view(), *find_family("awq")).ok());
      CHECK(checkpoint_parts("m", w->view(), *find_family("compressed-tensors")).ok());
    }
  }
}

TEST_CASE("the label of a GPTQ checkpoint is checked against its zero-points") {
  const packed_matrix w = random_matrix(uniform_format(4, 32, true), 32, 64, 2);
  const std::vector<float> expected = values_of(w.view());
  for (const char* truth : {"gptq", "gptq_v2"})
    for (const char* label : {"gptq", "gptq_v2"}) {
      const tensors t(*checkpoint_parts("m", w.view(), *find_family(truth)));
      quantisation_config c = config_of(*find_family(label), 4, 32);
      c.hints.symmetric = true;
      const auto found = find_weight(t.finder(), "m", c);
      REQUIRE((found && found->ok()));
      CHECK((*found)->warning.empty() == (std::string(truth) == label));
      if (std::string(truth) != label) CHECK((*found)->warning.find("m.qzeros") != std::string::npos);
      CHECK(values_of((*found)->read(serial)->view()) == expected);
      // Said to be asymmetric, the label is believed.
      c.hints.symmetric = false;
      CHECK((*find_weight(t.finder(), "m", c))->warning.empty());
    }
  // Zero-points of any value show it by the mean of the weights; they are read as labelled all the same.
  std::vector<float> weights(32 * 512);
  std::mt19937 random(3);
  for (float& v : weights) v = std::normal_distribution<float>(0.0f, 0.02f)(random);
  for (const format_id id : {id_of<asymmetric<2, 64>>(), id_of<asymmetric<4, 64>>()}) {
    const unsigned bits = spec_of_id(id).codes.bits();
    CAPTURE(bits);
    auto quantised = quantise(id, method::rtn, matrix_view<const float>{weights.data(), 32, 512}, serial);
    REQUIRE(quantised);
    const packed_matrix q = std::move(*quantised);
    for (const char* truth : {"gptq", "gptq_v2"})
      for (const char* label : {"gptq", "gptq_v2"}) {
        const tensors t(*checkpoint_parts("m", q.view(), *find_family(truth)));
        quantisation_config c = config_of(*find_family(label), bits, 64);
        c.hints.symmetric = false;
        const auto found = find_weight(t.finder(), "m", c);
        REQUIRE((found && found->ok()));
        const std::string& warning = (*found)->warning;
        CHECK(warning.empty() == (std::string(truth) == label));
        CHECK((warning.empty() || warning.find("likely to be " + std::string(truth) + "'s") != std::string::npos));
      }
  }
  // Zero-point 0 has no form in version 1.
  packed_matrix zero(uniform_format(4, 32, false), 32, 32);
  CHECK(!checkpoint_parts("m", zero.view(), *find_family("gptq")).ok());
  CHECK(checkpoint_parts("m", zero.view(), *find_family("gptq_v2")).ok());
}

TEST_CASE("LLM.int8: codes times SCB over 127") {
  const std::size_t rows = 5, cols = 48;
  tensors t;
  std::mt19937 random(1);
  std::vector<std::int8_t> codes(rows * cols);
  for (auto& c : codes) c = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  const std::vector<float> scb{0.5f, 1.25f, 0.0f, 3.0e-3f, 7.0f};
  t.put("m.weight", "I8", {rows, cols}, codes);
  t.put("m.SCB", "F32", {rows}, scb);
  t.put("m.weight_format", "U8", {}, std::vector<std::uint8_t>{0});
  const auto found = find_weight(t.finder(), "m");
  REQUIRE((found && found->ok()));
  const auto w = (*found)->read(serial);
  REQUIRE(w.ok());
  const std::vector<float> values = values_of(w->view());
  for (std::size_t i = 0; i < values.size(); ++i)
    CHECK(values[i] == rounded_product(static_cast<float>(codes[i]) * scb[i / cols], 7.874015718698502e-3f));
  const tensors again(*checkpoint_parts("m", w->view(), bitsandbytes_int8));
  for (const auto& [tensor, bytes] : t.bytes) CHECK(again.bytes.at(tensor) == bytes);
}

TEST_CASE("bitsandbytes puts the first code in the high nibble and says the rest in JSON") {
  packed_matrix w(spec_of<nf4>, 1, 64);
  block_parts<nf4> p;
  p.scale = std::bit_cast<std::uint32_t>(2.0f);
  for (std::size_t i = 0; i < 64; ++i) p.codes[i] = static_cast<std::uint8_t>(i % 16);
  write_block<nf4>(p, w.row(0));
  const auto parts = checkpoint_parts("m", w.view(), *find_layout("bitsandbytes"));
  REQUIRE(parts.ok());
  const tensors t(*parts);
  CHECK(t.all.at("m.weight").shape == std::vector<std::uint64_t>{32, 1});
  CHECK(t.bytes.at("m.weight")[0] == 0x01);
  CHECK(t.bytes.at("m.weight")[1] == 0x23);
  const auto& state = t.bytes.at("m.weight.quant_state.bitsandbytes__nf4");
  CHECK(std::string(state.begin(), state.end()) == R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [1, 64]})");
}

TEST_CASE("bitsandbytes: every block size and shape is read as its definition says, and written back where it can be") {
  std::mt19937 random(4);
  for (const format_spec* base : {&nf4::spec, &fp4::spec})
    for (const bool nested : {false, true})
      for (const std::size_t block : {64u, 128u, 4096u})
        for (const auto& shape : {std::pair{3u, 128u}, {7u, 172u}, {5u, 33u}, {1u, 64u}}) {
          const std::size_t rows = shape.first, cols = shape.second;
          CAPTURE(block);
          CAPTURE(cols);
          const std::size_t n = rows * cols, count = ceil_div(n, block);
          tensors t;
          std::vector<std::uint8_t> codes((n + 1) / 2), inner_codes(count);
          for (auto& c : codes) c = static_cast<std::uint8_t>(random());
          for (auto& c : inner_codes) c = static_cast<std::uint8_t>(random());
          std::vector<float> scales(count), outer(ceil_div(count, 256));
          for (auto& s : scales) s = static_cast<float>(random() % 1000) * 0.001f;
          for (auto& s : outer) s = static_cast<float>(random() % 1000) * 0.001f;
          const auto map = bitsandbytes_dynamic_map();
          nlohmann::ordered_json state{{"quant_type", base->name}, {"blocksize", block}, {"dtype", "float16"}, {"shape", {rows, cols}}};
          t.put("m.weight", "U8", {codes.size(), 1}, codes);
          t.put("m.weight.quant_map", "F32", {16}, std::vector<float>(base->values.values.begin(), base->values.values.end()));
          if (nested) {
            state["nested_blocksize"] = 256, state["nested_dtype"] = "float32", state["nested_offset"] = 0.25;
            t.put("m.weight.absmax", "U8", {count}, inner_codes);
            t.put("m.weight.nested_absmax", "F32", {outer.size()}, outer);
            t.put("m.weight.nested_quant_map", "F32", {256}, std::vector<float>(map.begin(), map.end()));
            for (std::size_t i = 0; i < count; ++i) scales[i] = rounded_product(map[inner_codes[i]], outer[i / 256]) + 0.25f;
          } else {
            t.put("m.weight.absmax", "F32", {count}, scales);
          }
          const std::string text = state.dump();
          t.put("m.weight.quant_state.bitsandbytes__" + std::string(base->name), "U8", {text.size()}, std::vector<char>(text.begin(), text.end()));
          const auto found = find_weight(t.finder(), "m");
          REQUIRE(found);
          REQUIRE_MESSAGE(found->ok(), (found->ok() ? "" : found->error().message));
          const auto w = (*found)->read(serial);
          REQUIRE(w.ok());
          const std::vector<float> values = values_of(w->view());
          for (std::size_t i = 0; i < n; ++i)
            REQUIRE(values[i] == base->values.values[i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15] * scales[i / block]);
          const auto parts = checkpoint_parts("m", w->view(), *find_layout("bitsandbytes"));
          CHECK(parts.ok() == (cols % 2 == 0));
          if (parts && !nested) {
            const tensors again(*parts);
            CHECK(again.bytes.at("m.weight") == codes);
            if (again.all.at("m.weight.absmax").shape == std::vector<std::uint64_t>{count}) CHECK(again.bytes.at("m.weight.absmax") == t.bytes.at("m.weight.absmax"));
          }
        }
}

TEST_CASE("nested scales are within half a step of the map, and read back as they were chosen") {
  const auto map = bitsandbytes_dynamic_map();
  CHECK(map[0] == doctest::Approx(-0.99296875));
  // As create_dynamic_map() of bitsandbytes 0.50.2 has it (torch 2.15.0); unfused arithmetic is a unit off.
  CHECK(map[18] == -0.7398437f);
  CHECK(map[255] == 1.0f);
  CHECK(std::is_sorted(map.begin(), map.end()));
  CHECK(std::find(map.begin(), map.end(), 0.0f) != map.end());
  packed_matrix w = test::random_blocks(spec_of<nf4>, 64, 1024, 8);
  std::vector<float> scales = detail::block_scales(w.view());
  const nested_scales n = nested_scales::of(scales);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const float x = scales[i] - n.offset;
    float best = INFINITY;
    for (const float m : map) best = std::min(best, std::abs(m * n.absmax[i / 256] - x));
    CHECK(std::abs(n.value(i) - scales[i]) <= best + 1e-6f);
  }
  const auto parts = checkpoint_parts("m", w.view(), *find_layout("bitsandbytes-nested"));
  REQUIRE(parts.ok());
  const auto declared = checkpoint_parts("m", packed_view{&spec_of<nf4>, 64, 1024, nullptr}, *find_layout("bitsandbytes-nested"));
  for (std::size_t i = 0; i < parts->size(); ++i) CHECK((*declared)[i].declaration.shape == (*parts)[i].declaration.shape);
  const tensors t(*parts);
  const auto found = find_weight(t.finder(), "m");
  REQUIRE((found && found->ok()));
  const std::vector<float> again = detail::block_scales((*found)->read(serial)->view());
  for (std::size_t i = 0; i < again.size(); ++i) CHECK(again[i] == n.value(i));
}

TEST_CASE("parts that are missing or contradict each other are refused, naming the tensor") {
  const auto refused = [](const tensors& t, const quantisation_config& c, const std::string& word) {
    const auto found = find_weight(t.finder(), "m", c);
    REQUIRE(found);
    const auto message = !found->ok() ? found->error().message : [&] {
      const auto read = (*found)->read(serial);
      return read.ok() ? std::string() : read.error().message;
    }();
    CHECK_MESSAGE(message.find("'m") != std::string::npos, message);
    CHECK_MESSAGE(message.find(word) != std::string::npos, message);
    CHECK(message.find('\n') == std::string::npos);
  };
  for (const checkpoint_family& f : checkpoint_families) {
    CAPTURE(std::string(f.name));
    const bool table = f.table != nullptr;
    packed_matrix w = random_matrix(table ? *f.table : uniform_format(4, 64, false), 32, 128, 3);
    if (f.table == &mxfp4::spec)
      for (std::size_t r = 0; r < 32; ++r) w.row(r)[0] = 120;
    if (!f.factor.empty()) w.set_factor(0.5);
    const quantisation_config c = config_of(f, 4, 64);
    const auto fresh = [&] { return *checkpoint_parts("m", w.view(), f); };
    for (std::size_t i = 1; i < fresh().size(); ++i) {  // a partner missing
      auto parts = fresh();
      const std::string name = parts[i].declaration.name;
      if (name == "m" + std::string(f.index) || (f.zero == zero_kind::optional && name == "m" + std::string(f.zeros.suffix))) continue;
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i));
      refused(tensors(parts), c, "missing");
    }
    for (std::size_t i = 0; i < fresh().size(); ++i) {  // one row or element too few
      auto parts = fresh();
      auto& d = parts[i].declaration;
      if (d.shape.empty() || d.shape == std::vector<std::uint64_t>{1}) continue;
      parts[i].bytes.resize(parts[i].bytes.size() / d.shape[0] * (d.shape[0] - 1));
      d.shape[0] -= 1;
      refused(tensors(parts), c, "tensor");
    }
    for (std::size_t i = 0; i < fresh().size(); ++i) {  // another type
      if (i == 0) continue;  // other codes are another family's
      auto parts = fresh();
      parts[i].declaration.dtype = "BOOL";
      refused(tensors(parts), c, "tensor");
    }
    auto empty = fresh();
    empty[0].declaration.shape = {0, 32};
    empty[0].bytes.clear();
    refused(tensors(empty), c, "tensor");
  }
  const packed_matrix w = random_matrix(uniform_format(4, 64, false), 32, 128, 3);
  tensors t(*checkpoint_parts("m", w.view(), *find_family("gptq_v2")));
  for (const std::int32_t bad : {-1, 2, 1 << 30}) {
    std::vector<std::int32_t> index(128, 0);
    index[77] = bad;
    t.put("m.g_idx", "I32", {128}, index);
    refused(t, config_of(*find_family("gptq_v2"), 4, 64), "input 77");
  }
  quantisation_config reordered = config_of(*find_family("gptq_v2"), 4, 64);
  reordered.hints.reordered = true;
  t.all.erase("m.g_idx");
  refused(t, reordered, "'m.g_idx' is missing");

  packed_matrix bytes = random_matrix(uniform_format(8, 64, true, number::f32), 32, 64, 3);
  bytes.set_factor(bitsandbytes_int8.constant);
  tensors marked(*checkpoint_parts("m", bytes.view(), bitsandbytes_int8));
  REQUIRE(find_weight(marked.finder(), "m")->ok());
  marked.put("m.weight_format", "U8", {}, std::vector<std::uint8_t>{1});
  refused(marked, {}, "another order");
  for (const float scale : {1e-44f, 0.0f, -1.0f, INFINITY, NAN}) {  // that divides
    packed_matrix tiny(spec_of<nvfp4>, 4, 64);
    tiny.set_factor(0.5);
    tensors four_bits(*checkpoint_parts("m", tiny.view(), *find_family("compressed-tensors-nvfp4")));
    four_bits.put("m.weight_global_scale", "F32", {1}, std::vector<float>{scale});
    refused(four_bits, {}, "weight_global_scale");
  }
  packed_matrix fp(spec_of<nvfp4>, 4, 64);
  fp.row(1)[2] = 0x7f;  // NaN
  refused(tensors(*checkpoint_parts("m", fp.view(), *find_family("modelopt"))), {}, "out of range");
  tensors four;
  four.put("m.weight", "I8", {4, 32}, std::vector<std::int8_t>(128, 9));
  four.put("m.weight_scale", "F16", {4, 1}, std::vector<std::uint16_t>(4, 0x3c00));
  quantisation_config narrow;
  narrow.hints.bits = 4;
  refused(four, narrow, "out of range");
}

TEST_CASE("configurations say which layout it is, and unknown ones are refused") {
  using json = nlohmann::ordered_json;
  const auto read = [](const char* text) { return read_quantisation_config(json::parse(text)); };
  CHECK(read(R"({"quant_method": "gptq", "bits": 3, "group_size": 64, "sym": true})")->family == find_family("gptq"));
  CHECK(read(R"({"quant_method": "gptq", "checkpoint_format": "gptq_v2"})")->family == find_family("gptq_v2"));
  CHECK(read(R"({"quant_method": "awq", "version": "GEMM", "w_bit": 4, "q_group_size": 64})")->hints.group == 64);
  CHECK(read(R"({"quant_method": "awq", "version": "gemv_fast"})")->family == find_family("awq_gemv_fast"));
  CHECK(read(R"({"quant_method": "awq", "version": "llm-awq"})")->family == find_family("llm_awq"));
  CHECK(!read(R"({"quant_method": "gptq", "checkpoint_format": "marlin"})").ok());
  CHECK(!read(R"({"quant_method": "awq", "version": "marlin"})").ok());
  CHECK(!read(R"({"quant_method": "quip"})").ok());
  // What turns activations as well is in no tensor.
  CHECK(!read(R"({"quant_method": "gptq", "rotation": "hadamard"})").ok());
  CHECK(!read(R"({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R3": {}}}})").ok());
  CHECK(read(R"({"quant_method": "gptq", "rotation": null, "transform_config": {}})").ok());
  CHECK(!read(R"([1])").ok());
  // Of several groups: what a module's own says where the module is named, else what they have in common.
  const auto groups = read(R"({"quant_method": "compressed-tensors", "config_groups": {
    "group_0": {"targets": ["a.b", "a.c"], "weights": {"num_bits": 7, "group_size": 32, "symmetric": false}},
    "group_1": {"targets": ["re:.*d"], "weights": {"num_bits": 4, "group_size": 32, "symmetric": true, "actorder": "group"}}}})");
  REQUIRE(groups.ok());
  CHECK(groups->hints_of("a.c").bits == 7);
  CHECK(groups->hints_of("a.c").symmetric == false);
  CHECK(!groups->hints_of("a.c").reordered);
  CHECK(groups->hints_of("a.d").bits == 0);
  CHECK(groups->hints_of("a.d").group == 32);
  CHECK(!groups->hints_of("a.d").symmetric);
  CHECK(groups->hints_of("a.d").reordered);
  for (const std::string_view name : layout_names()) {
    const auto layout = find_layout(name);
    REQUIRE(layout);
    const format_spec& s = layout->family == nullptr ? nf4::spec : layout->family->table != nullptr ? *layout->family->table : uniform_format(4, 64, true);
    const auto config = quantization_config(*layout, std::vector<quantised_module>{{"m", &s, 256}}, {"lm_head"});
    REQUIRE(config.ok());
    const auto written = read_quantisation_config(*config);
    REQUIRE(written.ok());
    CHECK(written->method == (layout->family == nullptr ? "bitsandbytes" : layout->family->method));
    if (written->method == "gptq" || written->method == "awq") CHECK(written->family == layout->family);
  }
}

TEST_CASE("a configuration names the matrices that differ, since loaders go by it") {
  using json = nlohmann::ordered_json;
  const format_spec &s4 = uniform_format(4, 128, true), &u4 = uniform_format(4, 128, false), &s8 = uniform_format(8, 32, true), &row = uniform_format(4, 256, true);
  const auto written = [](const char* layout, std::vector<quantised_module> modules) {
    const auto config = quantization_config(*find_layout(layout), modules, {"lm_head"});
    CAPTURE(config.ok() ? std::string() : config.error().message);
    REQUIRE(config.ok());
    return *config;
  };
  const std::vector<quantised_module> mixed{{"model.layers.0.mlp.up_proj", &s4, 256}, {"model.layers.0.mlp.down_proj", &s8, 512}, {"model.layers.1.mlp.up_proj", &s4, 256}};
  // compressed-tensors: a group for each kind, with the names of its modules.
  const json groups = written("compressed-tensors", mixed)["config_groups"];
  REQUIRE(groups.size() == 2);
  CHECK(groups["group_0"]["targets"] == json{"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"});
  CHECK(groups["group_0"]["weights"]["num_bits"] == 4);
  CHECK(groups["group_0"]["weights"]["group_size"] == 128);
  CHECK(groups["group_1"]["targets"] == json::array({"model.layers.0.mlp.down_proj"}));
  CHECK(groups["group_1"]["weights"]["num_bits"] == 8);
  CHECK(groups["group_1"]["weights"]["group_size"] == 32);
  // GPTQModel: overrides by patterns of names.
  const json gptq = written("gptq", mixed);
  CHECK(gptq["bits"] == 4);
  CHECK(gptq["group_size"] == 128);
  CHECK(gptq["dynamic"] == json{{R"(+:^model\.layers\.0\.mlp\.down_proj$)", {{"bits", 8}, {"group_size", 32}}}});
  // One kind: one group of all, no overrides.
  CHECK(written("compressed-tensors", {{"a", &s4, 256}, {"b", &s4, 512}})["config_groups"]["group_0"]["targets"] == json::array({"Linear"}));
  CHECK(!written("gptq", {{"a", &s4, 256}, {"b", &s4, 512}}).contains("dynamic"));
  // With and without zero-points: two kinds for compressed-tensors; one for GPTQ, which has them always, and which is symmetric then only if all are.
  CHECK(written("compressed-tensors", {{"a", &s4, 256}, {"b", &u4, 256}})["config_groups"].size() == 2);
  const json both = written("gptq", {{"a", &s4, 256}, {"b", &u4, 256}});
  CHECK(both["sym"] == false);
  CHECK(!both.contains("dynamic"));
  // One scale a row: -1, or the size of others' groups where it is that.
  CHECK(written("gptq", {{"a", &row, 256}, {"b", &uniform_format(4, 512, true), 512}})["group_size"] == -1);
  CHECK(written("gptq", {{"a", &row, 256}, {"b", &row, 512}})["group_size"] == 256);
  // AWQ has one size for all.
  const auto refused = quantization_config(*find_layout("awq"), std::vector<quantised_module>{{"a", &u4, 256}, {"b", &uniform_format(4, 32, false), 256}}, {});
  REQUIRE(!refused.ok());
  for (const char* word : {"awq", "'a'", "128", "'b'", "32"}) CHECK(refused.error().message.find(word) != std::string::npos);
}

TEST_CASE("a product of a scale and a zero-point that f16 cannot hold is refused, not stored as infinite") {
  const format_spec& s = uniform_format(4, 32, false);
  packed_matrix w(s, 8, 128);
  const std::vector<std::uint8_t> codes(128, 3);
  for (std::size_t r = 0; r < w.view().rows; ++r) {
    for (std::size_t b = 0; b < 4; ++b) {
      const f16 scale = to_f16(8000.0f);
      std::memcpy(w.row(r) + b * s.bytes + s.scale.at, &scale, 2);
      s.zero_point.set_raw(w.row(r) + b * s.bytes, 0, r == 5 && b == 2 ? 9u : 8u);
    }
    write_row_codes(s, codes.data(), 128, w.row(r));
  }
  const auto parts = checkpoint_parts("m", w.view(), *find_family("llm_awq"));
  REQUIRE(!parts.ok());
  CHECK(parts.error().message == "'m': row 5, group 2 has zero-point 9, which llm_awq cannot store");
}

TEST_CASE("zero-points times scales, and factors, are rounded where a layout stores their products") {
  const format_spec& s = uniform_format(4, 32, false);
  packed_matrix w(s, 1, 64);
  const auto block = [&](std::size_t b, float scale, unsigned zero) {
    std::uint8_t* const at = w.row(0) + b * s.bytes;
    const f16 bits = to_f16(scale);
    std::memcpy(at + s.scale.at, &bits, 2);
    s.zero_point.set_raw(at, 0, zero);
    for (std::size_t i = 0; i < 32; ++i) s.codes.set_raw(at, i, static_cast<unsigned>(i % 16));
  };
  const checkpoint_family& fast = *find_family("llm_awq");
  block(0, 0x1p-5f, 7);  // few bits: the product has a form
  block(1, 0x1.ffcp-3f, 8);  // a power of two: any product has
  CHECK(!with_rounded_zeros(fast, w.view()));
  CHECK(!with_rounded_zeros(*find_family("awq"), w.view()));
  block(1, 0x1.ffcp-3f, 7);  // 11 bits times 7
  const auto rounded = with_rounded_zeros(fast, w.view());
  REQUIRE(rounded);
  const double zero = std::nearbyint(7 * 0x1.ffcp-3 * 0x1p10) * 0x1p-10;  // in [1, 2), where an f16's last place is 2^-10
  REQUIRE(zero != 7 * 0x1.ffcp-3);
  float values[64];
  std::memcpy(values, rounded->view().data, sizeof values);
  for (int i = 0; i < 32; ++i) CHECK(values[i] == (i % 16 - 7) * 0x1p-5f);
  for (int i = 0; i < 32; ++i) CHECK(values[32 + i] == static_cast<float>(0x1.ffcp-3 * (i % 16) - zero));
  // Factors: a float32, or the reciprocal of one.
  CHECK(stored_factor(*find_family("modelopt"), 0.375) == 0.375);
  CHECK(stored_factor(*find_family("modelopt"), 1.0 / 3.0) == static_cast<double>(1.0f / 3.0f));
  CHECK(stored_factor(*find_family("compressed-tensors-nvfp4"), 1.0 / 3.0) == 1.0 / 3.0);
  CHECK(stored_factor(*find_family("compressed-tensors-nvfp4"), static_cast<double>(1.0f / 3.0f)) != static_cast<double>(1.0f / 3.0f));
  CHECK(stored_factor(*find_family("awq"), 1.0 / 3.0) == 1.0 / 3.0);
}
