// The branches of GLA, Gated DeltaNet and Mamba-2 against their definitions, and what they start from.
// Letters: B batch, T tokens, D hidden, H heads, K head dim.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/mixer/initial.h"
#include "core/mixer/window.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/small_teacher.h"

namespace flashmorph {
namespace {

using test::relative_error;
using test::seeded;
using test::SmallTeacher;
using test::train_all;
using test::Weights;
using test::weights_of;

MixerSection mixer_of(const std::string& kind, bool rope = true) {
  MixerSection mixer;
  mixer.kind = kind;
  mixer.rope = rope;
  mixer.chunk = 4;
  return mixer;
}

at::Tensor logistic(const at::Tensor& x) { return 1.0 / (1.0 + (-x).exp()); }
at::Tensor swish(const at::Tensor& x) { return x * logistic(x); }
at::Tensor rms(const at::Tensor& x_K, double epsilon) { return x_K / (x_K.square().mean() + epsilon).sqrt(); }

// One sequence of [T, D], one token and one head at a time.
struct Definition {
  const SmallTeacher& teacher;
  const Weights& w;
  bool rope;

  int64_t heads() const { return teacher.spec.heads; }
  int64_t K() const { return teacher.spec.head_dim; }

  at::Tensor turned(const at::Tensor& x_K, int64_t position) const {
    const int64_t half = K() / 2;
    const auto pair = at::arange(half, at::kDouble) * (-2.0 / static_cast<double>(K()));
    const at::Tensor angle = (pair * std::log(10000.0)).exp() * static_cast<double>(position);
    const at::Tensor a = x_K.narrow(0, 0, half), b = x_K.narrow(0, half, half);
    return at::cat({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()});
  }

  at::Tensor gated_linear(const at::Tensor& x_TD) const {
    std::vector<at::Tensor> state(heads(), at::zeros({K(), K()}, at::kDouble)), outputs;
    for (int64_t t = 0; t < x_TD.size(0); ++t) {
      const at::Tensor x = x_TD[t];
      const auto heads_of = [&](const at::Tensor& row) { return row.view({heads(), K()}); };
      const at::Tensor q = heads_of(w.at("q_proj").mv(x)), k = heads_of(w.at("k_proj").mv(x)),
                       v = heads_of(w.at("v_proj").mv(x)), gate = heads_of(w.at("g_proj").mv(x));
      const at::Tensor logit = heads_of(w.at("gk_proj.1").mv(w.at("gk_proj.0").mv(x)) + w.at("gk_proj.1.bias"));
      std::vector<at::Tensor> y;
      for (int64_t h = 0; h < heads(); ++h) {
        at::Tensor q_h = rms(q[h], teacher.spec.norm_epsilon) * w.at("q_norm");
        at::Tensor k_h = rms(k[h], teacher.spec.norm_epsilon) * w.at("k_norm");
        if (rope) q_h = turned(q_h, t), k_h = turned(k_h, t);
        const at::Tensor decay = logistic(logit[h]).pow(1.0 / 16.0);  // exp(logsigmoid / 16)
        state[h] = decay.unsqueeze(1) * state[h] + at::outer(k_h, v[h]);
        const at::Tensor o = state[h].t().mv(q_h) / std::sqrt(static_cast<double>(K()));
        y.push_back(rms(o, teacher.spec.norm_epsilon) * w.at("o_norm") * swish(gate[h]));
      }
      outputs.push_back(w.at("o_proj").mv(at::cat(y)));
    }
    return at::stack(outputs);
  }

  // y_t = sum of the last four inputs times their taps.
  at::Tensor convolved(const at::Tensor& x_TD, int64_t t, const char* projection, const std::string& taps) const {
    const auto bias = w.find(taps + ".bias");
    at::Tensor sum = bias == w.end() ? at::zeros({heads() * K()}, at::kDouble) : bias->second;
    for (int64_t lag = 0; lag < 4 && lag <= t; ++lag)
      sum = sum + w.at(taps).select(1, 3 - lag) * w.at(projection).mv(x_TD[t - lag]);
    return swish(sum).view({heads(), K()});
  }

