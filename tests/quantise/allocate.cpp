// Bit allocation against brute force and its own bound; globs; budgets that only help.
#include <lowbit/quantise/allocate.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <random>

using namespace lowbit;

namespace {
format_id id(const char* name) { return *find_format(name); }

/// Tensors of random shapes whose error falls about fourfold for every bit, with noise, so that some options are dominated.
std::vector<allocated_tensor> random_tensors(std::size_t count, std::size_t options, unsigned seed, bool all_alike = false) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> noise(0.4, 2.5);
  std::vector<allocated_tensor> tensors(count);
  for (std::size_t t = 0; t < count; ++t) {
    tensors[t].name = "blk." + std::to_string(t) + ".weight";
    const std::size_t rows = all_alike ? 64 : 1 + random() % 700;
    const double sensitivity = std::exp2(noise(random) * 3);
    for (std::size_t o = 0; o < options; ++o) {
      const auto f = static_cast<format_id>(random() % format_count);
      const double bits = spec_of_id(f).bits_per_weight();
      tensors[t].options.push_back({f, sensitivity * noise(random) * std::exp2(-2 * bits) * static_cast<double>(rows), *stored_bytes(f, rows, 256)});
    }
  }
  return tensors;
}
std::uint64_t bytes_of(const std::vector<allocated_tensor>& tensors, bool most) {
  std::uint64_t sum = 0;
  for (const auto& t : tensors) {
    std::uint64_t extreme = t.options[0].bytes;
    for (const auto& o : t.options) extreme = most ? std::max(extreme, o.bytes) : std::min(extreme, o.bytes);
    sum += extreme;
  }
  return sum;
}
double brute_force(const std::vector<allocated_tensor>& tensors, std::uint64_t budget, std::size_t t = 0) {
  if (t == tensors.size()) return 0;
  double best = std::numeric_limits<double>::infinity();
  for (const auto& o : tensors[t].options)
    if (o.bytes <= budget) best = std::min(best, o.cost + brute_force(tensors, budget - o.bytes, t + 1));
  return best;
}
void check_consistent(const std::vector<allocated_tensor>& tensors, const allocation& a, std::uint64_t budget) {
  double cost = 0;
  std::uint64_t bytes = 0;
  REQUIRE(a.choice.size() == tensors.size());
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    cost += tensors[t].options[a.choice[t]].cost;
    bytes += tensors[t].options[a.choice[t]].bytes;
  }
  CHECK(a.bytes == bytes);
  CHECK(a.cost == doctest::Approx(cost).epsilon(1e-12));
  CHECK(bytes <= budget);
}
}  // namespace

TEST_CASE("small instances are solved to the optimum of brute force") {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const auto tensors = random_tensors(1 + seed % 6, 1 + seed % 5, seed);
    const std::uint64_t low = bytes_of(tensors, false), high = bytes_of(tensors, true);
    for (const std::uint64_t budget : {low, low + (high - low) / 7, (low + high) / 2, high - (high - low) / 10, high, 2 * high}) {
      const auto a = allocate(tensors, budget);
      REQUIRE(a);
      CHECK(a->exact);
      check_consistent(tensors, *a, budget);
      CHECK(a->cost == doctest::Approx(brute_force(tensors, budget)).epsilon(1e-12));
    }
  }
}

TEST_CASE("with a thinned frontier the bound holds, the gap is small, and a larger budget is never worse") {
  for (const std::size_t points : {16, 128, 4096}) {
    const auto tensors = random_tensors(120, 6, 7);
    const std::uint64_t low = bytes_of(tensors, false), high = bytes_of(tensors, true);
    double last = std::numeric_limits<double>::infinity(), largest_step = 0;
    for (const auto& t : tensors) {
      const auto [least, most] = std::minmax_element(t.options.begin(), t.options.end(), [](const auto& x, const auto& y) { return x.cost < y.cost; });
      largest_step = std::max(largest_step, most->cost - least->cost);
    }
    for (int i = 0; i <= 40; ++i) {
      const std::uint64_t budget = low + (high - low) * static_cast<std::uint64_t>(i) / 40;
      const auto a = allocate(tensors, budget, points);
      REQUIRE(a);
      check_consistent(tensors, *a, budget);
      CHECK(a->least_cost <= a->cost * (1 + 1e-12));
      CHECK(a->cost <= a->least_cost + largest_step);  // what keeping the hull's corners alone guarantees
      CHECK(a->cost <= last);
      last = a->cost;
    }
  }
  // Against the optimum: thinned to a few points, a small instance stays between it and the bound.
  const auto small = random_tensors(7, 5, 3);
  const std::uint64_t budget = (bytes_of(small, false) + bytes_of(small, true)) / 2;
  const double best = brute_force(small, budget);
  const auto a = allocate(small, budget, 8);
  CHECK(a->cost >= best * (1 - 1e-12));
  CHECK(a->least_cost <= best * (1 + 1e-12));
}

