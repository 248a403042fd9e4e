// Bit allocation: which format each tensor gets, so that the sum of measured costs is least within a budget of bytes.
//
// One option for each tensor: the multiple-choice knapsack. Solved by the frontier of (bytes, cost) pairs that no other pair beats, built up
// tensor by tensor (dynamic programming with dominance; Kellerer, Pferschy and Pisinger 2004, chapter 11). While no frontier has more
// than `points` pairs the result is the optimum; beyond it the frontier is thinned, always keeping the corners of its convex hull, which are
// what a Lagrange multiplier finds. The frontier does not depend on the budget, so a larger budget never costs more. `least_cost` is a
// lower bound by linear relaxation (Sinha and Zoltners 1979), so that how far from the optimum a result can be is always known.
#pragma once

#include <lowbit/core/error.hpp>
#include <lowbit/format/registry.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lowbit {

/// A format that a tensor may get: what it costs (an error, a KL divergence: anything that adds up over tensors) and its bytes.
struct format_option {
  format_id format{};
  double cost = 0;
  std::uint64_t bytes = 0;
};

/// A tensor and what it may become.
struct allocated_tensor {
  std::string name;
  std::vector<format_option> options;
};

/// Bytes of a [rows, cols] tensor in the exchange layout, or nothing where they do not fit in 64 bits.
inline std::optional<std::uint64_t> stored_bytes(format_id format, std::size_t rows, std::size_t cols) noexcept {
  const format_spec& s = spec_of_id(format);
  const auto row = checked_mul(s.row_blocks(cols), s.bytes);
  return row ? checked_mul(*row, rows) : std::nullopt;
}

/// A choice for every tensor.
struct allocation {
  std::vector<std::size_t> choice;  ///< of each tensor's options
  double cost = 0;
  std::uint64_t bytes = 0;
  double least_cost = 0;            ///< no choice within the budget costs less than this
  bool exact = true;                ///< this one is the optimum
};

