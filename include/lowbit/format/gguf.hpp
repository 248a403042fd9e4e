// The block formats of GGUF, a constant each. Layouts: ggml (ggml-common.h, ggml-quants.c); type ids: ggml.h.
//
// Read a plane as {bits, shift, first bit, {{extents}, {strides in bits}}}. "{16,2},{8,4}" says: sixteen elements a byte apart, then
// sixteen more in the next nibble.
#pragma once

#include <lowbit/format/spec.hpp>

namespace lowbit {

/// IQ4_NL's and IQ4_XS's values (ggml's kvalues_iq4nl).
inline constexpr codebook iq4_values =
    make_codebook(16, {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113});
/// Twice the values of E2M1 (OCP Microscaling v1.0, 5.3.3), for use with halved scales.
inline constexpr codebook e2m1_doubled = make_codebook(16, {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12});

struct f32 { static constexpr format_spec spec{.name = "f32", .gguf = 0, .bytes = 4, .element = number::f32}; };
struct float16 { static constexpr format_spec spec{.name = "f16", .gguf = 1, .bytes = 2, .element = number::f16}; };
struct bfloat16 { static constexpr format_spec spec{.name = "bf16", .gguf = 30, .bytes = 2, .element = number::bf16}; };

struct q4_0 {
  static constexpr format_spec spec{.name = "q4_0", .gguf = 2, .block = 32, .bytes = 18,
      .codes = {{plane{4, 0, byte(2), {{16, 2}, {8, 4}}}}, 8}, .scale = {number::f16, 0}};
};
struct q4_1 {
  static constexpr format_spec spec{.name = "q4_1", .gguf = 3, .block = 32, .bytes = 20,
      .codes = {{plane{4, 0, byte(4), {{16, 2}, {8, 4}}}}}, .scale = {number::f16, 0}, .minimum = {number::f16, 2}};
};
struct q5_0 {
  static constexpr format_spec spec{.name = "q5_0", .gguf = 6, .block = 32, .bytes = 22,
      .codes = {{plane{4, 0, byte(6), {{16, 2}, {8, 4}}}, plane{1, 4, byte(2), {{32}, {1}}}}, 16}, .scale = {number::f16, 0}};
};
struct q5_1 {
  static constexpr format_spec spec{.name = "q5_1", .gguf = 7, .block = 32, .bytes = 24,
      .codes = {{plane{4, 0, byte(8), {{16, 2}, {8, 4}}}, plane{1, 4, byte(4), {{32}, {1}}}}},
      .scale = {number::f16, 0}, .minimum = {number::f16, 2}};
};
struct q8_0 {
  static constexpr format_spec spec{.name = "q8_0", .gguf = 8, .block = 32, .bytes = 34,
      .codes = {{plane{8, 0, byte(2), {{32}, {8}}}}, 0, true}, .scale = {number::f16, 0}};
};
struct q2_k {
  static constexpr format_spec spec{.name = "q2_k", .gguf = 10, .block = 256, .sub = 16, .bytes = 84,
      .codes = {{plane{2, 0, byte(16), {{32, 4, 2}, {8, 2, 256}}}}},
      .scale = {number::f16, 80}, .minimum = {number::f16, 82},
      .sub_scale = {{plane{4, 0, byte(0), {{16}, {8}}}}}, .sub_minimum = {{plane{4, 0, byte(0) + 4, {{16}, {8}}}}}};
};
struct q3_k {
  static constexpr format_spec spec{.name = "q3_k", .gguf = 11, .block = 256, .sub = 16, .bytes = 110,
      .codes = {{plane{2, 0, byte(32), {{32, 4, 2}, {8, 2, 256}}}, plane{1, 2, byte(0), {{32, 8}, {8, 1}}}}, 4},
      .scale = {number::f16, 108},
      .sub_scale = {{plane{4, 0, byte(96), {{8, 2}, {8, 4}}}, plane{2, 4, byte(104), {{4, 4}, {8, 2}}}}, 32}};
};
struct q4_k {
  static constexpr format_spec spec{.name = "q4_k", .gguf = 12, .block = 256, .sub = 32, .bytes = 144,
      .codes = {{plane{4, 0, byte(16), {{32, 2, 4}, {8, 4, 256}}}}},
      .scale = {number::f16, 0}, .minimum = {number::f16, 2},
      .sub_scale = {{plane{4, 0, byte(4), {{4, 2}, {8, 64}}}, plane{2, 4, byte(4) + 4, {{4, 2}, {8, 2}}}}},
      .sub_minimum = {{plane{4, 0, byte(8), {{4, 2}, {8, 36}}}, plane{2, 4, byte(8) + 4, {{4, 2}, {8, 2}}}}}};
};
struct q5_k {
  static constexpr format_spec spec{.name = "q5_k", .gguf = 13, .block = 256, .sub = 32, .bytes = 176,
      .codes = {{plane{4, 0, byte(48), {{32, 2, 4}, {8, 4, 256}}}, plane{1, 4, byte(16), {{32, 8}, {8, 1}}}}},
      .scale = {number::f16, 0}, .minimum = {number::f16, 2},
      .sub_scale = q4_k::spec.sub_scale, .sub_minimum = q4_k::spec.sub_minimum};
};
struct q6_k {
  static constexpr format_spec spec{.name = "q6_k", .gguf = 14, .block = 256, .sub = 16, .bytes = 210,
      .codes = {{plane{4, 0, byte(0), {{64, 2, 2}, {8, 4, 512}}}, plane{2, 4, byte(128), {{32, 4, 2}, {8, 2, 256}}}}, 32},
      .scale = {number::f16, 208}, .sub_scale = {{plane{8, 0, byte(192), {{16}, {8}}}}, 0, true}};
};
struct iq4_nl {
  static constexpr format_spec spec{.name = "iq4_nl", .gguf = 20, .block = 32, .bytes = 18,
      .codes = {{plane{4, 0, byte(2), {{16, 2}, {8, 4}}}}}, .scale = {number::f16, 0}, .values = iq4_values};
};
struct iq4_xs {
  static constexpr format_spec spec{.name = "iq4_xs", .gguf = 23, .block = 256, .sub = 32, .bytes = 136,
      .codes = {{plane{4, 0, byte(8), {{16, 2, 8}, {8, 4, 128}}}}}, .scale = {number::f16, 0},
      .sub_scale = {{plane{4, 0, byte(4), {{8}, {4}}}, plane{2, 4, byte(2), {{8}, {2}}}}, 32}, .values = iq4_values};
};
struct tq2_0 {
  static constexpr format_spec spec{.name = "tq2_0", .gguf = 35, .block = 256, .bytes = 66,
      .codes = {{plane{2, 0, byte(0), {{32, 4, 2}, {8, 2, 256}}}}, 1}, .scale = {number::f16, 64}};
};
struct mxfp4 {
  static constexpr format_spec spec{.name = "mxfp4", .gguf = 39, .block = 32, .bytes = 17,
      .codes = {{plane{4, 0, byte(1), {{16, 2}, {8, 4}}}}}, .scale = {number::e8m0_half, 0}, .values = e2m1_doubled};
};
struct nvfp4 {  // a scale for every 16 weights; blocks of 64 only hold them together
  static constexpr format_spec spec{.name = "nvfp4", .gguf = 40, .block = 64, .sub = 16, .bytes = 36,
      .codes = {{plane{4, 0, byte(4), {{8, 2, 4}, {8, 4, 64}}}}},
      .sub_scale = {{plane{8, 0, byte(0), {{4}, {8}}}}}, .sub_number = number::e4m3_half, .values = e2m1_doubled};
};
struct q1_0 {
  static constexpr format_spec spec{.name = "q1_0", .gguf = 41, .block = 128, .bytes = 18,
      .codes = {{plane{1, 0, byte(2), {{128}, {1}}}}}, .scale = {number::f16, 0}, .values = make_codebook(2, {-1.0f, 1.0f})};
};
struct q2_0 {
  static constexpr format_spec spec{.name = "q2_0", .gguf = 42, .block = 64, .bytes = 18,
      .codes = {{plane{2, 0, byte(2), {{64}, {2}}}}, 1}, .scale = {number::f16, 0}};
};

}  // namespace lowbit
