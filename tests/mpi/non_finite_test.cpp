#include "distributed/stages/non_finite.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <functional>
#include <limits>
#include <set>

#include "core/base/clock.h"
#include "distributed/stages/align.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/run_on_meshes.h"

namespace flashmorph {
namespace {

using test::every_mesh;
using test::load;
using test::SharedModel;
using test::text_of;
using test::world;
using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RunConfig ten_steps() {
  const std::string data = "data: {lengths: 128, passkeys: 2, words: 4}";
  return RunConfig::from_yaml(
      "model: {path: unused}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\nstages:\n"
      "  align: {tokens: 5120, batch_tokens: 512, " +
          data + "}\n  select: {tokens: 5120, batch_tokens: 512, " + data +
          "}\n"
          "  distill: {tokens: 512, batch_tokens: 512, " +
          data + "}\n",
      "test");
}

StageContext told_to(StageObserver& observer, Mesh& mesh, const RunConfig& config) {
  return {config,
          mesh,
          test::inputs().corpus,
          test::inputs().passkeys,
          observer,
          test::inputs().stop,
          test::inputs().watchdog};
}

// Fills a weight of this rank's, if it has it.
void fill(const MorphableModel& model, const std::string& name, float value) {
  for (const Parameter& parameter : model.all_parameters())
    if (parameter.name == name) parameter.value.detach().fill_(value);
}

template <class Work>
std::string failure_of(Work work) {
  try {
    work();
  } catch (const CommonFailure& failure) {
    return failure.what();
  }
  return "no failure";
}

// On every mesh: what the stage says of a model that was changed so.
template <class Change, class Stage>
void expect_failure(Change change, Stage stage, const testing::Matcher<std::string>& expected) {
  const SharedModel small({.layers = 4});
  const RunConfig config = ten_steps();
  for (const MeshShape& shape : every_mesh()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    change(model);
    StageContext here = test::context(mesh, config);
    EXPECT_THAT(failure_of([&] { stage(model, here); }), expected);
  }
}

void select_in(const MorphableModel& model, StageContext& context) {
  select_gates(model, LayerBudget::of_layers(4, 2), context);
}

void align_in(MorphableModel& model, StageContext& context) { align(model, context); }

TEST(NonFinite, LossAndGradientMustBothBeFinite) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const auto result = [](double loss, double norm) { return StepResult{loss, {}, norm}; };
  EXPECT_TRUE(result(1.0, -2.0).is_finite());
  for (const double broken : {kInf, -kInf, static_cast<double>(kNan)}) {
    EXPECT_FALSE(result(broken, 1.0).is_finite());
    EXPECT_FALSE(result(1.0, broken).is_finite());
  }
}

TEST(NonFinite, AnOverflowingFeedForwardIsNamedWithItsLayerOnEveryMesh) {
  expect_failure(
      [](MorphableModel& model) {
        fill(model, "model.layers.1.mlp.up_proj.weight", 1e30f);
        fill(model, "model.layers.1.mlp.down_proj.weight", 1e30f);
      },
      select_in,
      AllOf(HasSubstr("select, step 1: the loss is "), HasSubstr("layer 1, the feed-forward's output, micro-batch 0"),
            HasSubstr("Nothing was updated")));
}

TEST(NonFinite, ABrokenWeightOfABranchIsNamedFirst) {
  expect_failure([](MorphableModel& model) { fill(model, "model.layers.2.linear_attn.q_proj.weight", kNan); }, align,
                 HasSubstr("align, step 1: the loss is nan; the first that is not finite: weight "
                           "model.layers.2.linear_attn.q_proj.weight"));
}

TEST(NonFinite, ABranchThatOverflowsBesideTheTeacherIsNamed) {
  expect_failure([](MorphableModel& model) { fill(model, "model.layers.2.linear_attn.o_proj.weight", 3e38f); },
                 align_in, HasSubstr("the first that is not finite: layer 2, the linear branch, micro-batch 0 (rank "));
}

TEST(NonFinite, ABrokenWeightOfTheTeacherIsNamedAsTheTeachers) {
  const auto distill_beside = [](MorphableModel& model, StageContext& context) {
    const Routes routes(4, Route::linear());
    const MorphableModel hybrid = model.hybrid(routes);
    fill(model, "model.layers.1.mlp.down_proj.weight", kNan);
    distill(model, hybrid, routes, "test", context);
  };
  expect_failure([](MorphableModel&) {}, distill_beside,
                 HasSubstr("distill, step 1: the loss is nan; the first that is not finite: weight teacher's "
                           "model.layers.1.mlp.down_proj.weight (rank "));
}

TEST(NonFinite, AGradientEndsTheStageThoughTheLossIsFinite) {
  const auto break_gradient = [](MorphableModel& model) {
    for (const Parameter& parameter : model.branch_parameters()) {
      if (parameter.name != "model.layers.2.linear_attn.q_proj.weight") continue;
      parameter.value.set_requires_grad(true);
      parameter.value.register_hook([](const at::Tensor& gradient) -> at::Tensor { return gradient * kNan; });
    }
  };
  expect_failure(break_gradient, align_in,
                 HasSubstr("align, step 1: the gradient is nan; the first that is not finite: the gradient of "
                           "model.layers.2.linear_attn.q_proj.weight (rank "));
}

TEST(NonFinite, NothingIsUpdatedBefore) {
  const SharedModel small({.layers = 4});
  const RunConfig config = ten_steps();
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  MorphableModel model = load(small.path(), mesh, config, at::kFloat);
  fill(model, "model.layers.2.linear_attn.q_proj.weight", kNan);
  std::vector<at::Tensor> before;
  for (const Parameter& parameter : model.branch_parameters()) before.push_back(parameter.value.detach().clone());
  StageContext here = test::context(mesh, config);
  EXPECT_THROW(align(model, here), CommonFailure);
  for (size_t i = 0; i < before.size(); ++i)
    EXPECT_TRUE(model.branch_parameters()[i].value.detach().view(at::kInt).equal(before[i].view(at::kInt)));
}

TEST(NonFinite, WhereAllStatesAreFiniteItIsTheGradientNearestToTheLoss) {
  const SharedModel small({.layers = 4});
  const RunConfig config = ten_steps();
  const SampleStream data(test::inputs().corpus, test::inputs().passkeys, config.stages.align, 1, "align");
  const Routes routes(4, Route::full());
  for (const MeshShape& shape : every_mesh()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    const std::vector<StageModel> models = {{model}};
    const MicroBatches batches = {
        .mine = {0, 1}, .count = 1, .shape = data.micro_batch_shape(4), .batch = [&](int64_t) {
          return data.micro_batch(4, 0);
        }};
    const StepFunction forward = [&](const MicroBatches& again) {
      Pipeline(mesh).stream(again.mine, state_shape(model, again.shape), [&](int64_t index, at::Tensor x) {
        const Batch batch = again.batch(index);
        if (model.has_embedding()) x = model.embed(batch.tokens_BT);
        return model.through_layers(x, routes, model.positions(0, batch.tokens_BT.size(1)));
      });
      return StepResult{1.0, {}, kNan};
    };
    const std::string place = std::to_string(mesh.pipeline_rank());
    const at::Tensor fine = at::ones({2}), broken = at::full({2}, kNan);
    const NamedGradients gradients = {{"early" + place, broken}, {"late" + place, broken}, {"last" + place, fine}};
    EXPECT_THAT(failure_of([&] {
                  stop_at_non_finite({1.0, {}, kNan}, {"align", 4, models, gradients, forward, batches}, mesh);
                }),
                AllOf(HasSubstr("align, step 5: the gradient is nan"),
                      HasSubstr("the gradient of late" + std::to_string(shape.pipeline - 1) + " (rank ")));
  }
}

// Both loops that train: of the gates, and of weights.
using Stage = std::function<void(MorphableModel&, StageContext&)>;
const std::pair<const char*, Stage> kLoops[] = {{"select", select_in}, {"align", align_in}};

bool is_last_rank() { return world().rank() == world().size() - 1; }

// Flips a bit of a frozen weight in the memory of the last rank after the second step.
struct BitFlip : StageObserver {
  at::Tensor weight;
  void stepped(const StepReport& report) override {
    if (report.step == 2 && is_last_rank()) weight.view(at::kInt)[0][0].bitwise_xor_(1);
  }
};

TEST(FrozenWeights, AFlippedBitStopsEveryRankAndIsNamed) {
  const SharedModel small({.layers = 4});
  RunConfig config = ten_steps();
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  for (const auto& [name, stage] : kLoops)
    for (const int64_t every : {1, 4, 0}) {
      config.health.weights_every = every;
      MorphableModel model = load(small.path(), mesh, config, at::kFloat);
      BitFlip flip;
      for (const Parameter& parameter : model.all_parameters())
        if (parameter.name == "model.layers.3.self_attn.k_proj.weight") flip.weight = parameter.value.detach();
      StageContext here = told_to(flip, mesh, config);
      const std::string failure = failure_of([&] { stage(model, here); });
      if (every == 0) {
        EXPECT_EQ(failure, "no failure");
      } else {
        EXPECT_THAT(failure, HasSubstr("rank " + std::to_string(world().size() - 1) + ": " + name + ", step " +
                                       std::to_string(every == 1 ? 2 : 4) +
                                       ": the frozen weight model.layers.3.self_attn.k_proj.weight in the memory of "));
      }
    }
}

TEST(FrozenWeights, AreNotSummedWhenNobodyChecksThem) {
  const Parameters without_values = {{"weight", at::zeros({2}, at::kMeta)}};  // which cannot be summed
  EXPECT_ANY_THROW(FrozenWeights(without_values, {}, /*every=*/1));
  EXPECT_NO_THROW(FrozenWeights(without_values, {}, /*every=*/0));
}

// Makes the last rank slow, and hears of it.
struct SlowRank : StageObserver {
  std::vector<std::vector<RankVitals>> heard;
  std::vector<std::string> warnings;
  void stepped(const StepReport&) override {
    const Stopwatch watch;
    while (is_last_rank() && watch.seconds() < 0.2) {
    }
  }
  void ranks(const std::vector<RankVitals>& vitals) override { heard.push_back(vitals); }
  void warn(const std::string& warning) override { warnings.push_back(warning); }
};

// One run of a stage with a slow last rank: whether that one was told of. A busy machine may make more of them slow, or
// one of them later, or all: what is heard says who is told of, and when.
void run_beside_a_slow_rank(const char* name, const Stage& stage, const std::string& path, const RunConfig& config,
                            Mesh& mesh, bool& told_of_it) {
  MorphableModel model = load(path, mesh, config, at::kFloat);
  SlowRank slow;
  StageContext here = told_to(slow, mesh, config);
  stage(model, here);
  ASSERT_EQ(slow.heard.size(), 2u) << "after 10 and 20 steps";
  std::vector<std::string> expected;
  std::set<int64_t> told;
  for (size_t look = 0; look < slow.heard.size(); ++look) {
    const std::vector<RankVitals>& heard = slow.heard[look];
    ASSERT_EQ(static_cast<int>(heard.size()), world().size());
    EXPECT_GE(heard.back().own_seconds(), 0.2) << "a step's, which is what it spends at least";
    for (const RankVitals& one : stragglers(heard, config.health.straggler))
      if (told.insert(one.rank).second)
        expected.push_back("rank " + std::to_string(one.rank) + " on .* is slow: " + name + ", steps " +
                           std::to_string(10 * look + 1) + " to " + std::to_string(10 * look + 10) +
                           ", [0-9.]+ s a step of its own work; the ranks' median is [0-9.]+ s, and "
                           "more than 1.5 times as long is told .health.straggler.");
  }
  told_of_it = told.contains(world().size() - 1);
  ASSERT_EQ(slow.warnings.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_THAT(slow.warnings[i], MatchesRegex(expected[i]));
}

TEST(StepWatch, ASlowRankIsNamedOnceWithItsFigures) {
  if (world().size() == 1) return;
  constexpr int kMostRuns = 10;
  const SharedModel small({.layers = 4});
  RunConfig config = ten_steps();
  config.stages.select.tokens *= 2;
  config.stages.align.tokens *= 2;
  config.health.straggler = 1.5;
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  for (const auto& [name, stage] : kLoops) {
    bool told = false;
    for (int run = 0; run < kMostRuns && !told && !HasFailure(); ++run)
      run_beside_a_slow_rank(name, stage, small.path(), config, mesh, told);
    EXPECT_TRUE(told) << name;
  }
}

}  // namespace
}  // namespace flashmorph
