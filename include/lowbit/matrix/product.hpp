// y = x Wᵀ, one or many at a time: the calls that engines make.
//
// Activations are prepared (quantised, laid out) once and shared by neighbours of a batch that take the same ones: query, key and value,
// or gate and up. The work is dealt out by shapes alone, so results have the same bits for every executor, and on the int8 path for every
// machine.
#pragma once

#include <lowbit/matrix/epilogue.hpp>
#include <lowbit/matrix/low_rank.hpp>
#include <lowbit/matrix/panel_matrix.hpp>

#include <algorithm>

namespace lowbit {

/// How activations enter a product. Float weights run exact, but those of bfloat16 with `bf16`; a codebook of floats (NF4, FP4) is exact in no
/// other way, integers round its values to 2^-14 of the codebook's range.
enum class precision : std::uint8_t {
  int8,       ///< quantised to 8 bits per block of weights
  automatic,  ///< int16 beside codes of 6 bits and more, which err less than 8-bit activations do; int8 beside the others
  int16,      ///< quantised to 12 to 16 bits per block beside codes of 6 bits and more; exact beside the others
  bf16,       ///< rounded to bfloat16 beside weights of bfloat16, where the processor multiplies them (AVX512_BF16, AMX); exact beside the others
  exact       ///< as floats
};

/// What a precision means for one matrix.
inline kernel::activation_kind activations_for(const panel_matrix& w, precision how) noexcept {
  using enum kernel::activation_kind;
  const auto or_floats = [&](kernel::activation_kind kind) { return w.products().has(kind) ? kind : floats; };
  switch (how) {
    case precision::int8: return or_floats(int8);
    case precision::int16: return or_floats(int16);
    case precision::automatic: return w.products().has(int16) ? int16 : or_floats(int8);
    case precision::bf16: return or_floats(bf16);
    case precision::exact: break;
  }
  return floats;
}

/// Which rows a product takes or writes: all of them, in order, or those of a list, which may be empty (an expert without tokens).
class token_list {
 public:
  token_list() = default;
  token_list(std::span<const std::uint32_t> rows) : rows_(rows), all_(false) {}  // a list of rows is a token_list
  [[nodiscard]] bool all() const noexcept { return all_; }
  [[nodiscard]] std::size_t size() const noexcept { return rows_.size(); }
  /// Null where it is all rows.
  [[nodiscard]] const std::uint32_t* data() const noexcept { return all_ ? nullptr : rows_.data(); }
  [[nodiscard]] std::size_t operator[](std::size_t i) const noexcept { return all_ ? i : rows_[i]; }

 private:
  std::span<const std::uint32_t> rows_;
  bool all_ = true;
};

/// One product of a batch: y[to[i], :] = epilogue(x[from[i], :] Wᵀ), or with a gate epilogue(activation(x Gᵀ) * (x Wᵀ)). To either product
/// something of low rank may be added before anything else happens to it (adapt/adapted_product.hpp prepares that).
/// Expects x.cols == w->cols(), y.cols == w->rows(), a gate of w's shape, and no row of any y written twice or read by another product.
struct product {
  matrix_view<const float> x;
  const panel_matrix* w = nullptr;
  matrix_view<float> y;
  const panel_matrix* gate = nullptr;
  token_list from{}, to{};  ///< the tokens' rows of x and of y
  const add_low_rank* plus = nullptr;       ///< added to x Wᵀ; null: nothing
  const add_low_rank* gate_plus = nullptr;  ///< added to x Gᵀ

  [[nodiscard]] std::size_t tokens() const noexcept { return !from.all() ? from.size() : !to.all() ? to.size() : x.rows; }
};

namespace detail {

/// Activations for one matrix, and the kernels that take them.
struct operand {
  const panel_matrix* w;
  matrix_view<const float> x;
  const std::uint32_t* from;
  std::size_t tokens;
  kernel::activation_kind kind;
  kernel::activation_buffers buffers;
  float* ordered = nullptr;  ///< [tokens, cols] x as the matrix takes it, where that is not as it is: columns in another order, or some ignored

