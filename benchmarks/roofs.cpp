#include "roofs.hpp"

#include "pinned_executor.hpp"

#include <lowbit/core/aligned_buffer.hpp>
#include <lowbit/core/executor.hpp>
#include <lowbit/simd/arch.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <iterator>
#include <map>
#include <numeric>
#include <span>
#include <string_view>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lowbit::bench {

namespace {

double seconds_of(auto&& f) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Words that sum_of adds up at once.
constexpr std::size_t line = 32;
std::map<std::size_t, double> best_read;  // by threads

/// More than twice any last-level cache that this is likely to meet. As weights are: aligned, and in huge pages where the system gives them.
std::span<std::uint64_t> memory() {
  static aligned_buffer m(std::size_t{256} << 20);
  return {reinterpret_cast<std::uint64_t*>(m.data()), m.size() / 8};
}

#if defined(__x86_64__)
// Twelve independent accumulators cover the latency of every core so far. They are variables of their own, because an array of them
// would live in memory, and the asm keeps the loop from being folded.
#define LOWBIT_EACH(f) f(v0) f(v1) f(v2) f(v3) f(v4) f(v5) f(v6) f(v7) f(v8) f(v9) f(v10) f(v11)
constexpr double accumulators = 12;
#define LOWBIT_PEAK(name, target_isa, reg, zero, op)                                                                       \
  __attribute__((target(target_isa))) void name(std::size_t rounds) {                                                      \
    reg a = zero(), b = zero();                                                                                            \
    reg v0 = a, v1 = a, v2 = a, v3 = a, v4 = a, v5 = a, v6 = a, v7 = a, v8 = a, v9 = a, v10 = a, v11 = a;                  \
    asm volatile("" : "+x"(a), "+x"(b));                                                                                   \
    for (std::size_t r = 0; r < rounds; ++r) {                                                                             \
      LOWBIT_EACH(op)                                                                                                      \
      asm volatile("" : "+x"(v0), "+x"(v1), "+x"(v2), "+x"(v3), "+x"(v4), "+x"(v5), "+x"(v6), "+x"(v7), "+x"(v8),          \
                   "+x"(v9), "+x"(v10), "+x"(v11));                                                                        \
    }                                                                                                                      \
  }
#define LOWBIT_VNNI512(v) v = _mm512_dpbusd_epi32(v, a, b);
#define LOWBIT_VNNI256(v) v = _mm256_dpbusd_avx_epi32(v, a, b);
#define LOWBIT_BF16(v) asm volatile("vdpbf16ps %2, %1, %0" : "+v"(v) : "v"(a), "v"(b));
#define LOWBIT_BW512(v) v = _mm512_add_epi32(v, _mm512_madd_epi16(_mm512_maddubs_epi16(a, v), b));
#define LOWBIT_AVX2(v) v = _mm256_add_epi32(v, _mm256_madd_epi16(_mm256_maddubs_epi16(a, v), b));
#define LOWBIT_SSSE3(v) v = _mm_add_epi32(v, _mm_madd_epi16(_mm_maddubs_epi16(a, v), b));
#define LOWBIT_FMA512(v) v = _mm512_fmadd_ps(a, b, v);
#define LOWBIT_FMA256(v) v = _mm256_fmadd_ps(a, b, v);
#define LOWBIT_MULADD128(v) v = _mm_add_ps(_mm_mul_ps(a, v), b);
LOWBIT_PEAK(dots_vnni512, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_setzero_si512, LOWBIT_VNNI512)
LOWBIT_PEAK(dots_vnni256, "avx2,avxvnni", __m256i, _mm256_setzero_si256, LOWBIT_VNNI256)
LOWBIT_PEAK(dots_bw512, "avx512f,avx512bw", __m512i, _mm512_setzero_si512, LOWBIT_BW512)
LOWBIT_PEAK(dots_avx2, "avx2", __m256i, _mm256_setzero_si256, LOWBIT_AVX2)
LOWBIT_PEAK(dots_ssse3, "ssse3", __m128i, _mm_setzero_si128, LOWBIT_SSSE3)
LOWBIT_PEAK(dots_bf16, "avx512f", __m512, _mm512_setzero_ps, LOWBIT_BF16)
LOWBIT_PEAK(fma_512, "avx512f", __m512, _mm512_setzero_ps, LOWBIT_FMA512)
LOWBIT_PEAK(fma_256, "avx2,fma", __m256, _mm256_setzero_ps, LOWBIT_FMA256)
LOWBIT_PEAK(mul_add_128, "sse2", __m128, _mm_setzero_ps, LOWBIT_MULADD128)

/// Four registers of sums, two by two from as many factors. Bfloat16 or int8.
template <bool Bf16>
void matrix_products(std::size_t rounds) {
  struct {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shape;
  asm volatile("ldtilecfg %0" : : "m"(shape));
  for (std::size_t r = 0; r < rounds; ++r)
    if constexpr (Bf16)
      asm volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\n tdpbf16ps %tmm6, %tmm5, %tmm1\n tdpbf16ps %tmm7, %tmm4, %tmm2\n tdpbf16ps %tmm7, %tmm5, %tmm3");
    else
      asm volatile("tdpbusd %tmm6, %tmm4, %tmm0\n tdpbusd %tmm6, %tmm5, %tmm1\n tdpbusd %tmm7, %tmm4, %tmm2\n tdpbusd %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
}

/// Adds up memory with loads as wide as the kernels'.
__attribute__((target("avx512f"))) std::uint64_t sum_512(std::span<const std::uint64_t> m) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (std::size_t i = 0; i < m.size(); i += 32) {
    a = _mm512_add_epi64(a, _mm512_loadu_si512(&m[i]));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(&m[i + 8]));
    c = _mm512_add_epi64(c, _mm512_loadu_si512(&m[i + 16]));
    d = _mm512_add_epi64(d, _mm512_loadu_si512(&m[i + 24]));
  }
  std::uint64_t lanes[8];
  _mm512_storeu_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
  return std::accumulate(std::begin(lanes), std::end(lanes), std::uint64_t{0});
}

double rate(void (*loop)(std::size_t), double operations, double each = accumulators, std::size_t rounds = 2'000'000) {
  return static_cast<double>(rounds) * each * operations / seconds_of([&] { loop(rounds); });
}
double matrix_rate(void (*loop)(std::size_t), double depth) {
  return simd::may_use_matrix_registers<simd::isa::amx>() ? rate(loop, 2 * 16 * 16 * depth, 4, 200'000) : 0;
}
#endif

std::uint64_t sum_of(std::span<const std::uint64_t> m) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return sum_512(m);
#endif
  std::uint64_t sums[16] = {};
  for (std::size_t i = 0; i < m.size(); i += 16)
    for (std::size_t k = 0; k < 16; ++k) sums[k] += m[i + k];
  std::uint64_t sum = 0;
  for (const std::uint64_t v : sums) sum += v;
  return sum;
}

}  // namespace

