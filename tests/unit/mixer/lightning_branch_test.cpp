// The lightning branch against its definition, the teacher's own attention, itself in two slices and step by step.
// Letters: B batch, T tokens, D hidden, H heads, K head dim.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>

#include "core/base/bad_input.h"
#include "core/mixer/lightning.h"
#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/shard_pair.h"
#include "tests/unit/mixer/small_teacher.h"

namespace flashmorph {
namespace {

using test::alone;
using test::kLayer;
using test::kSeed;
using test::relative_error;
using test::seeded;
using test::SmallTeacher;
using test::Weights;
using test::weights_of;

MixerSection mixer_of(const std::string& output_norm, bool rope = true) {
  MixerSection mixer;
  mixer.own.of<LightningSettings>().output_norm = output_norm;
  mixer.rope = rope;
  mixer.chunk = 4;
  return mixer;
}

// One sequence, one token and one head at a time.
struct Definition {
  const ModelSpec& spec;
  MixerSection mixer;
  std::array<double, 4> decay = {-1.0 / 4, -1.0 / 16, -1.0 / 64, -1.0 / 256};  // alibi, 4 heads

  at::Tensor unit(const at::Tensor& x, at::OptionalIntArrayRef dims) const {
    return x / (x.square().mean(dims, /*keepdim=*/true) + spec.norm_epsilon).sqrt();
  }

  // Channel i turns with channel i + K/2.
  at::Tensor turned(const at::Tensor& x_K, int64_t position) const {
    std::vector<at::Tensor> y(spec.head_dim);
    for (int64_t i = 0, far = spec.head_dim / 2; far < spec.head_dim; ++i, ++far) {
      const double angle =
          static_cast<double>(position) *
          std::pow(spec.rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(spec.head_dim));
      y[i] = x_K[i] * std::cos(angle) - x_K[far] * std::sin(angle);
      y[far] = x_K[far] * std::cos(angle) + x_K[i] * std::sin(angle);
    }
    return at::stack(y);
  }