  [[nodiscard]] std::size_t tiles() const noexcept { return ceil_div(tokens, tile_tokens()); }
  [[nodiscard]] std::size_t tile_tokens() const noexcept { return w->unit().tile_tokens(w->layout(), kind, tokens); }
  std::size_t place(std::uint8_t* memory) noexcept {
    const std::size_t own = w->inputs().empty() && w->ignored().empty() ? 0 : round_up(tokens * x.cols * sizeof(float), 64);
    if (own != 0 && memory != nullptr) ordered = reinterpret_cast<float*>(memory);
    return own + kernel::place_activations(w->layout(), tokens, x.cols, tile_tokens(), kind, memory == nullptr ? nullptr : memory + own,
                                           memory == nullptr ? nullptr : &buffers);
  }
  [[nodiscard]] bool serves(const operand& o) const noexcept {
    return x.data == o.x.data && x.stride == o.x.stride && from == o.from && tokens == o.tokens && kind == o.kind && &w->unit() == &o.w->unit() &&
           x.cols == o.x.cols && tile_tokens() == o.tile_tokens() && kernel::share_activations(w->layout(), o.w->layout(), kind) && w->inputs() == o.w->inputs() &&
           w->ignored() == o.w->ignored();
  }
  void prepare(std::size_t begin, std::size_t end) const noexcept {
    kernel::activation_args a{&w->layout(), x.data, x.stride, from, tokens, x.cols, begin, end, buffers};
    if (ordered != nullptr) {
      const std::size_t each = tile_tokens(), last = std::min(end * each, tokens);
      for (std::size_t t = begin * each; t < last; ++t) {
        const float* const row = x.row(from != nullptr ? from[t] : t);
        float* const to = ordered + t * x.cols;
        for (std::size_t c = 0; c < x.cols; ++c) to[c] = row[w->inputs().empty() ? c : w->inputs()[c]];
        for (const std::uint32_t c : w->ignored()) to[c] = 0;
      }
      a.x = ordered;
      a.x_stride = x.cols;
      a.from = nullptr;
    }
    w->unit().prepare[static_cast<std::size_t>(kind)](a);
  }
};

}  // namespace detail

/// Memory that products reuse. One for each thread that calls multiply; grows to the largest call seen.
class workspace {
 public:
  /// Room for prepared activations. What was there is lost.
  std::uint8_t* reserve(std::size_t bytes) {
    if (bytes > buffer_.size()) {
      buffer_ = aligned_buffer();
      buffer_ = aligned_buffer(bytes);
      LOWBIT_EXPECTS(buffer_.size() == bytes);
    }
    return buffer_.data();
  }

  /// What a call prepares, and which of it each matrix takes. For multiply.
  std::vector<detail::operand> operands;
  std::vector<std::size_t> taken;

 private:
  aligned_buffer buffer_;
};

/// Bytes of results from which products of many tokens write them past the caches: more than a core's own caches hold.
inline constexpr std::size_t results_past_caches = std::size_t{4} << 20;

namespace detail {

/// Where the tiles of one matrix go.
template <class Epilogue, class Activation>
struct destination {
  const product* p;
  const Epilogue* epilogue;
  const Activation* activation;

  /// A tile of p->gate, or of p->w: called back by kernels.
  template <bool Gate>
  static void finish(const void* context, float* values, std::size_t stride, std::size_t row, std::size_t rows, std::size_t token,
                     std::size_t tokens) noexcept {
    const auto& d = *static_cast<const destination*>(context);
    for (std::size_t t = 0; t < tokens; ++t, values += stride) {
      const std::size_t at = d.p->to[token + t];
      float* const out = d.p->y.row(at) + row;
      if (const float factor = (Gate ? d.p->gate : d.p->w)->factor(); factor != 1.0f)
        for (std::size_t i = 0; i < rows; ++i) values[i] *= factor;
      if (const add_low_rank* const plus = Gate ? d.p->gate_plus : d.p->plus; plus != nullptr)
        (*plus)((Gate ? d.p->gate : d.p->w)->unit(), values, rows, at, row);
      if constexpr (Gate) {
        (*d.activation)(values, rows, at, row);
      } else {
        if (d.p->gate != nullptr)
          for (std::size_t i = 0; i < rows; ++i) values[i] *= out[i];
        (*d.epilogue)(values, rows, at, row);
      }
      std::memcpy(out, values, rows * sizeof(float));
    }
  }

