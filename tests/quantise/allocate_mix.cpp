// llama.cpp's mixes: every tensor's type against what llama.cpp itself gave it, and its rules read by hand.
#include <lowbit/quantise/allocate_mix.hpp>

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace lowbit;

namespace {
/// The models that llama.cpp was run on: their widths only matter by what divides them.
struct subject {
  mix_model model;
  std::size_t width, hidden;  ///< columns of ffn_down: hidden; of all others: width
};
const subject dense{{32, 4, 4, 0, false, false}, 256, 256}, tied_288{{30, 9, 3, 0, true, false}, 288, 512},
    grouped{{32, 8, 2, 0, false, false}, 256, 256}, llama_70b{{80, 8, 1, 0, false, false}, 256, 256},
    odd_48{{5, 3, 3, 0, false, false}, 48, 64}, eight_experts{{16, 8, 2, 8, false, false}, 256, 256},
    four_experts{{16, 8, 2, 4, false, false}, 256, 256};

struct assignment {
  const subject& of;
  bool importance;
  const char* mix;
  const char* most;        ///< the type of all matrices ...
  std::string exceptions;  ///< ... but these: role=type, in all layers or @those
};

/// Types of a model's matrices as llama.cpp (b11739) assigned them to models of noise: read from the files that its llama_model_quantize
/// wrote, and for the models with experts and Q2_K_S from the log of its dry run.
const assignment llama_cpp[] = {
    {dense, false, "q4_0", "q4_0", "output=q6_k"},
    {dense, false, "q4_1", "q4_1", "output=q6_k"},
    {dense, false, "q8_0", "q8_0", ""},
    {dense, false, "q5_0", "q5_0", "output=q6_k"},
    {dense, false, "q5_1", "q5_1", "output=q6_k"},
    {dense, false, "q2_k", "q2_k", "attn_output=q3_k attn_v=q3_k ffn_down=q3_k output=q6_k"},
    {dense, false, "q3_k_s", "q3_k", "output=q6_k"},
    {dense, false, "q3_k_m", "q3_k",
     "attn_output=q4_k attn_v=q4_k@2-31 attn_v=q5_k@0-1 ffn_down=q4_k@2-31 ffn_down=q5_k@0-1 output=q6_k"},
    {dense, false, "q3_k_l", "q3_k", "attn_output=q5_k attn_v=q5_k ffn_down=q5_k output=q6_k"},
    {dense, false, "q4_k_s", "q4_k", "attn_v=q5_k@0-3 ffn_down=q5_k@0-3 output=q6_k"},
    {dense, false, "q4_k_m", "q4_k", "attn_v=q6_k@0-3,6,9,12,15,18,21,24,27-31 ffn_down=q6_k@0-3,6,9,12,15,18,21,24,27-31 output=q6_k"},
    {dense, false, "q5_k_s", "q5_k", "output=q6_k"},
    {dense, false, "q5_k_m", "q5_k", "attn_v=q6_k@0-3,6,9,12,15,18,21,24,27-31 ffn_down=q6_k@0-3,6,9,12,15,18,21,24,27-31 output=q6_k"},
    {dense, false, "q6_k", "q6_k", ""},
    {dense, false, "iq4_nl", "iq4_nl", "ffn_down=q5_k@0-3 output=q6_k"},
    {dense, false, "iq4_xs", "iq4_xs", "ffn_down=q5_k@0-3 output=q6_k"},
    {dense, false, "tq2_0", "tq2_0", "output=q6_k token_embd=q4_k"},
    {tied_288, false, "q4_0", "q4_0", "token_embd=q8_0"},
    {tied_288, false, "q4_1", "q4_1", "token_embd=q8_0"},
    {tied_288, false, "q8_0", "q8_0", ""},
    {tied_288, false, "q5_0", "q5_0", "token_embd=q8_0"},
    {tied_288, false, "q5_1", "q5_1", "token_embd=q8_0"},
    {tied_288, false, "q2_k", "q4_0", "ffn_down=q3_k token_embd=q8_0"},
    {tied_288, false, "q3_k_s", "q4_0", "ffn_down=q3_k token_embd=q8_0"},
    {tied_288, false, "q3_k_m", "q4_0",
     "attn_output=q5_0 attn_v=q5_0@2-29 attn_v=q5_1@0-1 ffn_down=q4_k@1-29 ffn_down=q5_k@0 token_embd=q8_0"},
    {tied_288, false, "q3_k_l", "q4_0", "attn_output=q5_1 attn_v=q5_1 ffn_down=q5_k token_embd=q8_0"},
    {tied_288, false, "q4_k_s", "q5_0", "attn_v=q5_1@0-3 ffn_down=q4_k@3-29 ffn_down=q5_k@0-2 token_embd=q8_0"},
    {tied_288, false, "q4_k_m", "q5_0",
     "attn_v=q8_0@0-2,5,8,11,14,17,20,23,26-29 ffn_down=q4_k@3-4,6-7,9-10,12-13,15-16,18-19,21-22,24-25 "
     "ffn_down=q6_k@0-2,5,8,11,14,17,20,23,26-29 token_embd=q8_0"},
    {tied_288, false, "q5_k_s", "q5_1", "ffn_down=q5_k token_embd=q8_0"},
    {tied_288, false, "q5_k_m", "q5_1",
     "attn_v=q8_0@0-2,5,8,11,14,17,20,23,26-29 ffn_down=q5_k@3-4,6-7,9-10,12-13,15-16,18-19,21-22,24-25 "
     "ffn_down=q6_k@0-2,5,8,11,14,17,20,23,26-29 token_embd=q8_0"},
    {tied_288, false, "q6_k", "q8_0", "ffn_down=q6_k"},
    {tied_288, false, "iq4_nl", "iq4_nl", "ffn_down=q5_k@0-2 token_embd=q8_0"},
    {tied_288, false, "iq4_xs", "iq4_nl", "ffn_down=iq4_xs@3-29 ffn_down=q5_k@0-2 token_embd=q8_0"},
    {tied_288, false, "tq2_0", "q4_0", "ffn_down=tq2_0 token_embd=q8_0"},
    {grouped, false, "q4_0", "q4_0", "output=q6_k"},
    {grouped, false, "q4_1", "q4_1", "output=q6_k"},
    {grouped, false, "q8_0", "q8_0", ""},
    {grouped, false, "q5_0", "q5_0", "output=q6_k"},
    {grouped, false, "q5_1", "q5_1", "output=q6_k"},
    {grouped, false, "q2_k", "q2_k", "attn_output=q3_k attn_v=q4_k ffn_down=q3_k output=q6_k"},
    {grouped, false, "q3_k_s", "q3_k", "output=q6_k"},
    {grouped, false, "q3_k_m", "q3_k",
     "attn_output=q4_k attn_v=q4_k@2-31 attn_v=q5_k@0-1 ffn_down=q4_k@2-31 ffn_down=q5_k@0-1 output=q6_k"},
    {grouped, false, "q3_k_l", "q3_k", "attn_output=q5_k attn_v=q5_k ffn_down=q5_k output=q6_k"},
    {grouped, false, "q4_k_s", "q4_k", "attn_v=q5_k@0-3 ffn_down=q5_k@0-3 output=q6_k"},
    {grouped, false, "q4_k_m", "q4_k", "attn_v=q6_k@0-3,6,9,12,15,18,21,24,27-31 ffn_down=q6_k@0-3,6,9,12,15,18,21,24,27-31 output=q6_k"},
    {grouped, false, "q5_k_s", "q5_k", "output=q6_k"},
    {grouped, false, "q5_k_m", "q5_k", "attn_v=q6_k@0-3,6,9,12,15,18,21,24,27-31 ffn_down=q6_k@0-3,6,9,12,15,18,21,24,27-31 output=q6_k"},
    {grouped, false, "q6_k", "q6_k", ""},
    {grouped, false, "iq4_nl", "iq4_nl", "attn_v=q5_k ffn_down=q5_k@0-3 output=q6_k"},
    {grouped, false, "iq4_xs", "iq4_xs", "attn_v=q5_k ffn_down=q5_k@0-3 output=q6_k"},
    {grouped, false, "tq2_0", "tq2_0", "output=q6_k token_embd=q4_k"},
    {llama_70b, false, "q4_0", "q4_0", "output=q6_k"},
    {llama_70b, false, "q4_1", "q4_1", "output=q6_k"},
    {llama_70b, false, "q8_0", "q8_0", ""},
    {llama_70b, false, "q5_0", "q5_0", "output=q6_k"},
    {llama_70b, false, "q5_1", "q5_1", "output=q6_k"},
    {llama_70b, false, "q2_k", "q2_k", "attn_output=q3_k attn_v=q5_k ffn_down=q3_k output=q6_k"},
    {llama_70b, false, "q3_k_s", "q3_k", "attn_v=q5_k output=q6_k"},
    {llama_70b, false, "q3_k_m", "q3_k", "attn_output=q4_k attn_v=q5_k ffn_down=q4_k@5-79 ffn_down=q5_k@0-4 output=q6_k"},
    {llama_70b, false, "q3_k_l", "q3_k", "attn_output=q5_k attn_v=q5_k ffn_down=q5_k output=q6_k"},
    {llama_70b, false, "q4_k_s", "q4_k", "attn_v=q5_k ffn_down=q5_k@0-9 output=q6_k"},
    {llama_70b, false, "q4_k_m", "q4_k",
     "attn_v=q5_k@10-11,13-14,16-17,19-20,22-23,25-26,28-29,31-32,34-35,37-38,40-41,43-44,46-47,49-50,52-53,55-56,58-59,"
     "61-62,64-65,67-68 attn_v=q6_k@0-9,12,15,18,21,24,27,30,33,36,39,42,45,48,51,54,57,60,63,66,69-79 ffn_down=q6_k@0-9,"
     "12,15,18,21,24,27,30,33,36,39,42,45,48,51,54,57,60,63,66,69-79 output=q6_k"},
    {llama_70b, false, "q5_k_s", "q5_k", "output=q6_k"},
    {llama_70b, false, "q5_k_m", "q5_k",
     "attn_v=q6_k@0-9,12,15,18,21,24,27,30,33,36,39,42,45,48,51,54,57,60,63,66,69-79 ffn_down=q6_k@0-9,12,15,18,21,24,27,"
     "30,33,36,39,42,45,48,51,54,57,60,63,66,69-79 output=q6_k"},
    {llama_70b, false, "q6_k", "q6_k", ""},
    {llama_70b, false, "iq4_nl", "iq4_nl", "attn_v=q5_k ffn_down=q5_k@0-9 output=q6_k"},
    {llama_70b, false, "iq4_xs", "iq4_xs", "attn_v=q5_k ffn_down=q5_k@0-9 output=q6_k"},
    {llama_70b, false, "tq2_0", "tq2_0", "output=q6_k token_embd=q4_k"},
    {odd_48, false, "q4_0", "f16", "ffn_down=q4_0"},
    {odd_48, false, "q4_1", "f16", "ffn_down=q4_1"},
    {odd_48, false, "q8_0", "f16", "ffn_down=q8_0"},
    {odd_48, false, "q5_0", "f16", "ffn_down=q5_0"},
    {odd_48, false, "q5_1", "f16", "ffn_down=q5_1"},
    {odd_48, false, "q2_k", "f16", "ffn_down=q4_0"},
    {odd_48, false, "q3_k_s", "f16", "ffn_down=q4_0"},
    {odd_48, false, "q3_k_m", "f16", "ffn_down=q5_0"},
    {odd_48, false, "q3_k_l", "f16", "ffn_down=q5_1"},
    {odd_48, false, "q4_k_s", "f16", "ffn_down=q5_0"},
    {odd_48, false, "q4_k_m", "f16", "ffn_down=q5_0@0-1,3 ffn_down=q8_0@2,4"},
    {odd_48, false, "q5_k_s", "f16", "ffn_down=q5_1"},
    {odd_48, false, "q5_k_m", "f16", "ffn_down=q5_1@0-1,3 ffn_down=q8_0@2,4"},
    {odd_48, false, "q6_k", "f16", "ffn_down=q8_0"},
    {odd_48, false, "q2_k_s", "f16", "ffn_down=q4_0"},
    {odd_48, false, "iq4_nl", "f16", "ffn_down=iq4_nl"},
    {odd_48, false, "iq4_xs", "f16", "ffn_down=iq4_nl"},
    {odd_48, false, "tq2_0", "f16", "ffn_down=q4_0"},
    {dense, true, "q4_0", "q4_0", "ffn_down=q4_1@0-3 output=q6_k"},
    {dense, true, "q5_0", "q5_0", "ffn_down=q5_1@0-3 output=q6_k"},
    {dense, true, "q2_k", "q2_k", "attn_output=q3_k attn_v=q3_k ffn_down=q3_k output=q6_k"},
    {dense, true, "q4_k_m", "q4_k", "attn_v=q6_k@0-3,6,9,12,15,18,21,24,27-31 ffn_down=q6_k@0-3,6,9,12,15,18,21,24,27-31 output=q6_k"},
    {dense, true, "iq4_nl", "iq4_nl", "output=q6_k"},
    {dense, true, "iq4_xs", "iq4_xs", "output=q6_k"},
    {dense, true, "q2_k_s", "q2_k", "ffn_down=q4_k@0-3 output=q6_k"},
    {grouped, true, "q2_k_s", "q2_k", "attn_v=q4_k ffn_down=q4_k@0-3 output=q6_k"},
    {eight_experts, false, "q4_0", "q4_0", "attn_k=q8_0 attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q4_1", "q4_1", "attn_k=q8_0 attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q8_0", "q8_0", ""},
    {eight_experts, false, "q5_0", "q5_0", "attn_k=q8_0 attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q5_1", "q5_1", "attn_k=q8_0 attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q2_k", "q2_k", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q3_k output=q6_k"},
    {eight_experts, false, "q3_k_s", "q3_k", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q3_k_m", "q3_k",
     "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q4_k@1-15 ffn_down_exps=q5_k@0 output=q6_k"},
    {eight_experts, false, "q3_k_l", "q3_k", "attn_k=q8_0 attn_v=q8_0 ffn_down_exps=q5_k output=q6_k"},
    {eight_experts, false, "q4_k_s", "q4_k", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q5_k@0-1 output=q6_k"},
    {eight_experts, false, "q4_k_m", "q4_k", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q6_k@0-1,4,7,10,13-15 output=q6_k"},
    {eight_experts, false, "q5_k_s", "q5_k", "attn_k=q8_0 attn_v=q8_0 output=q6_k"},
    {eight_experts, false, "q5_k_m", "q5_k", "attn_k=q8_0 attn_v=q8_0 ffn_down_exps=q6_k@0-1,4,7,10,13-15 output=q6_k"},
    {eight_experts, false, "q6_k", "q6_k", "attn_k=q8_0 attn_v=q8_0"},
    {eight_experts, false, "q2_k_s", "q2_k", "attn_k=q8_0 attn_v=q8_0 ffn_down_exps=q4_k@0-1 output=q6_k"},
    {eight_experts, false, "iq4_nl", "iq4_nl", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q5_k@0-1 output=q6_k"},
    {eight_experts, false, "iq4_xs", "iq4_xs", "attn_k=q8_0 attn_output=q5_k attn_v=q8_0 ffn_down_exps=q5_k@0-1 output=q6_k"},
    {eight_experts, false, "tq2_0", "tq2_0", "attn_k=q8_0 attn_v=q8_0 output=q6_k token_embd=q4_k"},
    {four_experts, false, "q4_0", "q4_0", "output=q6_k"},
    {four_experts, false, "q4_1", "q4_1", "output=q6_k"},
    {four_experts, false, "q8_0", "q8_0", ""},
    {four_experts, false, "q5_0", "q5_0", "output=q6_k"},
    {four_experts, false, "q5_1", "q5_1", "output=q6_k"},
    {four_experts, false, "q2_k", "q2_k", "attn_output=q3_k attn_v=q4_k ffn_down_exps=q3_k output=q6_k"},
    {four_experts, false, "q3_k_s", "q3_k", "output=q6_k"},
    {four_experts, false, "q3_k_m", "q3_k",
     "attn_output=q4_k attn_v=q4_k@2-15 attn_v=q5_k@0-1 ffn_down_exps=q4_k@1-15 ffn_down_exps=q5_k@0 output=q6_k"},
    {four_experts, false, "q3_k_l", "q3_k", "attn_output=q5_k attn_v=q5_k ffn_down_exps=q5_k output=q6_k"},
    {four_experts, false, "q4_k_s", "q4_k", "attn_v=q5_k@0-3 ffn_down_exps=q5_k@0-1 output=q6_k"},
    {four_experts, false, "q4_k_m", "q4_k", "attn_v=q6_k@0-1,4,7,10,13-15 ffn_down_exps=q6_k@0-1,4,7,10,13-15 output=q6_k"},
    {four_experts, false, "q5_k_s", "q5_k", "output=q6_k"},
    {four_experts, false, "q5_k_m", "q5_k", "attn_v=q6_k@0-1,4,7,10,13-15 ffn_down_exps=q6_k@0-1,4,7,10,13-15 output=q6_k"},
    {four_experts, false, "q6_k", "q6_k", ""},
    {four_experts, false, "q2_k_s", "q2_k", "attn_v=q4_k ffn_down_exps=q4_k@0-1 output=q6_k"},
    {four_experts, false, "iq4_nl", "iq4_nl", "attn_v=q5_k ffn_down_exps=q5_k@0-1 output=q6_k"},
    {four_experts, false, "iq4_xs", "iq4_xs", "attn_v=q5_k ffn_down_exps=q5_k@0-1 output=q6_k"},
    {four_experts, false, "tq2_0", "tq2_0", "output=q6_k token_embd=q4_k"},
};

/// Whether "0-2,5" names the layer.
bool names_layer(std::string_view list, std::size_t layer) {
  while (!list.empty()) {
    const std::string one(list.substr(0, list.find(',')));
    const std::size_t dash = one.find('-'), first = std::stoul(one), last = dash == one.npos ? first : std::stoul(one.substr(dash + 1));
    if (layer >= first && layer <= last) return true;
    list.remove_prefix(std::min(list.size(), one.size() + 1));
  }
  return false;
}
std::string expected(const assignment& a, std::string_view role, std::size_t layer) {
  std::string_view rest = a.exceptions;
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const std::size_t equals = one.find('='), at = one.find('@');
    if (one.substr(0, equals) != role) continue;
    if (at == one.npos || names_layer(one.substr(at + 1), layer)) return std::string(one.substr(equals + 1, at == one.npos ? at : at - equals - 1));
  }
  return a.most;
}
std::string format_name(std::optional<format_id> f) { return f ? std::string(spec_of_id(*f).name) : "as it is"; }
}  // namespace

TEST_CASE("every tensor gets the type that llama.cpp gives it") {
  std::size_t compared = 0;
  for (const assignment& a : llama_cpp) {
    CAPTURE(std::string(a.mix));
    mix_model model = a.of.model;
    model.has_importance = a.importance;
    const auto m = find_mix(a.mix);
    REQUIRE(m);
    const auto check = [&](const std::string& name, std::string_view role, std::size_t layer, std::size_t cols) {
      CHECK_MESSAGE(format_name(mix_format(*m, name, 2, cols, model)) == expected(a, role, layer), name);
      ++compared;
    };
    check("token_embd.weight", "token_embd", 0, a.of.width);
    if (!model.tied) check("output.weight", "output", 0, a.of.width);
    for (std::size_t l = 0; l < model.layers; ++l) {
      const std::string layer = "blk." + std::to_string(l) + ".", experts = model.experts != 0 ? "_exps" : "";
      for (const std::string role : {"attn_q", "attn_k", "attn_v", "attn_output"}) check(layer + role + ".weight", role, l, a.of.width);
      for (const std::string& role : {"ffn_gate" + experts, "ffn_up" + experts, "ffn_down" + experts})
        check(layer + role + ".weight", role, l, role.starts_with("ffn_down") ? a.of.hidden : a.of.width);
      CHECK(!mix_format(*m, layer + "attn_norm.weight", 1, a.of.width, model));
      CHECK(!mix_format(*m, layer + "ffn_gate_inp.weight", 2, a.of.width, model));
    }
  }
  CHECK(compared > 20000);
}

TEST_CASE("the rules, read by hand") {
  // Q4_K_M of a 32-layer Llama: an eighth is 4 layers; then 6, 9, ... 27; then from 28 on.
  const mix_model llama{32, 32, 32, 0, false, false};
  const auto type = [&](mix m, const std::string& name, std::size_t cols = 4096) { return format_name(mix_format(m, name, 2, cols, llama)); };
  for (std::size_t l = 0; l < 32; ++l) {
    const bool more = l < 4 || l >= 28 || (l - 4) % 3 == 2;
    const std::string layer = "blk." + std::to_string(l) + ".";
    CHECK(type(mix::q4_k_m, layer + "attn_v.weight") == (more ? "q6_k" : "q4_k"));
    CHECK(type(mix::q5_k_m, layer + "ffn_down.weight", 11008) == (more ? "q6_k" : "q5_k"));
    CHECK(type(mix::q4_k_s, layer + "attn_v.weight") == (l < 4 ? "q5_k" : "q4_k"));
    CHECK(type(mix::q3_k_m, layer + "ffn_down.weight", 11008) == (l < 2 ? "q5_k" : "q4_k"));
    CHECK(type(mix::q2_k, layer + "attn_output.weight") == "q3_k");
    CHECK(type(mix::q6_k, layer + "attn_v.weight") == "q6_k");
  }
  CHECK(type(mix::q4_k_m, "blk.4.attn_qkv.weight") == "q4_k");  // fused layers follow the values' rule
  CHECK(type(mix::q4_k_m, "output.weight") == "q6_k");
  CHECK(type(mix::q4_k_m, "token_embd.weight") == "q4_k");
  CHECK(type(mix::q4_k_m, "blk.0.attn_q.bias") == "as it is");
  CHECK(type(mix::f16, "output.weight") == "f16");
}

TEST_CASE("formats whose blocks do not divide the columns fall back") {
  const auto fallback = [](const char* name, std::size_t cols) { return std::string(spec_of_id(fallback_format(*find_format(name), cols)).name); };
  const std::pair<const char*, const char*> table[] = {{"q2_k", "q4_0"}, {"q3_k", "q4_0"}, {"tq2_0", "q4_0"}, {"q4_k", "q5_0"}, {"q5_k", "q5_1"},
                                                       {"q6_k", "q8_0"}, {"iq4_xs", "iq4_nl"}, {"nvfp4", "mxfp4"}, {"q2_0", "q4_0"}, {"q1_0", "q4_0"}};
  for (const auto& [from, to] : table) {
    CHECK(fallback(from, 512) == from);
    CHECK(fallback(from, 32 * 7) == to);
    CHECK(fallback(from, 100) == "f16");
  }
  CHECK(fallback("q4_0", 33) == "f16");
  CHECK(fallback("f32", 33) == "f32");
}

TEST_CASE("mixes by name; hostile names are only names") {
  CHECK(find_mix("Q4_K_M") == mix::q4_k_m);
  CHECK(find_mix("q3_k_l") == mix::q3_k_l);
  CHECK(!find_mix("Q4_K_X"));
  CHECK(!find_mix(""));
  for (const mix_entry& e : mixes) CHECK(&entry_of(e.id) == &e);
  const mix_model nothing{};
  for (const mix_entry& e : mixes)
    for (const std::string name : {"", "weight", "blk..attn_v.weight", "blk.99999999999999999999.attn_v.weight", "blk.-1.ffn_down.weight", "blk.7"}) {
      const auto f = mix_format(e.id, name, 2, 256, nothing);
      CHECK((f || !name.ends_with("weight")));
    }
}
