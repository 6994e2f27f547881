// The lightning branch against its definition, the teacher's own attention, itself in two slices and step by step.
// Letters: B batch, T tokens, D hidden, H heads, K head dim.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>

#include "core/base/bad_input.h"
#include "core/mixer/linear_branch.h"
#include "core/model/attention.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/shard_pair.h"

namespace flashmorph {
namespace {

using test::half;
using test::max_abs_error;
using test::relative_error;

constexpr int64_t kLayer = 1;
constexpr int64_t kSeed = 7;

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

struct Teacher {
  Teacher() {
    test::write_small_model(folder.path());
    spec = ModelSpec::open(folder.path());
  }
  AttentionWeights attention(const Placement& placement = {.dtype = at::kDouble}) const {
    return load_attention(Checkpoint::open(folder.path()), spec, kLayer, placement);
  }
  std::unique_ptr<LinearBranch> branch(const MixerSection& mixer, Shard& shard, int64_t seed = kSeed) const {
    const Placement placement{shard.rank(), shard.size(), at::kDouble, at::kCPU};
    return make_branch({spec, mixer, kLayer, seed, placement, shard}, attention(placement));
  }
  Positions positions(int64_t start, int64_t length) const {
    return positions_of(spec, start, length, {.dtype = at::kDouble});
  }