  template <bool Gate>
  void run(const panel_matrix& w, const operand& x, std::size_t begin, std::size_t end) const noexcept {
    const bool plain = std::is_same_v<Epilogue, keep> && p->gate == nullptr && p->to.all() && p->w->factor() == 1.0f && p->plus == nullptr;
    const kernel::multiply_args a{&w.layout(), w.data(), w.rows(), w.cols(), begin, end, x.buffers, x.tokens, p->y.data, p->y.stride,
                                  plain && x.tokens > 1 && goes_past_caches(p->y, results_past_caches), plain ? nullptr : &destination::finish<Gate>, this};
    w.products()[x.kind](a);
  }
};

}  // namespace detail

/// All products of a batch, in two parallel regions: activations, then matrices, dealt out by how much work they are.
template <executor E, epilogue Epilogue = keep, epilogue Activation = silu>
void multiply(std::span<const product> batch, workspace& space, E& executor, precision how = precision::int8,
              const Epilogue& epilogue = {}, const Activation& activation = {}) {
  constexpr std::size_t pair = 2;  // panels that kernels take at once
  const auto works = [](const product& p) { return p.tokens() != 0 && p.w->rows() != 0; };
  const auto pairs_of = [](const product& p) { return ceil_div(kernel::panel_count(p.w->rows()), pair); };
  const auto cost_of = [](const product& p) { return (p.tokens() + 8) * (p.w->cols() + 1) * (p.gate != nullptr ? 2 : 1); };

  auto& operands = space.operands;
  auto& taken = space.taken;
  operands.clear();
  taken.clear();
  std::size_t total_cost = 0, total_pairs = 0;
  for (const product& p : batch) {
    LOWBIT_EXPECTS(p.w != nullptr && p.x.cols == p.w->cols() && p.y.cols == p.w->rows());
    LOWBIT_EXPECTS(p.gate == nullptr || (p.gate->rows() == p.w->rows() && p.gate->cols() == p.w->cols()));
    LOWBIT_EXPECTS((p.to.all() ? p.y.rows : p.to.size()) == p.tokens() && (!p.from.all() || p.x.rows == p.tokens()));
    if (!works(p)) continue;
    for (const panel_matrix* w : {p.w, p.gate}) {
      if (w == nullptr) continue;
      const detail::operand o{w, p.x, p.from.data(), p.tokens(), activations_for(*w, how), {}};
      if (operands.empty() || !operands.back().serves(o)) operands.push_back(o);
      taken.push_back(operands.size() - 1);
    }
    total_cost += cost_of(p) * pairs_of(p);
    total_pairs += pairs_of(p);
  }
  if (total_pairs == 0) return;

  std::size_t bytes = 0, tiles = 0;
  for (detail::operand& o : operands) bytes += o.place(nullptr);
  std::uint8_t* memory = space.reserve(bytes);
  for (detail::operand& o : operands) {
    memory += o.place(memory);
    tiles += o.tiles();
  }
  for_parts(executor, tiles, 4, [&](std::size_t begin, std::size_t end) {
    for (const detail::operand& o : operands) {
      const std::size_t count = o.tiles();
      if (begin < count && end != 0) o.prepare(begin, end < count ? end : count);
      begin = begin < count ? 0 : begin - count;
      end = end < count ? 0 : end - count;
    }
  });

  const std::size_t width = executor.concurrency(), tasks = total_pairs < width ? total_pairs : width == 0 ? 1 : width;
  const auto task = [&](std::size_t index) {
    // A pair belongs to the task in whose share of the cost it begins.
    const std::size_t first = index * total_cost, last = first + total_cost;
    std::size_t before = 0, which = 0;
    for (const product& p : batch) {
      if (!works(p)) continue;
      const std::size_t each = cost_of(p) * tasks, pairs = pairs_of(p), panels = kernel::panel_count(p.w->rows());
      const auto pair_at = [&](std::size_t cost) {
        const std::size_t n = cost <= before ? 0 : ceil_div(cost - before, each);
        return n < pairs ? n : pairs;
      };
      const detail::destination<Epilogue, Activation> out{&p, &epilogue, &activation};
      const detail::operand& x = operands[taken[which]];
      const std::size_t begin = pair_at(first), end = pair_at(last);
      if (p.gate == nullptr) {
        if (begin < end) out.template run<false>(*p.w, x, begin * pair, end * pair < panels ? end * pair : panels);
        which += 1;
      } else {
        const detail::operand& gate_x = operands[taken[which + 1]];
        for (std::size_t i = begin; i < end; ++i) {  // y holds the gate's values until those of w come, soon
          const std::size_t stop = (i + 1) * pair < panels ? (i + 1) * pair : panels;
          out.template run<true>(*p.gate, gate_x, i * pair, stop);
          out.template run<false>(*p.w, x, i * pair, stop);
        }
        which += 2;
      }
      before += each * pairs;
    }
  };
  if (tasks == 1) task(0);
  else executor.run(tasks, task);
}

/// y[tokens, out] = epilogue(x[tokens, in] Wᵀ). Expects x.cols == w.cols(), y.cols == w.rows(), equal rows, and y apart from x.
/// Without an epilogue a y of results_past_caches whose rows begin with lines (aligned to 64 bytes, the stride a multiple of 16) is written past the
/// caches, which is faster.
template <executor E, epilogue Epilogue = keep>
void multiply(matrix_view<const float> x, const panel_matrix& w, matrix_view<float> y, workspace& space, E& executor,
              precision how = precision::int8, const Epilogue& epilogue = {}) {
  const product one{x, &w, y};
  multiply(std::span(&one, 1), space, executor, how, epilogue);
}

/// The same with everything on the calling thread.
inline void multiply(matrix_view<const float> x, const panel_matrix& w, matrix_view<float> y, workspace& space,
                     precision how = precision::int8) {
  serial_executor serial;
  multiply(x, w, y, space, serial, how);
}

}  // namespace lowbit