/// Whether a name matches a pattern of literal characters, `?` (any one) and `*` (any number, also none), as a whole. In
/// O(pattern * name) steps whatever the pattern.
constexpr bool glob_match(std::string_view pattern, std::string_view name) noexcept {
  std::size_t p = 0, n = 0, star = pattern.npos, from = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      from = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != pattern.npos) {
      p = star + 1;
      n = ++from;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

/// "blk.*.attn_v.weight gets q6_k".
struct format_override {
  std::string pattern;
  format_id format{};
};

/// The format of the first pattern that matches, or nothing: overrides are read in order, as llama.cpp reads --tensor-type.
inline std::optional<format_id> overridden(std::span<const format_override> overrides, std::string_view name) noexcept {
  for (const format_override& o : overrides)
    if (glob_match(o.pattern, name)) return o.format;
  return std::nullopt;
}

namespace detail {

/// A pair of the frontier, and how it came about: the pair of the tensors before and the option that was added.
struct frontier_point {
  std::uint64_t bytes;
  double cost;
  std::uint32_t before, option;
};

/// Sorts by bytes and keeps only points that cost less than all smaller ones.
inline void keep_frontier(std::vector<frontier_point>& points) {
  std::sort(points.begin(), points.end(), [](const frontier_point& a, const frontier_point& b) {
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    if (a.cost != b.cost) return a.cost < b.cost;
    return a.before != b.before ? a.before < b.before : a.option < b.option;
  });
  std::size_t kept = 0;
  for (const frontier_point& p : points)
    if (kept == 0 || p.cost < points[kept - 1].cost) points[kept++] = p;
  points.resize(kept);
}

/// The points of a frontier that are corners of its lower convex hull, in order.
inline std::vector<std::size_t> hull_corners(const std::vector<frontier_point>& f) {
  const auto slope = [&](std::size_t a, std::size_t b) { return (f[a].cost - f[b].cost) / static_cast<double>(f[b].bytes - f[a].bytes); };
  std::vector<std::size_t> hull;
  for (std::size_t i = 0; i < f.size(); ++i) {
    while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

/// At most about `limit` points: the hull's corners, and of every equal step of bytes the cheapest point.
inline void thin_frontier(std::vector<frontier_point>& f, std::size_t limit) {
  const std::vector<std::size_t> corners = hull_corners(f);
  std::size_t next = 0;  // of them, the last too is one
  const double step = static_cast<double>(f.back().bytes - f.front().bytes) / static_cast<double>(limit);
  const auto bucket = [&](std::size_t i) { return std::floor(static_cast<double>(f[i].bytes - f.front().bytes) / step); };
  std::vector<frontier_point> thin;
  for (std::size_t i = 0; i < f.size(); ++i) {  // costs fall, so the last of a bucket is its cheapest
    const bool corner = i == corners[next];
    next += corner;
    if (corner || bucket(i) != bucket(i + 1)) thin.push_back(f[i]);
  }
  f = std::move(thin);
}

/// The options of a tensor as a frontier; those whose cost is negative or not a finite number are left out.
inline std::vector<frontier_point> option_frontier(const allocated_tensor& t) {
  std::vector<frontier_point> f;
  for (std::size_t i = 0; i < t.options.size(); ++i)
    if (t.options[i].cost >= 0 && std::isfinite(t.options[i].cost)) f.push_back({t.options[i].bytes, t.options[i].cost, 0, static_cast<std::uint32_t>(i)});
  keep_frontier(f);
  return f;
}

/// The cost of the linear relaxation: all tensors at their smallest, then steps along their hulls by falling slope, the last in part.
inline double relaxed_cost(const std::vector<std::vector<frontier_point>>& tensors, std::uint64_t budget) {
  struct step {
    double saved, bytes;
  };
  std::vector<step> steps;
  double cost = 0, left = static_cast<double>(budget);
  for (const auto& f : tensors) {
    std::size_t last = 0;  // the first corner too
    cost += f[0].cost;
    left -= static_cast<double>(f[0].bytes);
    for (const std::size_t i : hull_corners(f)) {
      if (i == 0) continue;
      steps.push_back({f[last].cost - f[i].cost, static_cast<double>(f[i].bytes - f[last].bytes)});
      last = i;
    }
  }
  std::sort(steps.begin(), steps.end(), [](const step& a, const step& b) { return a.saved * b.bytes > b.saved * a.bytes; });
  for (const step& s : steps) {
    if (s.bytes > left) return cost - s.saved * std::max(left, 0.0) / s.bytes;
    cost -= s.saved;
    left -= s.bytes;
  }
  return cost;
}

}  // namespace detail

/// Leaves every tensor that a pattern matches only the option of that format. Fails (not_found) where it has none.
inline status apply_overrides(std::span<allocated_tensor> tensors, std::span<const format_override> overrides) {
  for (allocated_tensor& t : tensors) {
    const std::optional<format_id> forced = overridden(overrides, t.name);
    if (!forced) continue;
    const auto found = std::find_if(t.options.begin(), t.options.end(), [&](const format_option& o) { return o.format == *forced; });
    if (found == t.options.end())
      return failure{errc::not_found, "tensor " + t.name + " has no measured option of format " + std::string(spec_of_id(*forced).name)};
    t.options = {*found};
  }
  return done{};
}

/// Chooses. Fails where a tensor has no usable option, or where the smallest ones exceed the budget; both say by name and number.
/// `points` bounds time and memory: about 24 bytes * points for each tensor.
inline result<allocation> allocate(std::span<const allocated_tensor> tensors, std::uint64_t budget, std::size_t points = 4096) {
  LOWBIT_EXPECTS(points >= 2);
  std::vector<std::vector<detail::frontier_point>> options;
  std::uint64_t smallest = 0;
  for (const allocated_tensor& t : tensors) {
    options.push_back(detail::option_frontier(t));
    if (options.back().empty()) return failure{errc::not_found, "tensor " + t.name + " has no format with a finite cost"};
    std::uint64_t most = 0;
    for (const detail::frontier_point& p : options.back()) most = std::max(most, p.bytes);
    if (most > (std::uint64_t{1} << 62) / tensors.size()) return failure{errc::bad_value, "tensor " + t.name + " has an option of too many bytes"};
    smallest += options.back().front().bytes;
  }
  if (smallest > budget)
    return failure{errc::bad_value, "the smallest formats need " + std::to_string(smallest) + " bytes, more than the budget of " + std::to_string(budget)};

  allocation out;
  std::vector<std::vector<detail::frontier_point>> steps;  // the frontier of the first 0, 1, 2 ... tensors
  steps.push_back({{0, 0.0, 0, 0}});
  std::vector<detail::frontier_point> next;
  for (const auto& f : options) {
    const auto& last = steps.back();
    next.clear();
    for (std::size_t i = 0; i < last.size(); ++i)
      for (const detail::frontier_point& o : f)
        next.push_back({last[i].bytes + o.bytes, last[i].cost + o.cost, static_cast<std::uint32_t>(i), o.option});
    detail::keep_frontier(next);
    if (next.size() > points) {
      out.exact = false;
      detail::thin_frontier(next, points);
    }
    steps.push_back(next);
  }
  const auto& all = steps.back();
  std::size_t at = 0;
  while (at + 1 < all.size() && all[at + 1].bytes <= budget) ++at;
  out.cost = all[at].cost;
  out.bytes = all[at].bytes;
  out.least_cost = out.exact ? out.cost : std::min(out.cost, detail::relaxed_cost(options, budget));
  out.choice.resize(tensors.size());
  for (std::size_t t = tensors.size(); t-- > 0;) {
    out.choice[t] = steps[t + 1][at].option;
    at = steps[t + 1][at].before;
  }
  return out;
}

}  // namespace lowbit
