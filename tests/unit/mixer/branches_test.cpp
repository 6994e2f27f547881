// What every kind of branch keeps, whatever it computes: its slices, its steps, its documents, its start.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "core/base/bad_input.h"
#include "core/mixer/initial.h"
#include "core/mixer/lightning.h"
#include "core/mixer/linear_branch.h"
#include "core/mixer/window.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/shard_pair.h"
#include "tests/unit/mixer/small_teacher.h"

namespace flashmorph {
namespace {

using test::alone;
using test::half;
using test::max_abs_error;
using test::perturb_norms;
using test::relative_error;
using test::seeded;
using test::SmallTeacher;
using test::train_all;
using test::weights_of;

struct Setting {
  std::string name;
  MixerSection mixer;

  friend void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }
};

Setting of_kind(const std::string& kind, const std::string& output_norm = "head") {
  Setting setting{kind + "_" + output_norm, {}};
  setting.mixer.kind = kind;
  setting.mixer.own.of<LightningSettings>().output_norm = output_norm;
  if (kind == "window") setting.mixer.own.of<WindowSettings>().window = 4;
  setting.mixer.chunk = 4;
  return setting;
}

Setting window_with_sinks() {
  Setting setting = of_kind("window");
  setting.name = "window_sinks";
  setting.mixer.own.of<WindowSettings>().sinks = true;
  return setting;
}

class Branches : public testing::TestWithParam<Setting> {
 protected:
  const MixerSection& mixer() const { return GetParam().mixer; }
  SmallTeacher teacher;
};

INSTANTIATE_TEST_SUITE_P(Kinds, Branches,
                         testing::Values(of_kind("lightning"), of_kind("lightning", "hidden"), of_kind("gla"),
                                         of_kind("gated_delta_net"), of_kind("mamba2"), of_kind("window"),
                                         window_with_sinks(), of_kind("plain")),
                         [](const auto& info) { return info.param.name; });

// The whole tensor's gradient from the two ranks'.
at::Tensor joined(const Parameter& first, const Parameter& second) {
  if (first.split == Split::none) return first.value.grad() + second.value.grad();
  return at::cat({first.value.grad(), second.value.grad()}, first.split == Split::rows ? 0 : 1);
}

TEST(BranchStart, RandomRowsAreTheSameInOneCallAndOneByOne) {
  const SmallTeacher teacher;
  const MixerSection mixer;
  const BranchContext context{teacher.spec, mixer, test::kLayer, test::kSeed, {.dtype = at::kBFloat16}, alone()};
  const at::Tensor rows = uniform_rows(context, /*stream=*/1, /*first=*/5, /*rows=*/101, /*columns=*/7);
  for (int64_t row = 0; row < 101; ++row)
    EXPECT_TRUE(at::equal(uniform_rows(context, 1, 5 + row, 1, 7)[0], rows[row])) << row;
}

TEST_P(Branches, TwoPiecesAreTheWholeForwardAndBackward) {
  const auto whole = teacher.branch(mixer());
  const auto initial = whole->clone();
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
    pieces[rank] = teacher.branch(mixer(), shard);
    const Parameters mine = pieces[rank]->parameters(), all = whole->parameters(), start = initial->parameters();
    ASSERT_EQ(mine.size(), all.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      const int64_t dim = mine[i].split == Split::columns ? 1 : 0;
      const auto slice = [&](const at::Tensor& of) { return mine[i].split == Split::none ? of : half(of, dim, rank); };
      EXPECT_TRUE(mine[i].value.equal(slice(start[i].value))) << "initial " << mine[i].name << " of rank " << rank;
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
  }
  const Parameters all = whole->parameters(), first = pieces[0]->parameters(), second = pieces[1]->parameters();
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_LT(relative_error(all[i].value.grad(), joined(first[i], second[i])), 1e-12) << all[i].name;
    EXPECT_EQ(first[i].partial_gradient, first[i].split == Split::none) << all[i].name;
  }
}

