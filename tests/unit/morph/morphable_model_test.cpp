#include "core/morph/morphable_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <ranges>

#include "core/io/model_files.h"
#include "core/mixer/lightning.h"
#include "core/morph/pass.h"
#include "core/ops/gate_mix.h"
#include "core/ops/put_off_gradients.h"
#include "tests/support/tensors.h"

// The passkey teacher in float64, with its branches.

namespace flashmorph {
namespace {

using test::max_abs_error;

constexpr const char* kTeacher = "tests/data/passkey-teacher";

class CountingShard : public Shard {
 public:
  int size() const override { return 2; }  // so that the reductions are made
  void all_reduce_sum(at::Tensor&) override { ++sums; }
  int sums = 0;
};

MorphableModel teacher(Shard& shard, const std::string& output_norm = "head") {
  const ModelSpec spec = ModelSpec::open(kTeacher);
  MorphableModel model = MorphableModel::load(ModelFiles::open(kTeacher), spec, {0, 1, at::kDouble, at::kCPU}, shard);
  MixerSection mixer;
  mixer.own.of<LightningSettings>().output_norm = output_norm;
  mixer.chunk = 8;
  model.add_branches(mixer, 1);
  return model;
}

at::Tensor some_tokens(int64_t length) { return (at::arange(2 * length, at::kLong) * 37 % 1021).view({2, length}); }

TEST(MorphableModel, AtOneItIsTheTeacherAndAtZeroLinear) {
  Shard whole;
  const MorphableModel model = teacher(whole);
  const at::Tensor x = model.embed(some_tokens(21));
  const Positions positions = model.positions(0, 21);
  const auto mixed = [&](double a) {
    return model.attend(3, x, Route::mixed(at::full({}, a, at::kDouble)), positions);
  };
  EXPECT_TRUE(mixed(1.0).equal(model.attend(3, x, Route::full(), positions)));
  EXPECT_TRUE(mixed(0.0).equal(model.attend(3, x, Route::linear(), positions)));
}

TEST(MorphableModel, GateGradientIsCentralDifferences) {
  Shard whole;
  const MorphableModel model = teacher(whole);
  const at::Tensor tokens = some_tokens(19);
  const Positions positions = model.positions(0, 19);
  const auto loss = [&](const at::Tensor& alpha) {
    Routes routes;
    for (const at::Tensor& one : alpha.unbind()) routes.push_back(Route::mixed(one));
    return model.forward(tokens, routes, positions).square().sum();
  };
  at::Tensor alpha = at::linspace(0.0, 1.0, 12, at::kDouble).set_requires_grad(true);
  loss(alpha).backward();
  for (const int64_t layer : {0, 5, 11}) {
    constexpr double kStep = 1e-5;
    at::Tensor above = alpha.detach().clone(), below = above.clone();
    above[layer] += kStep;
    below[layer] -= kStep;
    const double expected = (loss(above) - loss(below)).item<double>() / (2 * kStep);
    EXPECT_NEAR(alpha.grad()[layer].item<double>() / expected, 1.0, 1e-6) << layer;
  }
  EXPECT_TRUE(alpha.grad().isfinite().all().item<bool>());
}

TEST(MorphableModel, OnlyTheGatesGetGradients) {
  Shard whole;
  const MorphableModel model = teacher(whole);
  const at::Tensor alpha = at::full({}, 0.5, at::kDouble).set_requires_grad(true);
  model.attend(2, model.embed(some_tokens(9)), Route::mixed(alpha), model.positions(0, 9)).sum().backward();
  EXPECT_TRUE(alpha.grad().defined());
  for (const Parameter& parameter : model.all_parameters())
    EXPECT_FALSE(parameter.value.requires_grad()) << parameter.name;
}

TEST(MorphableModel, AMixedAttentionTakesOneReductionEachWay) {
  CountingShard counting;
  const MorphableModel model = teacher(counting);
  const at::Tensor x = at::randn({1, 9, 128}, at::kDouble).set_requires_grad(true);
  const at::Tensor alpha = at::full({}, 0.5, at::kDouble).set_requires_grad(true);
  const at::Tensor h = model.attend(2, x, Route::mixed(alpha), model.positions(0, 9));
  EXPECT_EQ(counting.sums, 1);
  h.sum().backward();
  EXPECT_EQ(counting.sums, 2);
}

TEST(MorphableModel, DecodingStepByStepIsTheWholeForward) {
  Shard whole;
  for (const char* norm : {"head", "hidden"}) {
    const MorphableModel model = teacher(whole, norm);
    Routes routes(12, Route::linear());
    routes[4] = Route::full();
    const at::Tensor tokens = some_tokens(23);
    const at::Tensor expected = model.forward(tokens, routes, model.positions(0, 23));
    std::vector<LayerCache> caches(12);
    std::vector<at::Tensor> parts = {model.forward(tokens.narrow(1, 0, 15), routes, model.positions(0, 15), &caches)};
    parts.push_back(model.forward(tokens.narrow(1, 15, 3), routes, model.positions(15, 3), &caches));
    for (int64_t t = 18; t < 23; ++t)
      parts.push_back(model.forward(tokens.narrow(1, t, 1), routes, model.positions(t, 1), &caches));
    EXPECT_LT(max_abs_error(expected, at::cat(parts, 1)), 1e-9) << norm;
  }
}

TEST(MorphableModel, AHybridTrainsApartFromItsSource) {
  Shard whole;
  const MorphableModel model = teacher(whole);
  Routes routes(12, Route::linear());
  routes[1] = Route::full();
  const MorphableModel hybrid = model.hybrid(routes);
  const at::Tensor tokens = some_tokens(9);
  const Positions positions = model.positions(0, 9);
  EXPECT_TRUE(hybrid.forward(tokens, routes, positions).detach().equal(model.forward(tokens, routes, positions)));
  for (const Parameter& parameter : hybrid.all_parameters()) {
    EXPECT_TRUE(parameter.value.requires_grad()) << parameter.name;
    parameter.value.detach().zero_();
  }
  EXPECT_GT(model.forward(tokens, routes, positions).abs().max().item<double>(), 0.0);
}

// In whichever thread autograd goes back and makes a layer's forward pass again, its projections' weights come later.
TEST(MorphableModel, RecomputedLayersPutOffWhatTheirForwardPassDoes) {
  Shard whole;
  Routes routes(12, Route::linear());
  routes[3] = Route::full();
  const MorphableModel hybrid = teacher(whole).hybrid(routes);
  const at::Tensor x = hybrid.embed(some_tokens(9)).detach();
  const Positions positions = hybrid.positions(0, 9);

  // How many weights have no gradient before those that were put off are worked out, and all gradients.
  const auto gradients = [&](bool recompute, PutOffGradients* list) {
    const auto forward = [&] {
      const PutOffGradients::Scope putting_off(list);
      return pass_through(Way::of(hybrid, routes, positions), x, /*beside=*/nullptr, recompute).states;
    };
    const at::Tensor loss = forward().square().sum();
    std::async(std::launch::async, [&] { loss.backward(); }).get();
    const Parameters weights = hybrid.all_parameters();
    const auto without =
        std::ranges::count_if(weights, [](const Parameter& one) { return !one.value.grad().defined(); });
    if (list != nullptr) list->work_out();
    std::vector<at::Tensor> found;
    for (at::Tensor weight : std::views::transform(weights, &Parameter::value))
      found.push_back(std::exchange(weight.mutable_grad(), {}));
    return std::pair(without, found);
  };

  const auto [unused, expected] = gradients(false, nullptr);
  for (const bool recompute : {false, true}) {
    PutOffGradients list;
    const auto [without, found] = gradients(recompute, &list);
    EXPECT_GE(without - unused, 12 * 7) << recompute;  // four of each attention, three of each feed-forward
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_TRUE(found[i].defined() ? at::equal(found[i], expected[i]) : !expected[i].defined()) << i;
  }
}

TEST(LightningBranch, KvHeadsRepeatHeadByHead) {
  Shard whole;
  const MorphableModel model = teacher(whole);
  const at::Tensor k = model.layer(0).attention->k;                          // [2 heads * 32, 128]
  const at::Tensor repeated = model.layer(0).branch->parameters()[1].value;  // [4 heads * 32, 128]
  for (int64_t head = 0; head < 4; ++head)
    EXPECT_TRUE(repeated.narrow(0, head * 32, 32).equal(k.narrow(0, head / 2 * 32, 32))) << head;
}

}  // namespace
}  // namespace flashmorph
