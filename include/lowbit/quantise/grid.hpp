// A grid: the values that one block can take once its scales are chosen. Algorithms see formats only through this.
//
// A fit chooses a block's fields; the grid then says which code a value rounds to and what value a code has, at any position. Both
// use the scales as they are stored, so that value(code(v, i), i) is exactly what a reader of the file will get.
#pragma once

#include <lowbit/kernel/dispatch.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace lowbit {

/// Storage for one block's fields, for any format. Reused from block to block.
class block_buffer {
 public:
  explicit block_buffer(const format_spec& s) : sub_scale_(s.sub_blocks()), sub_minimum_(s.sub_blocks()), codes_(s.block) {}
  [[nodiscard]] block_fields fields() noexcept {
    return {&scale_, &minimum_, &zero_point_, sub_scale_.data(), sub_minimum_.data(), codes_.data()};
  }

 private:
  std::uint32_t scale_ = 0, minimum_ = 0;
  std::uint8_t zero_point_ = 0;
  std::vector<std::uint8_t> sub_scale_, sub_minimum_, codes_;
};

/// The grid of one block whose scales, minima and zero-point are chosen.
class grid {
 public:
  grid(const format_spec& s, const block_fields& f) : spec_(&s), zero_(s.zero_point.present() ? *f.zero_point : 0) {
    const float scale = number_value(s.scale.type, *f.scale), minimum = number_value(s.minimum.type, *f.minimum);
    for (std::size_t j = 0; j < s.sub_blocks(); ++j) {
      affine a{scale, s.minimum.present() ? minimum : 0.0f};
      if (s.sub_scale.present()) a.scale = rounded_product(scale, sub_scale_value(s, f.sub_scale[j]));
      if (s.sub_minimum.present()) a.offset = -rounded_product(minimum, static_cast<float>(s.sub_minimum.value(f.sub_minimum[j])));
      sub_[j] = {a.scale, a.offset, a.scale != 0.0f && std::isfinite(1.0f / a.scale) ? 1.0f / a.scale : 0.0f, zero_};
    }
  }

  /// The code whose value is nearest to v (codebooks: by their decision bounds; evenly spaced codes: ties to even).
  [[nodiscard]] unsigned code(float v, std::size_t i) const noexcept {
    const kernel::grid_map& m = sub_[i / spec_->sub_block()];
    const float level = rounded_product(v - m.offset, m.inverse);
    if (spec_->values.present()) return spec_->values.nearest(level);
    const float lowest = static_cast<float>(spec_->codes.lowest() - zero_), highest = static_cast<float>(spec_->codes.highest() - zero_);
    const float clamped = level < lowest ? lowest : level > highest ? highest : level;
    return spec_->codes.stored(static_cast<int>(std::nearbyint(clamped)) + zero_);
  }
  /// The same for n weights at once, the first of them at position `first`. Codes and values go where their pointers are not null.
  void round(std::size_t first, const float* x, std::size_t n, std::uint8_t* codes, float* values = nullptr) const noexcept {
    const std::size_t sub = spec_->sub_block();
    for (std::size_t i = 0, end; i < n; i = end) {
      end = std::min(n, ((first + i) / sub + 1) * sub - first);
      LOWBIT_BEST_KERNEL(round_weights)({spec_, x + i, end - i, &sub_[(first + i) / sub], false, codes != nullptr ? codes + i : nullptr,
                                         values != nullptr ? values + i : nullptr});
    }
  }
  /// What a reader will see.
  [[nodiscard]] float value(unsigned code, std::size_t i) const noexcept {
    const kernel::grid_map& m = sub_[i / spec_->sub_block()];
    const float v = rounded_product(m.scale, level_of(*spec_, code, zero_));
    return spec_->minimum.present() ? v + m.offset : v;
  }
  [[nodiscard]] const format_spec& spec() const noexcept { return *spec_; }
  /// What the weights of sub-block j share; the level that it scales is counted from the zero-point.
  [[nodiscard]] const kernel::grid_map& map(std::size_t j) const noexcept { return sub_[j]; }

 private:
  const format_spec* spec_;
  int zero_;
  kernel::grid_map sub_[max_sub_blocks];
};

}  // namespace lowbit
