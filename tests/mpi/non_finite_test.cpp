#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <functional>
#include <limits>

#include "core/base/clock.h"
#include "core/ops/quantised.h"
#include "distributed/stages/align.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "distributed/stages/step_watch.h"
#include "distributed/stages/training.h"
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

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RunConfig ten_steps() { return test::run_of_steps(10, 10, 1); }

StageContext told_to(StageObserver& observer, Mesh& mesh, const RunConfig& config) {
  test::StageInputs& in = test::inputs();
  return {{config, in.corpus, in.passkeys, observer, in.stop, in.watchdog}, mesh};
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
  const Routes routes(4, Route::full());
  for (const MeshShape& shape : every_mesh()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    const at::Tensor fine = at::ones({2}), broken = at::full({2}, kNan);
    const auto forward = [&](const MicroBatches& batches) {
      Pipeline(mesh).stream(batches.mine, state_shape(model, batches.shape),
                            [&](int64_t index, at::Tensor x, const PassOn& pass_on) {
                              const Batch batch = batches.batch(index);
                              if (model.has_embedding()) x = model.embed(batch.tokens_BT);
                              pass_on(model.through_layers(x, routes, model.positions(0, batch.tokens_BT.size(1))));
                            });
      return StepResult{1.0, {broken, broken, fine}, kNan};
    };
    const std::string place = std::to_string(mesh.pipeline_rank());
    Trained trained;
    trained.parameters = {{"early" + place, fine}, {"late" + place, fine}, {"last" + place, fine}};
    StageContext here = test::context(mesh, config);
    Training training("align", "a step", config.stages.align, {{model}}, trained, here);
    for (int step = 0; step < 4 && training.next(); ++step) training.finish(1.0);
    ASSERT_TRUE(training.next());
    EXPECT_THAT(failure_of([&] { training.run(forward); }),
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

// What is multiplied by in a weight's place.
struct FormFlip : BitFlip {
  void stepped(const StepReport& report) override {
    if (report.step == 2 && is_last_rank())
      QuantisedMatrices::of(weight)->tensors().back().view(at::kInt)[0][0].bitwise_xor_(1);
  }
};

TEST(FrozenWeights, SoDoesOneOfAFormInFloat8) {
  const SharedModel small({.layers = 4});
  RunConfig config = ten_steps();
  config.health.weights_every = 1;
  config.device.frozen_dtype = "fp8";
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  for (const auto& [name, stage] : kLoops) {
    MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    FormFlip flip;
    for (const Parameter& parameter : model.all_parameters())
      if (parameter.name == "model.layers.3.self_attn.o_proj.weight") flip.weight = parameter.value;
    StageContext here = told_to(flip, mesh, config);
    EXPECT_THAT(
        failure_of([&] { stage(model, here); }),
        HasSubstr(name + std::string(", step 2: the frozen weight model.layers.3.self_attn.o_proj.weight (fp8)")));
  }
}

TEST(FrozenWeights, AreNotSummedWhenNobodyChecksThem) {
  const Parameters without_values = {{"weight", at::zeros({2}, at::kMeta)}};  // which cannot be summed
  EXPECT_ANY_THROW(FrozenWeights(without_values, /*every=*/1));
  EXPECT_NO_THROW(FrozenWeights(without_values, /*every=*/0));
}

struct Listener : StageObserver {
  std::vector<std::vector<RankVitals>> heard;
  std::vector<std::string> warnings;
  void ranks(const std::vector<RankVitals>& vitals) override { heard.push_back(vitals); }
  void warn(const std::string& warning) override { warnings.push_back(warning); }
};

// A step's mean is one over the steps since the last look: no less than passed from then to the last step's end.
struct TimedListener : Listener {
  Stopwatch since_heard;
  double until_stepped = 0.0;  // seconds
  void stepped(const StepReport&) override { until_stepped = since_heard.seconds(); }
  void ranks(const std::vector<RankVitals>& vitals) override {
    Listener::ranks(vitals);
    if (heard.size() > 1) {
      EXPECT_GE(10.0 * vitals.at(world().rank()).step_seconds, until_stepped);
    }
    since_heard = Stopwatch();
  }
};

TEST(StepWatch, LooksAtEveryRankEveryTenSteps) {
  const SharedModel small({.layers = 4});
  RunConfig config = test::run_of_steps(20, 20, 1);
  config.health.straggler = 1e9;
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  for (const auto& [name, stage] : kLoops) {
    MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    TimedListener listener;
    StageContext here = told_to(listener, mesh, config);
    stage(model, here);
    ASSERT_EQ(listener.heard.size(), 2u) << name << ", after 10 and 20 steps";
    for (const std::vector<RankVitals>& heard : listener.heard)
      ASSERT_EQ(static_cast<int>(heard.size()), world().size());
    EXPECT_TRUE(listener.warnings.empty());
  }
}

TEST(StepWatch, ASlowRankIsNamedOnceWithItsFigures) {
  RunConfig config = ten_steps();
  config.health.straggler = 1.5;
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  Listener listener;
  StageContext here = told_to(listener, mesh, config);
  StepWatch watch("select", 0, 30, here);
  const auto figures = [](double of_second, double of_third) {  // seconds a step, of which the rank waits for 1
    return std::vector<RankVitals>{
        {0, "a", 1.25, 1.0, 0}, {1, "b", of_second, 1.0, 0}, {2, "c", of_third, 1.0, 0}, {3, "d", 1.25, 1.0, 0}};
  };
  watch.tell(figures(1.25, 1.375), 10);  // 1.5 times the median's own work
  EXPECT_TRUE(listener.warnings.empty());
  watch.tell(figures(1.25, 1.5), 20);
  watch.tell(figures(2.0, 1.5), 30);  // the third is still slow
  const std::string end = " s a step of its own work; the ranks' median is ";
  EXPECT_EQ(listener.warnings,
            (std::vector<std::string>{"rank 2 on c is slow: select, steps 11 to 20, 0.500" + end +
                                          "0.250 s, and more than 1.5 times as long is told (health.straggler)",
                                      "rank 1 on b is slow: select, steps 21 to 30, 1.000" + end +
                                          "0.250 s, and more than 1.5 times as long is told (health.straggler)"}));
}

}  // namespace
}  // namespace flashmorph
