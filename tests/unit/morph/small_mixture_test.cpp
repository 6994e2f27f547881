// A small model in float64: its gates' gradients, its form in two slices, its hybrids.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/io/model_files.h"
#include "core/mixer/lightning.h"
#include "core/morph/morphable_model.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"
#include "tests/unit/mixer/shard_pair.h"

namespace flashmorph {
namespace {

using test::relative_error;
using testing::ElementsAre;

struct SmallFolder {
  explicit SmallFolder(bool tied = true) { test::write_small_model(path.path(), {.tied = tied}); }
  MorphableModel open(Shard& shard, const std::string& output_norm = "head") const {
    const ModelSpec spec = ModelSpec::open(path.path());
    const Placement placement{shard.rank(), shard.size(), at::kDouble, at::kCPU};
    MorphableModel model = MorphableModel::load(ModelFiles::open(path.path()), spec, placement, shard);
    MixerSection mixer;
    mixer.own.of<LightningSettings>().output_norm = output_norm;
    mixer.chunk = 4;
    model.add_branches(mixer, 1);
    return model;
  }
  test::TemporaryFolder path;
};

at::Tensor seeded(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

at::Tensor two_sequences(int64_t length) { return (at::arange(2 * length, at::kLong) * 37 % 61).view({2, length}); }

Routes mixed(const at::Tensor& alpha) {
  Routes routes;
  for (const at::Tensor& one : alpha.unbind()) routes.push_back(Route::mixed(one));
  return routes;
}

at::Tensor loss_of(const MorphableModel& model, const at::Tensor& alpha) {
  const at::Tensor hidden = model.forward(two_sequences(11), mixed(alpha), model.positions(0, 11));
  return (hidden * seeded(hidden.sizes(), 9)).sum();
}

class Gates : public testing::TestWithParam<std::array<double, 2>> {};

TEST_P(Gates, GradientIsCentralDifferences) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel model = folder.open(alone, "hidden");
  at::Tensor alpha = at::tensor({GetParam()[0], GetParam()[1]}, at::kDouble).set_requires_grad(true);
  loss_of(model, alpha).backward();
  for (int64_t layer = 0; layer < 2; ++layer) {
    const auto moved = [&](double by) {
      at::Tensor at_step = alpha.detach().clone();
      at_step[layer] += by;
      return loss_of(model, at_step).item<double>();
    };
    constexpr double kStep = 1e-4;  // fourth order: no trade between truncation and rounding to hide behind
    const double expected =
        (8.0 * (moved(kStep) - moved(-kStep)) - (moved(2 * kStep) - moved(-2 * kStep))) / (12.0 * kStep);
    ASSERT_GT(std::abs(expected), 1e-2) << "a gradient of nothing proves nothing";
    EXPECT_NEAR(alpha.grad()[layer].item<double>() / expected, 1.0, 1e-7) << "layer " << layer;
  }
}

INSTANTIATE_TEST_SUITE_P(SmallMixture, Gates,
                         testing::Values(std::array{0.3, 0.6}, std::array{1.0, 1.0}, std::array{0.0, 0.0},
                                         std::array{0.0, 1.0}));

TEST(SmallMixture, GateGradientIsTheInnerProductWithTheDifference) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel model = folder.open(alone);
  const at::Tensor x = seeded({2, 11, 32}, 1), G = seeded({2, 11, 32}, 2);
  const Positions positions = model.positions(0, 11);
  for (const double a : {0.0, 0.4, 1.0}) {
    const at::Tensor alpha = at::full({}, a, at::kDouble).set_requires_grad(true);
    model.attend(1, x, Route::mixed(alpha), positions).backward(G);
    const at::Tensor difference =
        model.attend(1, x, Route::full(), positions) - model.attend(1, x, Route::linear(), positions);
    EXPECT_LT(relative_error((G * difference).sum(), alpha.grad()), 1e-12) << a;
  }
}

class TwoPieces : public testing::TestWithParam<std::string> {};

TEST_P(TwoPieces, AttendIsTheWholeForwardAndBackward) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel whole = folder.open(alone, GetParam());
  const at::Tensor input = seeded({2, 11, 32}, 1), G = seeded({2, 11, 32}, 2);
  const auto run = [&](const MorphableModel& model, at::Tensor& x, at::Tensor& alpha) {
    x = input.clone().set_requires_grad(true);
    alpha = at::full({}, 0.3, at::kDouble).set_requires_grad(true);
    const at::Tensor h = model.feed_forward(1, model.attend(1, x, Route::mixed(alpha), model.positions(0, 11)));
    h.backward(G);
    return h;
  };
  at::Tensor x, alpha;
  const at::Tensor expected = run(whole, x, alpha);