  at::Tensor gated_delta(const at::Tensor& x_TD) const {
    const auto unit = [](const at::Tensor& x) { return x / (x.square().sum() + 1e-6).sqrt(); };
    std::vector<at::Tensor> state(heads(), at::zeros({K(), K()}, at::kDouble)), outputs;
    for (int64_t t = 0; t < x_TD.size(0); ++t) {
      const at::Tensor x = x_TD[t];
      const at::Tensor q = convolved(x_TD, t, "q_proj", "q_conv"), k = convolved(x_TD, t, "k_proj", "k_conv"),
                       v = convolved(x_TD, t, "v_proj", "v_conv"), z = w.at("z_proj").mv(x).view({heads(), K()});
      const at::Tensor beta = logistic(w.at("b_proj").mv(x));
      const at::Tensor g = -w.at("A_log").exp() * (1.0 + (w.at("a_proj").mv(x) + w.at("dt_bias")).exp()).log();
      std::vector<at::Tensor> y;
      for (int64_t h = 0; h < heads(); ++h) {
        const at::Tensor k_h = unit(k[h]), decayed = g[h].exp() * state[h];
        state[h] = decayed + beta[h] * at::outer(k_h, v[h] - decayed.t().mv(k_h));
        const at::Tensor o = state[h].t().mv(unit(q[h])) / std::sqrt(static_cast<double>(K()));
        y.push_back(rms(o, teacher.spec.norm_epsilon) * w.at("norm") * swish(z[h]));
      }
      outputs.push_back(w.at("out_proj").mv(at::cat(y)));
    }
    return at::stack(outputs);
  }