double read_bandwidth(std::size_t threads) {
  const auto m = memory();
  pinned_executor executor(threads);
  std::atomic<std::uint64_t> sink{0};
  const auto start = std::chrono::steady_clock::now();
  for_parts(executor, m.size() / line, 1, [&](std::size_t begin, std::size_t end) { sink += sum_of(m.subspan(begin * line, (end - begin) * line)); });
  const double now = static_cast<double>(m.size() * 8) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  double& best = best_read[threads];
  best = std::max(best, now);
  return now;
}

double read_roof(std::size_t threads) {
  if (!best_read.contains(threads))
    for (int i = 0; i < 6; ++i) read_bandwidth(threads);  // the first finds the pages
  return best_read[threads];
}

double write_roof() {
  static const double roof = [] {
    const auto m = memory();
    int value = 0;
    const double s = seconds_of([&] { std::memset(m.data(), ++value, m.size() * 8); });
    return static_cast<double>(m.size() * 8) / s;
  }();
  return roof;
}

double int8_roof([[maybe_unused]] const char* arch) {
#if defined(__x86_64__)
  const std::string_view name(arch);
  if (name == "amx") return matrix_rate(matrix_products<false>, 64);
  if (name.starts_with("avx512vnni") || name == "avx512bf16") return rate(dots_vnni512, 128);
  if (name.starts_with("avx512")) return rate(dots_bw512, 128);
  if (name == "avxvnni") return rate(dots_vnni256, 64);
  if (name.find("avx2") != name.npos) return rate(dots_avx2, 64);
  if (name.starts_with("sse4") || name.starts_with("ssse3")) return rate(dots_ssse3, 32);
#endif
  return 0;
}

double float_roof([[maybe_unused]] const char* arch) {
#if defined(__x86_64__)
  const std::string_view name(arch);
  if (name.starts_with("avx512") || name == "amx") return rate(fma_512, 32);
  if (name.find("avx2") != name.npos || name == "avxvnni") return rate(fma_256, 16);
  return rate(mul_add_128, 8);
#else
  return 0;
#endif
}

double bf16_roof([[maybe_unused]] const char* arch) {
#if defined(__x86_64__)
  const std::string_view name(arch);
  if (name == "amx") return matrix_rate(matrix_products<true>, 32);
  if (name == "avx512bf16") return rate(dots_bf16, 64);
#endif
  return 0;
}

}  // namespace lowbit::bench