  test::ShardPair pair;
  std::array<at::Tensor, 2> xs, alphas, outputs;
  pair.run([&](Shard& shard) {
    const MorphableModel piece = folder.open(shard, GetParam());
    outputs[shard.rank()] = run(piece, xs[shard.rank()], alphas[shard.rank()]);
  });
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_LT(relative_error(expected, outputs[rank]), 1e-13);
    EXPECT_LT(relative_error(x.grad(), xs[rank].grad()), 1e-12);
    const int for_the_norm = GetParam() == "head" ? 0 : 1;
    EXPECT_EQ(pair.sums(rank), 2 * (2 + for_the_norm)) << "attention and feed-forward, one each way";
  }
  EXPECT_LT(relative_error(alpha.grad(), alphas[0].grad() + alphas[1].grad()), 1e-12) << "each rank has a part of it";
}

TEST_P(TwoPieces, TheWholeModelAndItsGates) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel whole = folder.open(alone, GetParam());
  at::Tensor alpha = at::tensor({0.3, 0.8}, at::kDouble).set_requires_grad(true);
  const at::Tensor expected = loss_of(whole, alpha);
  expected.backward();

  test::ShardPair pair;
  std::array<at::Tensor, 2> alphas, losses;
  pair.run([&](Shard& shard) {
    const MorphableModel piece = folder.open(shard, GetParam());
    at::Tensor& mine = alphas[shard.rank()];
    mine = alpha.detach().clone().set_requires_grad(true);
    losses[shard.rank()] = loss_of(piece, mine);
    losses[shard.rank()].backward();
  });
  for (int rank = 0; rank < 2; ++rank) EXPECT_LT(relative_error(expected, losses[rank]), 1e-12);
  EXPECT_LT(relative_error(alpha.grad(), alphas[0].grad() + alphas[1].grad()), 1e-11);
}

INSTANTIATE_TEST_SUITE_P(SmallMixture, TwoPieces, testing::Values("head", "hidden"),
                         [](const auto& info) { return info.param; });

std::vector<std::string> names_with(const Parameters& parameters, const std::string& part) {
  std::vector<std::string> names;
  for (const Parameter& parameter : parameters)
    if (parameter.name.find(part) != std::string::npos) names.push_back(parameter.name);
  return names;
}

TEST(SmallMixture, AHybridKeepsTheNamedAttentionOfEachLayer) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel hybrid = folder.open(alone).hybrid({Route::linear(), Route::full()});
  const Parameters all = hybrid.all_parameters();
  EXPECT_THAT(names_with(all, "attn.q_proj"), testing::UnorderedElementsAre("model.layers.0.linear_attn.q_proj.weight",
                                                                            "model.layers.1.self_attn.q_proj.weight"));
  const at::Tensor x = seeded({1, 3, 32}, 1);
  EXPECT_ANY_THROW(hybrid.attend(0, x, Route::full(), hybrid.positions(0, 3)));
  EXPECT_ANY_THROW(hybrid.attend(1, x, Route::linear(), hybrid.positions(0, 3)));
}

