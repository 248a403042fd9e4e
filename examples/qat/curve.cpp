#include "curve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace qat {
namespace {

constexpr double left = 70, right = 230, top = 40, bottom = 50, width = 900, height = 480;
constexpr const char* colours[] = {"#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#444444"};

/// Of the last steps / 20 losses and those before them alike, at every step.
std::vector<double> smoothed(const std::vector<double>& losses) {
  const double keep = 1 - 1 / std::max(1.0, static_cast<double>(losses.size()) / 20);
  std::vector<double> out;
  double sum = 0, weight = 0;
  for (const double l : losses) {
    sum = keep * sum + l;
    weight = keep * weight + 1;
    out.push_back(sum / weight);
  }
  return out;
}

/// 1, 2 or 5 times a power of ten, so that about five fit into the range.
double tick_of(double range) {
  const double raw = range / 5, power = std::pow(10.0, std::floor(std::log10(raw)));
  return power * (raw < 2 * power ? 1 : raw < 5 * power ? 2 : 5);
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}

}  // namespace

std::string draw_curves(const std::string& title, const std::string& unit, const std::vector<series>& curves, const std::vector<level>& levels) {
  std::vector<std::vector<double>> all;
  double low = 1e300, high = -1e300, steps = 1;
  for (const series& s : curves) {
    all.push_back(smoothed(s.losses));
    for (const double l : all.back()) low = std::min(low, l), high = std::max(high, l);
    steps = std::max(steps, static_cast<double>(s.losses.size()));
  }
  for (const level& l : levels) low = std::min(low, l.loss), high = std::max(high, l.loss);
  if (!(low < high)) low -= 0.5, high = low + 1;
  const double margin = (high - low) * 0.05;
  low -= margin, high += margin;
  const auto x = [&](double step) { return left + (width - left - right) * step / steps; };
  const auto y = [&](double loss) { return height - bottom - (height - top - bottom) * (loss - low) / (high - low); };

  std::string svg = fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n"
                                "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{}\" y=\"22\" font-size=\"15\">{}</text>\n",
                                width, height, left, escaped(title));
  const auto line = [&](double x1, double y1, double x2, double y2, const char* stroke, const char* more) {
    svg += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"{}/>\n", x1, y1, x2, y2, stroke, more);
  };
  const auto text = [&](double at_x, double at_y, const char* anchor, const std::string& what, const char* fill = "#222") {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", at_x, at_y, anchor, fill, escaped(what));
  };
  const double y_tick = tick_of(high - low), x_tick = tick_of(steps);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(y_tick) + 1e-9)));
  for (double i = std::ceil(low / y_tick); i * y_tick <= high; ++i) {
    const double v = i * y_tick + 0.0;  // which makes -0 a 0
    line(left, y(v), width - right, y(v), "#e4e4e4", "");
    text(left - 8, y(v) + 4, "end", fmt::format("{:.{}f}", v, decimals));
  }
  for (double v = 0; v <= steps; v += x_tick) {
    line(x(v), height - bottom, x(v), height - bottom + 5, "#222", "");
    text(x(v), height - bottom + 20, "middle", fmt::format("{:.0f}", v));
  }
  line(left, top, left, height - bottom, "#222", "");
  line(left, height - bottom, width - right, height - bottom, "#222", "");
  text((left + width - right) / 2, height - 12, "middle", "step");
  svg += fmt::format("<text transform=\"translate(18 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n", (top + height - bottom) / 2,
                     escaped(unit));
  for (const level& l : levels) line(left, y(l.loss), width - right, y(l.loss), "#888", " stroke-dasharray=\"5 4\"");
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::string points;
    for (std::size_t s = 0; s < all[i].size(); ++s) points += fmt::format("{:.1f},{:.1f} ", x(static_cast<double>(s)), y(all[i][s]));
    svg += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" points=\"{}\"/>\n", colours[i % std::size(colours)], points);
  }
  // Labels on the right, from the top down, apart from each other and above the axis' end, each with a line to what it names.
  struct label {
    double of, at;
    std::string text;
    const char* colour;
  };
  std::vector<label> labels;
  const auto name = [&](const std::string& what, double loss, const char* colour) {
    labels.push_back({y(loss), y(loss), fmt::format("{} {:.3f}", what, loss), colour});
  };
  for (const level& l : levels) name(l.name, l.loss, "#666");
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!all[i].empty()) name(curves[i].name, all[i].back(), colours[i % std::size(colours)]);
  std::sort(labels.begin(), labels.end(), [](const label& a, const label& b) { return a.of < b.of; });
  double room = height - bottom;
  for (auto l = labels.rbegin(); l != labels.rend(); ++l) room = (l->at = std::min(l->at, room)) - 15;
  room = top;
  for (label& l : labels) {
    room = (l.at = std::max(l.at, room)) + 15;
    line(width - right + 2, l.of, width - right + 18, l.at, l.colour, " stroke-width=\"0.7\"");
    text(width - right + 22, l.at + 4, "start", l.text, l.colour);
  }
  return svg + "</svg>\n";
}

}  // namespace qat