TEST_P(Branches, StepByStepIsTheWholeForward) {
  const auto branch = teacher.branch(mixer());
  perturb_norms(*branch);
  const at::Tensor x = seeded({2, 14, 32}, 4);
  LayerCache cache;
  std::vector<at::Tensor> parts;
  int64_t start = 0;
  for (const int64_t length : {1, 1, 5, 1, 5, 1}) {
    parts.push_back(branch->forward(x.narrow(1, start, length), teacher.positions(start, length), &cache));
    start += length;
  }
  EXPECT_LT(relative_error(branch->forward(x, teacher.positions(0, 14)), at::cat(parts, 1)), 1e-13);
  EXPECT_FALSE(cache.keys_BPGK.defined());
  if (mixer().kind == "window")
    EXPECT_EQ(cache.recent_BPC.sizes(), (std::vector<int64_t>{2, 4, 2 * 2 * 8})) << "grouped keys and values";
  else
    EXPECT_EQ(cache.state_BHKV.sizes(), (std::vector<int64_t>{2, 4, 8, 8}));
}

TEST_P(Branches, RowsOfDifferentLengthsGoOnTogether) {
  const auto branch = teacher.branch(mixer());
  perturb_norms(*branch);
  const at::Tensor x = seeded({2, 16, 32}, 4), whole = branch->forward(x, teacher.positions(0, 16));
  std::vector<int64_t> starts = {5, 11};
  std::array<LayerCache, 2> alone;
  for (int64_t row = 0; row < 2; ++row)
    branch->forward(x.narrow(0, row, 1).narrow(1, 0, starts[row]), teacher.positions(0, starts[row]), &alone[row]);
  LayerCache both;
  for (auto state : {&LayerCache::state_BHKV, &LayerCache::recent_BPC})
    if ((alone[0].*state).defined()) both.*state = at::cat({alone[0].*state, alone[1].*state});
  for (int step = 0; step < 5; ++step) {
    const at::Tensor next = at::stack({x[0][starts[0]], x[1][starts[1]]}).unsqueeze(1);
    const at::Tensor actual =
        branch->forward(next, positions_of_rows(teacher.spec, starts, {.dtype = at::kDouble}), &both);
    for (int64_t row = 0; row < 2; ++row)
      EXPECT_LT(relative_error(whole[row][starts[row]], actual[row][0]), 1e-13) << step << " " << row;
    for (int64_t& start : starts) ++start;
  }
}

TEST_P(Branches, PackedDocumentsAreRunApart) {
  const auto branch = teacher.branch(mixer());
  perturb_norms(*branch);
  train_all(*branch);
  const std::vector<int64_t> offsets = {0, 2, 3, 12, 17};
  const at::Tensor x = seeded({1, 17, 32}, 6).set_requires_grad(true), upstream = seeded({1, 17, 32}, 7);
  const auto gradients = [&](const at::Tensor& output) {
    std::vector<at::Tensor> found;
    output.backward(upstream);
    for (const Parameter& parameter : branch->parameters()) {
      found.push_back(parameter.value.grad().clone());
      parameter.value.mutable_grad().reset();
    }
    found.push_back(x.grad().clone());
    x.mutable_grad().reset();
    return found;
  };
  std::vector<at::Tensor> apart;
  for (size_t d = 0; d + 1 < offsets.size(); ++d) {
    const int64_t length = offsets[d + 1] - offsets[d];
    apart.push_back(branch->forward(x.narrow(1, offsets[d], length), teacher.positions(0, length)));
  }
  const at::Tensor expected = at::cat(apart, 1);
  const at::Tensor actual = branch->forward(x, teacher.positions(0, 17, at::tensor(offsets)));
  EXPECT_LT(relative_error(expected, actual), 1e-13);
  const auto expected_gradients = gradients(expected), actual_gradients = gradients(actual);
  for (size_t i = 0; i < expected_gradients.size(); ++i)
    EXPECT_LT(relative_error(expected_gradients[i], actual_gradients[i]), 1e-12) << i;
}