TEST_CASE("alike tensors and dominated, equal, free or unusable options") {
  const auto alike = random_tensors(50, 1, 5, true);
  std::vector<allocated_tensor> same(50, alike[0]);
  same[0].options = {{id("q4_0"), 1.0, 100}, {id("q8_0"), 0.25, 190}, {id("q5_0"), 2.0, 120}, {id("q4_1"), 1.0, 100}};
  for (auto& t : same) t.options = same[0].options;
  const auto a = allocate(same, 50 * 100 + 90 * 20 + 89);
  REQUIRE(a);
  CHECK(a->exact);
  CHECK(a->cost == 20 * 0.25 + 30 * 1.0);
  for (const std::size_t c : a->choice) CHECK(c < 2);

  std::vector<allocated_tensor> odd{{"a", {{id("q4_0"), std::nan(""), 1}, {id("q8_0"), 3.0, 7}, {id("q5_0"), -1.0, 1}, {id("q6_k"), INFINITY, 1}}},
                                    {"b", {{id("q4_0"), 0.0, 0}}}};
  const auto b = allocate(odd, 7);
  REQUIRE(b);
  CHECK(b->choice == std::vector<std::size_t>{1, 0});
  const auto poor = allocate(odd, 6);
  REQUIRE(!poor);
  CHECK(poor.error().message == "the smallest formats need 7 bytes, more than the budget of 6");
  odd[1].options = {{id("q4_0"), std::nan(""), 0}};
  CHECK(allocate(odd, 100).error().message == "tensor b has no format with a finite cost");
  odd[1].options = {{id("q4_0"), 1.0, std::numeric_limits<std::uint64_t>::max()}};
  CHECK(!allocate(odd, 100));
  CHECK(allocate({}, 0)->choice.empty());
}

TEST_CASE("globs match whole names, in linear steps") {
  CHECK(glob_match("blk.*.attn_v.weight", "blk.13.attn_v.weight"));
  CHECK(!glob_match("blk.*.attn_v.weight", "blk.13.attn_v.weights"));
  CHECK(!glob_match("attn_v", "blk.13.attn_v.weight"));
  CHECK(glob_match("*attn_?.weight", "blk.13.attn_v.weight"));
  CHECK(!glob_match("blk.?.x", "blk.13.x"));
  CHECK((glob_match("*", "") && glob_match("", "") && !glob_match("?", "") && !glob_match("", "a") && glob_match("**a*", "bab")));
  CHECK(glob_match("[a]", "[a]"));  // no classes: a bracket is a bracket
  CHECK(!glob_match(std::string(50, '*') + "b", std::string(100000, 'a')));
  // Every pattern and name of up to four letters over {a, b, ?, *}, against the recursive definition.
  const auto slow = [](auto&& self, std::string_view p, std::string_view n) -> bool {
    if (p.empty()) return n.empty();
    if (p[0] == '*') return self(self, p.substr(1), n) || (!n.empty() && self(self, p, n.substr(1)));
    return !n.empty() && (p[0] == '?' || p[0] == n[0]) && self(self, p.substr(1), n.substr(1));
  };
  const auto word = [](unsigned i, unsigned letters, const char* alphabet) {
    std::string s;
    for (; i != 0; i /= letters + 1)
      if (i % (letters + 1) != 0) s += alphabet[i % (letters + 1) - 1];
    return s;
  };
  int wrong = 0;
  for (unsigned p = 0; p < 625; ++p)
    for (unsigned n = 0; n < 81; ++n) wrong += glob_match(word(p, 4, "ab?*"), word(n, 2, "ab")) != slow(slow, word(p, 4, "ab?*"), word(n, 2, "ab"));
  CHECK(wrong == 0);
}

TEST_CASE("overrides fix a tensor's format, the first that matches, and say what cannot be") {
  std::vector<allocated_tensor> tensors{{"blk.0.attn_v.weight", {{id("q4_0"), 1, 10}, {id("q8_0"), 0.1, 20}}},
                                        {"blk.1.ffn_down.weight", {{id("q4_0"), 1, 10}, {id("q8_0"), 0.1, 20}}}};
  const std::vector<format_override> overrides{{"*attn_v*", id("q8_0")}, {"blk.0.*", id("q4_0")}};
  REQUIRE(apply_overrides(tensors, overrides));
  CHECK(tensors[0].options.size() == 1);
  CHECK(tensors[1].options.size() == 2);
  const auto a = allocate(tensors, 30);
  REQUIRE(a);
  CHECK(tensors[0].options[a->choice[0]].format == id("q8_0"));
  CHECK(a->bytes == 30);
  const std::vector<format_override> unknown{{"*down*", id("q6_k")}};
  const status s = apply_overrides(tensors, unknown);
  REQUIRE(!s);
  CHECK(s.error().message == "tensor blk.1.ffn_down.weight has no measured option of format q6_k");
  CHECK(!overridden(overrides, "output.weight"));
}

TEST_CASE("stored bytes are the exchange layout's, or nothing") {
  CHECK(stored_bytes(id("q4_k"), 3, 256) == 3 * 144u);
  CHECK(stored_bytes(id("q4_0"), 3, 33) == 3 * 36u);
  CHECK(stored_bytes(id("q4_0"), 0, 33) == 0u);
  CHECK(!stored_bytes(id("f32"), std::size_t{1} << 40, std::size_t{1} << 40));
}