  at::Tensor mamba2(const at::Tensor& x_TD) const {
    std::vector<at::Tensor> state(heads(), at::zeros({K(), K()}, at::kDouble)), outputs;
    for (int64_t t = 0; t < x_TD.size(0); ++t) {
      const at::Tensor x = x_TD[t];
      const at::Tensor q = convolved(x_TD, t, "q_proj", "q_conv"), k = convolved(x_TD, t, "k_proj", "k_conv"),
                       v = convolved(x_TD, t, "v_proj", "v_conv"), z = w.at("z_proj").mv(x).view({heads(), K()});
      const at::Tensor dt = (1.0 + (w.at("dt_proj").mv(x) + w.at("dt_bias")).exp()).log();
      std::vector<at::Tensor> y;
      for (int64_t h = 0; h < heads(); ++h) {
        state[h] = (-w.at("A_log")[h].exp() * dt[h]).exp() * state[h] + dt[h] * at::outer(k[h], v[h]);
        const at::Tensor o = state[h].t().mv(q[h]) + w.at("D")[h] * v[h];
        y.push_back(rms(o * swish(z[h]), teacher.spec.norm_epsilon) * w.at("norm").view({heads(), K()})[h]);
      }
      outputs.push_back(w.at("out_proj").mv(at::cat(y)));
    }
    return at::stack(outputs);
  }
};

// A window as wide as the sequence is the teacher's attention; a narrower one is that of the last tokens alone. A sink
// is one more logit in the denominator.
TEST(Window, IsTheTeachersAttentionOfTheLastTokens) {
  const SmallTeacher teacher;
  const at::Tensor x = seeded({2, 150, 32}, 1), sinks = 2.0 * seeded({4}, 2);
  for (const bool has_sinks : {false, true})
    for (const int64_t window : {1, 5, 64, 70, 149, 150, 400}) {
      MixerSection mixer = mixer_of("window");
      mixer.own.of<WindowSettings>() = {.window = window, .sinks = has_sinks};
      const auto branch = teacher.branch(mixer);
      if (has_sinks) weights_of(*branch).at("sinks").copy_(sinks);
      train_all(*branch);
      const at::Tensor input = x.clone().set_requires_grad(true), x_exact = x.clone().set_requires_grad(true);
      const at::Tensor sinks_exact = sinks.clone().set_requires_grad(true);
      const at::Tensor actual = branch->forward(input, teacher.positions(0, 150));
      const AttentionWeights w = teacher.attention();
      const auto [q, k, v] = queries_keys_values(x_exact, w, teacher.spec, teacher.positions(0, 150));
      const auto heads = [](const at::Tensor& x_BTGK) {
        return x_BTGK.repeat_interleave(4 / x_BTGK.size(2), 2).transpose(1, 2);
      };
      const at::Tensor scores = at::matmul(heads(q), heads(k).transpose(2, 3)) / std::sqrt(8.0);
      const at::Tensor ones = at::ones({150, 150}, at::kBool);
      const at::Tensor weights =
          scores.exp().masked_fill(ones.tril().logical_xor(ones.tril(-window)).logical_not(), 0.0);
      at::Tensor sum = weights.sum(-1, /*keepdim=*/true);
      if (has_sinks) sum = sum + sinks_exact.exp().view({4, 1, 1});
      const at::Tensor expected = at::linear(at::matmul(weights / sum, heads(v)).transpose(1, 2).flatten(2), w.o);
      EXPECT_LT(relative_error(expected, actual), 1e-12) << window;
      actual.square().sum().backward();
      expected.square().sum().backward();
      EXPECT_LT(relative_error(x_exact.grad(), input.grad()), 1e-11) << window;
      if (has_sinks)
        EXPECT_LT(relative_error(sinks_exact.grad(), weights_of(*branch).at("sinks").grad()), 1e-11) << window;
    }
}

struct Case {
  std::string kind;
  bool rope;
};

class GatedBranches : public testing::TestWithParam<Case> {};

TEST_P(GatedBranches, AreTheirDefinitionForwardAndEveryGradient) {
  const SmallTeacher teacher;
  const auto& [kind, rope] = GetParam();
  test::expect_as_defined(teacher, mixer_of(kind, rope),
                          [&, &kind = kind, rope = rope](const at::Tensor& x_TD, const Weights& weights) {
                            const Definition definition{teacher, weights, rope};
                            if (kind == "gla") return definition.gated_linear(x_TD);
                            return kind == "mamba2" ? definition.mamba2(x_TD) : definition.gated_delta(x_TD);
                          });
}

INSTANTIATE_TEST_SUITE_P(Kinds, GatedBranches,
                         testing::Values(Case{"gla", true}, Case{"gla", false}, Case{"gated_delta_net", true},
                                         Case{"mamba2", true}),
                         [](const auto& info) { return info.param.kind + (info.param.rope ? "" : "_no_rope"); });

TEST(GatedLinearStart, NewTensorsHaveTheirUsualValues) {
  const SmallTeacher teacher;
  const Weights w = weights_of(*teacher.branch(mixer_of("gla")));
  EXPECT_EQ(w.at("gk_proj.0").sizes(), (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(w.at("gk_proj.1").sizes(), (std::vector<int64_t>{32, 16}));
  EXPECT_TRUE(w.at("gk_proj.1.bias").equal(at::zeros({32}, at::kDouble)));
  EXPECT_TRUE(w.at("o_norm").equal(at::ones({8}, at::kDouble)));
  EXPECT_LE(w.at("g_proj").abs().max().item<double>(), 1.0 / std::sqrt(32.0));
  EXPECT_LE(w.at("gk_proj.1").abs().max().item<double>(), 0.25);
  EXPECT_GT(w.at("gk_proj.1").std().item<double>(), 0.1);
  EXPECT_FALSE(w.at("gk_proj.0").equal(w.at("g_proj").narrow(0, 0, 16))) << "each tensor has its own stream";
}

TEST(ConvolvedStart, NewTensorsHaveTheirUsualValues) {
  const SmallTeacher teacher;
  for (const char* kind : {"gated_delta_net", "mamba2"}) {
    const Weights w = weights_of(*teacher.branch(mixer_of(kind)));
    for (const char* name : {"q_conv", "k_conv", "v_conv"}) {
      EXPECT_TRUE(w.at(name).narrow(1, 0, 3).equal(at::zeros({32, 3}, at::kDouble))) << name;
      EXPECT_TRUE(w.at(name).select(1, 3).equal(at::ones({32}, at::kDouble))) << name;
    }
    EXPECT_TRUE(w.at("norm").equal(at::ones_like(w.at("norm"))));
    EXPECT_LE(w.at("A_log").exp().max().item<double>(), 16.0);
    const at::Tensor step = (1.0 + w.at("dt_bias").exp()).log();
    EXPECT_GE(step.min().item<double>(), 1e-3 * (1 - 1e-12));
    EXPECT_LE(step.max().item<double>(), 0.1 * (1 + 1e-12));
    EXPECT_GT(step.std().item<double>(), 0.0);
  }
}

TEST(DataStart, ADecayHalvesTheMemoryInTheMeanDistance) {
  const SmallTeacher teacher;
  const at::Tensor distances = at::tensor({0.5, 3.0, 40.0, 1e6}, at::kDouble);  // of the four heads
  const at::Tensor expected =
      at::tensor({-std::log(2.0) / 0.5, -std::log(2.0) / 3.0, -std::log(2.0) / 40.0, -1e-3}, at::kDouble);
  const auto started = [&](const char* kind) {
    const auto branch = teacher.branch(mixer_of(kind));
    train_all(*branch);
    branch->start_decays(distances);
    return weights_of(*branch);
  };
  const Weights linear = started("gla");
  for (const char* kind : {"gated_delta_net", "mamba2"}) {
    const Weights w = started(kind);
    EXPECT_LT(relative_error(expected, -w.at("A_log").exp() * (1.0 + w.at("dt_bias").exp()).log()), 1e-12) << kind;
  }
  const at::Tensor log_decay = -(1.0 + (-linear.at("gk_proj.1.bias")).exp()).log() / 16.0;
  EXPECT_LT(relative_error(expected.repeat_interleave(8), log_decay), 1e-12);
  EXPECT_EQ(log_decay_of_distance(at::tensor({0.01})).item<double>(), -5.0);
  EXPECT_THROW(started("lightning"), c10::Error);
}

// Biases of the teacher's projections (Qwen2) are kept, head by head; Gated DeltaNet's export has no place for them.
TEST(ExpandedHeads, KeepBiasesAndRepeatThemByHead) {
  const SmallTeacher teacher;
  AttentionWeights biased = teacher.attention();
  biased.q_bias = seeded({32}, 1);
  biased.k_bias = seeded({16}, 2);
  biased.v_bias = seeded({16}, 3);
  const AttentionWeights heads = expanded(biased, teacher.spec);
  ModelSpec expanded_spec = teacher.spec;
  expanded_spec.kv_heads = teacher.spec.heads;
  const at::Tensor x = seeded({2, 9, 32}, 3);
  const Positions positions = teacher.positions(0, 9);
  // To float64's rounding: a matrix product may add up in another order when the weight has more rows.
  EXPECT_LT(relative_error(full_attention(x, biased, teacher.spec, positions),
                           full_attention(x, heads, expanded_spec, positions)),
            1e-14);
  for (const char* kind : {"lightning", "gla"}) {
    const Placement placement{.dtype = at::kDouble};
    const Weights w = weights_of(*make_branch({teacher.spec, mixer_of(kind), 1, 7, placement, test::alone()}, biased));
    EXPECT_TRUE(w.at("k_proj.bias").equal(heads.k_bias)) << kind;
  }
  const Placement placement{.dtype = at::kDouble};
  const Weights w =
      weights_of(*make_branch({teacher.spec, mixer_of("mamba2"), 1, 7, placement, test::alone()}, biased));
  EXPECT_TRUE(w.at("k_conv.bias").equal(heads.k_bias)) << "what the convolution's delta passes on";
}

}  // namespace
}  // namespace flashmorph