  test::TemporaryFolder folder;
  ModelSpec spec;
  Shard alone;
};

MixerSection mixer_of(const std::string& output_norm, bool rope = true) {
  MixerSection mixer;
  mixer.output_norm = output_norm;
  mixer.rope = rope;
  mixer.chunk = 4;
  return mixer;
}

using Weights = std::map<std::string, at::Tensor>;  // q_proj, ...

Weights weights_of(const LinearBranch& branch) {
  Weights weights;
  for (const Parameter& parameter : branch.parameters()) {
    const std::string prefix = "model.layers.1.linear_attn.", suffix = ".weight";
    EXPECT_EQ(parameter.name.substr(0, prefix.size()), prefix);
    weights[parameter.name.substr(prefix.size(), parameter.name.size() - prefix.size() - suffix.size())] =
        parameter.value;
  }
  return weights;
}

// Norm weights start at one, where a forgotten factor would not show.
void perturb_norms(const LinearBranch& branch) {
  for (const auto& [name, value] : weights_of(branch))
    if (name.find("norm") != std::string::npos) value.copy_(1.0 + 0.3 * seeded(value.sizes(), value.numel()));
}

void train_all(const LinearBranch& branch) {
  for (const Parameter& parameter : branch.parameters()) parameter.value.set_requires_grad(true);
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
      const at::Tensor normed = mixer.output_norm == "head" ? unit(o_HK, 1).flatten() : unit(o_HK.flatten(), 0);
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
  Teacher teacher;
  const MixerSection mixer = mixer_of(output_norm, rope);
  const auto fast = teacher.branch(mixer, teacher.alone);
  perturb_norms(*fast);
  const auto exact = fast->clone();
  train_all(*fast);
  train_all(*exact);
  const at::Tensor input = seeded({2, 11, 32}, 1), upstream = seeded({2, 11, 32}, 2);  // two chunks and a ragged one
  const at::Tensor x = input.clone().set_requires_grad(true), x_exact = input.clone().set_requires_grad(true);

  const at::Tensor actual = fast->forward(x, teacher.positions(0, 11));
  const Definition definition{teacher.spec, mixer};
  const Weights weights = weights_of(*exact);
  const at::Tensor expected = at::stack({definition(x_exact[0], weights), definition(x_exact[1], weights)});
  EXPECT_LT(relative_error(expected, actual), 1e-12);

  actual.backward(upstream);
  expected.backward(upstream);
  EXPECT_LT(relative_error(x_exact.grad(), x.grad()), 1e-11);
  for (const auto& [name, value] : weights_of(*fast))
    EXPECT_LT(relative_error(weights.at(name).grad(), value.grad()), 1e-11) << "gradient of " << name;
}

INSTANTIATE_TEST_SUITE_P(LightningBranch, LightningDefinition,
                         testing::Combine(testing::Values("head", "hidden"), testing::Bool()), [](const auto& info) {
                           return std::get<0>(info.param) + (std::get<1>(info.param) ? "Rope" : "NoRope");
                         });

// With softmax put back, the branch's expanded heads are the teacher's attention; repeating rows instead is not.
TEST(LightningStart, ExpandedHeadsWithSoftmaxAreTheTeacher) {
  Teacher teacher;
  const AttentionWeights original = teacher.attention();
  const Weights w = weights_of(*teacher.branch(mixer_of("head"), teacher.alone));
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
  Teacher teacher;
  const MixerSection mixer = mixer_of("head");
  const Weights w = weights_of(*teacher.branch(mixer, teacher.alone));
  const double bound = 1.0 / std::sqrt(32.0);
  EXPECT_LE(w.at("z_proj").abs().max().item<double>(), bound);
  EXPECT_NEAR(w.at("z_proj").mean().item<double>(), 0.0, 0.05 * bound);
  EXPECT_NEAR(w.at("z_proj").std().item<double>(), bound / std::sqrt(3.0), 0.05 * bound);
  EXPECT_TRUE(w.at("o_norm").equal(at::ones({32}, at::kDouble)));
  EXPECT_TRUE(w.at("z_proj").equal(weights_of(*teacher.branch(mixer, teacher.alone)).at("z_proj")));
  EXPECT_FALSE(w.at("z_proj").equal(weights_of(*teacher.branch(mixer, teacher.alone, kSeed + 1)).at("z_proj")));
  const Placement placement{.dtype = at::kDouble};
  const auto below = make_branch({teacher.spec, mixer, 0, kSeed, placement, teacher.alone}, teacher.attention());
  EXPECT_FALSE(w.at("z_proj").equal(below->parameters()[4].value));
}

TEST(LightningStart, ATeacherWithoutHeadNormsGivesOnes) {
  Teacher teacher;
  AttentionWeights plain = teacher.attention();
  plain.q_norm.reset();
  plain.k_norm.reset();
  const Placement placement{.dtype = at::kDouble};
  const Weights w =
      weights_of(*make_branch({teacher.spec, mixer_of("head"), kLayer, kSeed, placement, teacher.alone}, plain));
  EXPECT_TRUE(w.at("q_norm").equal(at::ones({8}, at::kDouble)));
  EXPECT_TRUE(w.at("k_norm").equal(at::ones({8}, at::kDouble)));
}

TEST(LightningStart, ItSharesNothingWithTheTeacher) {
  Teacher teacher;
  const AttentionWeights original = teacher.attention();
  const Placement placement{.dtype = at::kDouble};
  const at::Tensor before = original.o.clone();
  const auto branch = make_branch({teacher.spec, mixer_of("head"), kLayer, kSeed, placement, teacher.alone}, original);
  for (const Parameter& parameter : branch->parameters()) parameter.value.zero_();
  EXPECT_TRUE(original.o.equal(before));
  for (const at::Tensor& weight : {original.q, original.k, original.v, original.q_norm, original.k_norm})
    EXPECT_GT(weight.abs().min().item<double>(), 0.0);
}

class LightningSlices : public testing::TestWithParam<std::string> {};

// The whole tensor's gradient from the two ranks'.
at::Tensor joined(const Parameter& first, const Parameter& second) {
  if (first.split == Split::none) return first.value.grad() + second.value.grad();
  return at::cat({first.value.grad(), second.value.grad()}, first.split == Split::rows ? 0 : 1);
}

TEST_P(LightningSlices, TwoPiecesAreTheWholeForwardAndBackward) {
  Teacher teacher;
  const MixerSection mixer = mixer_of(GetParam());
  const auto whole = teacher.branch(mixer, teacher.alone);
  const Weights initial = weights_of(*whole->clone());
  perturb_norms(*whole);
  train_all(*whole);
  const at::Tensor input = seeded({2, 11, 32}, 1), upstream = seeded({2, 11, 32}, 2);
  const at::Tensor x = input.clone().set_requires_grad(true);
  const at::Tensor expected = whole->forward(x, teacher.positions(0, 11));
  expected.backward(upstream);

  test::ShardPair pair;
  std::array<std::unique_ptr<LinearBranch>, 2> pieces;
  std::array<at::Tensor, 2> outputs, inputs;
  pair.run([&](Shard& shard) {
    const int rank = shard.rank();
    pieces[rank] = teacher.branch(mixer, shard);
    const Parameters mine = pieces[rank]->parameters(), all = whole->parameters();
    for (size_t i = 0; i < mine.size(); ++i) {
      const int64_t dim = mine[i].split == Split::columns ? 1 : 0;
      const auto slice = [&](const at::Tensor& of) { return mine[i].split == Split::none ? of : half(of, dim, rank); };
      const std::string name = mine[i].name.substr(27, 6);
      EXPECT_TRUE(mine[i].value.equal(slice(initial.at(name)))) << "initial " << name << " of rank " << rank;
      mine[i].value.copy_(slice(all[i].value.detach()));
    }
    train_all(*pieces[rank]);
    inputs[rank] = input.clone().set_requires_grad(true);
    const at::Tensor partial = pieces[rank]->forward(copy_to_shards(inputs[rank], shard), teacher.positions(0, 11));
    outputs[rank] = sum_over_shards(partial, shard);
    outputs[rank].backward(upstream);
  });

  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_LT(relative_error(expected, outputs[rank]), 1e-13);
    EXPECT_LT(relative_error(x.grad(), inputs[rank].grad()), 1e-12);
    EXPECT_EQ(pair.sums(rank), GetParam() == "head" ? 2 : 4)
        << "one each way, and one more for the norm over all heads";
  }
  const Parameters all = whole->parameters(), first = pieces[0]->parameters(), second = pieces[1]->parameters();
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_LT(relative_error(all[i].value.grad(), joined(first[i], second[i])), 1e-12) << all[i].name;
    EXPECT_EQ(first[i].partial_gradient, first[i].split == Split::none) << all[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(LightningBranch, LightningSlices, testing::Values("head", "hidden"),
                         [](const auto& info) { return info.param; });

TEST(LightningBranch, StepByStepIsTheWholeForward) {
  Teacher teacher;
  const auto branch = teacher.branch(mixer_of("hidden"), teacher.alone);
  const at::Tensor x = seeded({2, 14, 32}, 4);
  LayerCache cache;
  std::vector<at::Tensor> parts;
  int64_t start = 0;
  for (const int64_t length : {6, 1, 1, 5, 1}) {
    parts.push_back(branch->forward(x.narrow(1, start, length), teacher.positions(start, length), &cache));
    start += length;
  }
  EXPECT_LT(relative_error(branch->forward(x, teacher.positions(0, 14)), at::cat(parts, 1)), 1e-13);
  EXPECT_EQ(cache.state_BHKV.sizes(), (std::vector<int64_t>{2, 4, 8, 8}));
  EXPECT_FALSE(cache.keys_BTGK.defined());
}

TEST(LightningBranch, ACloneTrainsApart) {
  Teacher teacher;
  const auto branch = teacher.branch(mixer_of("head"), teacher.alone);
  const auto copy = branch->clone();
  const at::Tensor x = seeded({1, 5, 32}, 5);
  const at::Tensor before = branch->forward(x, teacher.positions(0, 5));
  EXPECT_TRUE(copy->forward(x, teacher.positions(0, 5)).equal(before));
  for (const Parameter& parameter : copy->parameters()) parameter.value.add_(0.5);
  EXPECT_TRUE(branch->forward(x, teacher.positions(0, 5)).equal(before));
  EXPECT_GT(max_abs_error(before, copy->forward(x, teacher.positions(0, 5))), 1e-3);
}

TEST(Branches, AnUnknownKindIsNamedWithTheKnownOnes) {
  Teacher teacher;
  MixerSection mixer;
  mixer.kind = "lightening";
  try {
    teacher.branch(mixer, teacher.alone);
    FAIL() << "accepted";
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("mixer.kind"), testing::HasSubstr("'lightening'"),
                                             testing::HasSubstr("known: lightning")));
  }
  EXPECT_THAT(branch_kinds(), testing::Contains("lightning"));
}

}  // namespace
}  // namespace flashmorph