TEST(SmallMixture, AHybridsTiedHeadIsItsEmbedding) {
  Shard alone;
  for (const bool tied : {true, false}) {
    const SmallFolder folder(tied);
    const MorphableModel hybrid = folder.open(alone).hybrid({Route::linear(), Route::full()});
    const Parameters all = hybrid.all_parameters();
    ASSERT_EQ(all.front().name, "model.embed_tokens.weight");
    EXPECT_EQ(all.front().value.is_same(hybrid.head()), tied);
    EXPECT_EQ(names_with(all, "lm_head").size(), tied ? 0u : 1u);
  }
}

TEST(SmallMixture, AStepOfAHybridLeavesItsSourceAlone) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel source = folder.open(alone);
  const Routes routes = {Route::linear(), Route::full()};
  const at::Tensor tokens = two_sequences(7);
  const Positions positions = source.positions(0, 7);
  const at::Tensor before = source.forward(tokens, routes, positions);
  const MorphableModel hybrid = source.hybrid(routes);
  const at::Tensor hidden = hybrid.forward(tokens, routes, positions);
  (at::linear(hidden, hybrid.head()) * seeded({2, 7, 64}, 3)).sum().backward();
  for (const Parameter& parameter : hybrid.all_parameters()) {
    ASSERT_TRUE(parameter.value.grad().defined()) << parameter.name;
    EXPECT_GT(parameter.value.grad().abs().max().item<double>(), 0.0) << parameter.name;
    parameter.value.detach().sub_(parameter.value.grad());
  }
  EXPECT_TRUE(source.forward(tokens, routes, positions).equal(before));
  EXPECT_FALSE(hybrid.forward(tokens, routes, positions).equal(before));
  for (const Parameter& parameter : source.all_parameters()) {
    EXPECT_FALSE(parameter.value.requires_grad()) << parameter.name;
    EXPECT_FALSE(parameter.value.grad().defined()) << parameter.name;
  }
}

TEST(SmallMixture, BranchParametersComeInLayerOrder) {
  const SmallFolder folder;
  Shard alone;
  EXPECT_THAT(names_with(folder.open(alone).branch_parameters(), "q_proj"),
              ElementsAre("model.layers.0.linear_attn.q_proj.weight", "model.layers.1.linear_attn.q_proj.weight"));
}

TEST(SmallMixture, MisuseThrows) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel model = folder.open(alone);
  const at::Tensor half = at::full({}, 0.5, at::kDouble);
  EXPECT_ANY_THROW(model.hybrid({Route::full(), Route::mixed(half)}));
  EXPECT_ANY_THROW(model.hybrid({Route::full()}));
  EXPECT_ANY_THROW(model.forward(two_sequences(3), {Route::full()}, model.positions(0, 3)));
  std::vector<LayerCache> one(1);
  EXPECT_ANY_THROW(model.forward(two_sequences(3), {Route::full(), Route::full()}, model.positions(0, 3), &one));
}

// Whatever attention the layers use, a row of packed documents is each document alone.
TEST(SmallMixture, PackedDocumentsAreRunApart) {
  const SmallFolder folder;
  Shard alone;
  const MorphableModel model = folder.open(alone, "hidden");
  const std::vector<int64_t> offsets = {0, 5, 6, 17};
  const at::Tensor tokens = two_sequences(17).narrow(0, 0, 1);
  for (const Routes& routes : {Routes{Route::full(), Route::linear()}, mixed(at::tensor({0.3, 0.8}, at::kDouble))}) {
    const at::Tensor packed = model.forward(tokens, routes, model.positions(0, 17, at::tensor(offsets)));
    for (size_t d = 0; d < 3; ++d) {
      const int64_t length = offsets[d + 1] - offsets[d];
      const at::Tensor alone = model.forward(tokens.narrow(1, offsets[d], length), routes, model.positions(0, length));
      EXPECT_LT(relative_error(alone, packed.narrow(1, offsets[d], length)), 1e-12) << d;
    }
  }
  std::vector<LayerCache> caches(2);
  EXPECT_ANY_THROW(
      model.forward(tokens, {Route::full(), Route::full()}, model.positions(0, 17, at::tensor(offsets)), &caches));
}

}  // namespace
}  // namespace flashmorph