TEST_P(Branches, ACloneTrainsApart) {
  const auto branch = teacher.branch(mixer());
  const auto copy = branch->clone();
  const at::Tensor x = seeded({1, 5, 32}, 5);
  const at::Tensor before = branch->forward(x, teacher.positions(0, 5));
  EXPECT_TRUE(copy->forward(x, teacher.positions(0, 5)).equal(before));
  for (const Parameter& parameter : copy->parameters()) parameter.value.add_(0.5);
  EXPECT_TRUE(branch->forward(x, teacher.positions(0, 5)).equal(before));
  EXPECT_GT(max_abs_error(before, copy->forward(x, teacher.positions(0, 5))), 1e-3);
}

TEST_P(Branches, ItSharesNothingWithTheTeacher) {
  const AttentionWeights original = teacher.attention();
  const at::Tensor before = original.o.clone();
  const Placement placement{.dtype = at::kDouble};
  const auto branch = make_branch({teacher.spec, mixer(), 1, 7, placement, alone()}, original);
  for (const Parameter& parameter : branch->parameters()) parameter.value.zero_();
  EXPECT_TRUE(original.o.equal(before));
  for (const at::Tensor& weight : {original.q, original.k, original.v, original.q_norm, original.k_norm})
    EXPECT_GT(weight.abs().min().item<double>(), 0.0);
}

TEST_P(Branches, TheStartFollowsFromSeedAndLayer) {
  const auto values = [&](int64_t seed, int64_t layer) {
    const Placement placement{.dtype = at::kDouble};
    std::vector<at::Tensor> found;
    const auto branch = make_branch({teacher.spec, mixer(), layer, seed, placement, alone()}, teacher.attention());
    for (const Parameter& parameter : branch->parameters()) found.push_back(parameter.value.flatten());
    return at::cat(found);
  };
  EXPECT_TRUE(values(7, 1).equal(values(7, 1)));
  if (mixer().kind == "plain" || mixer().kind == "window") return;  // nothing random
  EXPECT_FALSE(values(7, 1).equal(values(8, 1)));
  EXPECT_FALSE(values(7, 1).equal(values(7, 0)));
}

std::string fault_of(const MixerSection& mixer) {
  try {
    check_mixer(mixer);
  } catch (const BadInput& error) {
    return error.what();
  }
  return "no fault";
}

TEST(BranchKinds, AnUnknownKindIsNamedWithTheKnownOnes) {
  EXPECT_THAT(branch_kinds(), testing::ElementsAre("gated_delta_net", "gla", "lightning", "mamba2", "plain", "window"));
  MixerSection mixer;
  mixer.kind = "lightening";
  EXPECT_THAT(fault_of(mixer), testing::HasSubstr("mixer.kind: is 'lightening', expected one of: gated_delta_net, gla, "
                                                  "lightning, mamba2, plain, window"));
  EXPECT_THROW(SmallTeacher().branch(mixer), BadInput);
}

TEST(BranchKinds, WhatAKindCannotHonourIsRefused) {
  for (const char* kind : {"gla", "gated_delta_net", "mamba2"}) {
    MixerSection usual;
    usual.kind = kind;
    EXPECT_EQ(fault_of(usual), "no fault");
    MixerSection decay = usual, norm = usual;
    decay.own.of<LightningSettings>().decay = "retnet";
    norm.own.of<LightningSettings>().output_norm = "hidden";
    EXPECT_THAT(fault_of(decay), testing::HasSubstr(std::string("mixer.decay: is 'retnet', but ") + kind));
    EXPECT_THAT(fault_of(norm), testing::HasSubstr("mixer.output_norm: is 'hidden'"));
  }
}

}  // namespace
}  // namespace flashmorph
