// What becomes of a product's results before they are stored, while they are in the first-level cache: policies, chained at compile time.
//
// An epilogue is anything that can be called as epilogue(values, count, token, row): it changes `count` results in place, those of
// output rows row … row + count of one token. There is room up to a multiple of 16 values, which may be read and written, so that whole
// registers can be. Epilogues are compiled with the caller's code, once, whichever instruction set runs the product.
#pragma once

#include <lowbit/core/matrix_view.hpp>
#include <lowbit/simd/arch.hpp>

#include <tuple>

namespace lowbit {

template <class E>
concept epilogue = requires(const E& e, float* values, std::size_t n) { e(values, n, n, n); };

/// Nothing: y = x Wᵀ.
struct keep {
  void operator()(float*, std::size_t, std::size_t, std::size_t) const noexcept {}
};

/// y + bias[row].
struct add_bias {
  const float* bias;
  void operator()(float* values, std::size_t count, std::size_t, std::size_t row) const noexcept {
    for (std::size_t i = 0; i < count; ++i) values[i] += bias[row + i];
  }
};

/// y * scale[row].
struct scale_rows {
  const float* scale;
  void operator()(float* values, std::size_t count, std::size_t, std::size_t row) const noexcept {
    for (std::size_t i = 0; i < count; ++i) values[i] *= scale[row + i];
  }
};

/// y + other(token, row): a residual connection. `other` may be the output itself.
struct add_matrix {
  matrix_view<const float> other;
  void operator()(float* values, std::size_t count, std::size_t token, std::size_t row) const noexcept {
    const float* const from = other.row(token) + row;
    for (std::size_t i = 0; i < count; ++i) values[i] += from[i];
  }
};

namespace detail {
/// values = f(values), a register at a time.
template <class F>
void map_registers(float* values, std::size_t count, F&& f) noexcept {
  using floats = simd::batch<float, simd::native>;
  for (std::size_t i = 0; i < count; i += floats::size) f(floats::load_unaligned(values + i)).store_unaligned(values + i);
}
}  // namespace detail

/// SiLU, x / (1 + exp(-x)) (Elfwing et al. 2017).
struct silu {
  void operator()(float* values, std::size_t count, std::size_t, std::size_t) const noexcept {
    detail::map_registers(values, count, [](auto x) { return x / (decltype(x)(1.0f) + xsimd::exp(-x)); });
  }
};

/// GELU, x Φ(x) (Hendrycks and Gimpel 2016).
struct gelu {
  void operator()(float* values, std::size_t count, std::size_t, std::size_t) const noexcept {
    detail::map_registers(values, count, [](auto x) {
      using floats = decltype(x);
      return floats(0.5f) * x * (floats(1.0f) + xsimd::erf(x * floats(0.70710678118654752f)));
    });
  }
};

/// GELU by its approximation with tanh (the same paper, section 2), as most models were trained with.
struct gelu_tanh {
  void operator()(float* values, std::size_t count, std::size_t, std::size_t) const noexcept {
    detail::map_registers(values, count, [](auto x) {
      using floats = decltype(x);
      const floats inner = floats(0.79788456080286536f) * (x + floats(0.044715f) * x * x * x);
      return floats(0.5f) * x * (floats(1.0f) + xsimd::tanh(inner));
    });
  }
};

/// One epilogue after the other.
template <epilogue... E>
class chain {
 public:
  explicit chain(E... parts) : parts_(parts...) {}
  void operator()(float* values, std::size_t count, std::size_t token, std::size_t row) const {
    std::apply([&](const E&... part) { (part(values, count, token, row), ...); }, parts_);
  }

 private:
  std::tuple<E...> parts_;
};

}  // namespace lowbit