  at::Tensor operator()(const at::Tensor& x_TD, const Weights& w) const {
    const int64_t heads = spec.heads, head_dim = spec.head_dim;
    std::vector<at::Tensor> state(heads, at::zeros({head_dim, head_dim}, at::kDouble)), outputs;
    for (int64_t t = 0; t < x_TD.size(0); ++t) {
      const auto project = [&](const char* name) { return w.at(name).mv(x_TD[t]).view({heads, head_dim}); };
      const at::Tensor q = project("q_proj"), k = project("k_proj"), v = project("v_proj");
      std::vector<at::Tensor> o(heads);
      for (int64_t h = 0; h < heads; ++h) {
        at::Tensor q_h = unit(q[h], 0) * w.at("q_norm"), k_h = unit(k[h], 0) * w.at("k_norm");
        if (mixer.rope) q_h = turned(q_h, t), k_h = turned(k_h, t);
        state[h] = std::exp(decay[h]) * state[h] + at::outer(k_h, v[h]);
        o[h] = state[h].t().mv(q_h) / std::sqrt(static_cast<double>(head_dim));
      }
      const at::Tensor o_HK = at::stack(o);
      const at::Tensor normed =
          mixer.own.of<LightningSettings>().output_norm == "head" ? unit(o_HK, 1).flatten() : unit(o_HK.flatten(), 0);
      const at::Tensor gate = 1.0 / (1.0 + (-w.at("z_proj").mv(x_TD[t])).exp());
      outputs.push_back(w.at("o_proj").mv(normed * w.at("o_norm") * gate));
    }
    return at::stack(outputs);
  }
};

using Setting = std::tuple<std::string, bool>;  // output_norm, rope

class LightningDefinition : public testing::TestWithParam<Setting> {};

TEST_P(LightningDefinition, ForwardAndEveryGradient) {
  const auto& [output_norm, rope] = GetParam();
  const SmallTeacher teacher;
  const MixerSection mixer = mixer_of(output_norm, rope);
  test::expect_as_defined(teacher, mixer, Definition{teacher.spec, mixer});
}

INSTANTIATE_TEST_SUITE_P(LightningBranch, LightningDefinition,
                         testing::Combine(testing::Values("head", "hidden"), testing::Bool()), [](const auto& info) {
                           return std::get<0>(info.param) + (std::get<1>(info.param) ? "Rope" : "NoRope");
                         });

// With softmax put back, the branch's expanded heads are the teacher's attention; repeating rows instead is not.
TEST(LightningStart, ExpandedHeadsWithSoftmaxAreTheTeacher) {
  const SmallTeacher teacher;
  const AttentionWeights original = teacher.attention();
  const Weights w = weights_of(*teacher.branch(mixer_of("head")));
  ModelSpec expanded_spec = teacher.spec;
  expanded_spec.kv_heads = teacher.spec.heads;
  const at::Tensor x = seeded({2, 9, 32}, 3);
  const Positions positions = teacher.positions(0, 9);
  const auto softmax = [&](const at::Tensor& k, const at::Tensor& v) {
    return full_attention(x, {w.at("q_proj"), k, v, w.at("o_proj"), w.at("q_norm"), w.at("k_norm")}, expanded_spec,
                          positions);
  };
  const at::Tensor expected = full_attention(x, original, teacher.spec, positions);
  EXPECT_LT(relative_error(expected, softmax(w.at("k_proj"), w.at("v_proj"))), 1e-14);
  const auto by_rows = [](const at::Tensor& weight) { return weight.repeat_interleave(2, 0); };
  EXPECT_GT(relative_error(expected, softmax(by_rows(original.k), by_rows(original.v))), 0.1);
}

TEST(LightningStart, NewTensorsHaveTheirUsualValues) {
  const SmallTeacher teacher;
  const MixerSection mixer = mixer_of("head");
  const Weights w = weights_of(*teacher.branch(mixer));
  const double bound = 1.0 / std::sqrt(32.0);
  EXPECT_LE(w.at("z_proj").abs().max().item<double>(), bound);
  EXPECT_NEAR(w.at("z_proj").mean().item<double>(), 0.0, 0.05 * bound);
  EXPECT_NEAR(w.at("z_proj").std().item<double>(), bound / std::sqrt(3.0), 0.05 * bound);
  EXPECT_TRUE(w.at("o_norm").equal(at::ones({32}, at::kDouble)));
  EXPECT_TRUE(w.at("z_proj").equal(weights_of(*teacher.branch(mixer)).at("z_proj")));
  EXPECT_FALSE(w.at("z_proj").equal(weights_of(*teacher.branch(mixer, alone(), kSeed + 1)).at("z_proj")));
  const Placement placement{.dtype = at::kDouble};
  const auto below = make_branch({teacher.spec, mixer, 0, kSeed, placement, alone()}, teacher.attention());
  EXPECT_FALSE(w.at("z_proj").equal(weights_of(*below, 0).at("z_proj")));
}

TEST(LightningStart, ATeacherWithoutHeadNormsGivesOnes) {
  const SmallTeacher teacher;
  AttentionWeights plain = teacher.attention();
  plain.q_norm.reset();
  plain.k_norm.reset();
  const Placement placement{.dtype = at::kDouble};
  const Weights w =
      weights_of(*make_branch({teacher.spec, mixer_of("head"), kLayer, kSeed, placement, alone()}, plain));
  EXPECT_TRUE(w.at("q_norm").equal(at::ones({8}, at::kDouble)));
  EXPECT_TRUE(w.at("k_norm").equal(at::ones({8}, at::kDouble)));
}

TEST(LightningStart, ItSharesNothingWithTheTeacher) {
  const SmallTeacher teacher;
  const AttentionWeights original = teacher.attention();
  const Placement placement{.dtype = at::kDouble};
  const at::Tensor before = original.o.clone();
  const auto branch = make_branch({teacher.spec, mixer_of("head"), kLayer, kSeed, placement, alone()}, original);
  for (const Parameter& parameter : branch->parameters()) parameter.value.zero_();
  EXPECT_TRUE(original.o.equal(before));
  for (const at::Tensor& weight : {original.q, original.k, original.v, original.q_norm, original.k_norm})
    EXPECT_GT(weight.abs().min().item<double>(), 0.0);
}

TEST(LightningSlices, TheNormOverAllHeadsCostsTwoMoreSums) {
  for (const char* norm : {"head", "hidden"}) {
    const SmallTeacher teacher;
    test::ShardPair pair;
    pair.run([&](Shard& shard) {
      const auto piece = teacher.branch(mixer_of(norm), shard);
      const at::Tensor x = seeded({1, 5, 32}, 1).set_requires_grad(true);
      sum_over_shards(piece->forward(copy_to_shards(x, shard), teacher.positions(0, 5)), shard).sum().backward();
    });
    EXPECT_EQ(pair.sums(0), norm == std::string("head") ? 2 : 4) << norm;
  }
}

TEST(LightningStart, DataHasNothingToSet) {
  const SmallTeacher teacher;
  MixerSection mixer;
  mixer.init = "data";
  try {
    teacher.branch(mixer);
    FAIL() << "accepted";
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("mixer.init: is 'data', but lightning has no decays"));
  }
}

}  // namespace
}  // namespace flashmorph
