#include "distributed/stages/numbers.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <chrono>
#include <limits>

#include "distributed/stages/align.h"
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
      "  align: {tokens: 5120, batch_tokens: 512, " + data + "}\n  select: {tokens: 5120, batch_tokens: 512, " + data + "}\n",
      "test");
}

StageContext told_to(StageObserver& observer, Mesh& mesh, const RunConfig& config) {
  return {config, mesh, test::inputs().corpus, test::inputs().passkeys, observer, test::inputs().stop, test::inputs().watchdog};
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

void select_in(const MorphableModel& model, StageContext& context) { select_gates(model, LayerBudget::of_layers(4, 2), context); }

TEST(Numbers, AnOverflowingFeedForwardIsNamedWithItsLayerOnEveryMesh) {
  expect_failure(
      [](MorphableModel& model) {
        fill(model, "model.layers.1.mlp.up_proj.weight", 1e30f);
        fill(model, "model.layers.1.mlp.down_proj.weight", 1e30f);
      },
      select_in, AllOf(HasSubstr("select, step 1: the loss is "), HasSubstr("layer 1, the feed-forward's output, micro-batch 0"),
                       HasSubstr("Nothing was updated")));
}

TEST(Numbers, ABrokenWeightOfABranchIsNamedFirst) {
  expect_failure([](MorphableModel& model) { fill(model, "model.layers.2.linear_attn.q_proj.weight", kNan); }, align,
                 HasSubstr("align, step 1: the loss is nan; the first that is not finite: weight model.layers.2.linear_attn.q_proj.weight"));
}

TEST(Numbers, NothingIsUpdatedBefore) {
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

TEST(Numbers, WhereAllStatesAreFiniteItIsTheGradientNearestToTheLoss) {
  const SharedModel small({.layers = 4});
  const RunConfig config = ten_steps();
  const SampleStream data(test::inputs().corpus, test::inputs().passkeys, config.stages.align, 1, "align");
  for (const MeshShape& shape : every_mesh()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    StageContext here = test::context(mesh, config);
    const std::string place = std::to_string(mesh.pipeline_rank());
    const at::Tensor fine = at::ones({2}), broken = at::full({2}, kNan);
    const NamedGradients gradients = {{"early" + place, broken}, {"late" + place, broken}, {"last" + place, fine}};
    EXPECT_THAT(failure_of([&] {
                  stop_at_numbers({1.0, kNan}, "align", 4, {{model, Routes(4, Route::full())}}, gradients, data, here);
                }),
                AllOf(HasSubstr("align, step 5: the gradient is nan"),
                      HasSubstr("the gradient of late" + std::to_string(shape.pipeline - 1) + " (rank ")));
  }
}

// Flips a bit of a frozen weight in the memory of rank 0 after the second step.
struct BitFlip : StageObserver {
  at::Tensor weight;
  void stepped(const StepReport& report) override {
    if (report.step == 2 && world().rank() == 0) weight.view(at::kInt)[0][0].bitwise_xor_(1);
  }
};

TEST(FrozenWeights, AFlippedBitStopsEveryRankAndIsNamed) {
  const SharedModel small({.layers = 4});
  RunConfig config = ten_steps();
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  for (const int64_t every : {1, 4, 0}) {
    config.health.weights_every = every;
    const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
    BitFlip flip;
    for (const Parameter& parameter : model.all_parameters())
      if (parameter.name == "model.layers.3.self_attn.k_proj.weight") flip.weight = parameter.value.detach();
    StageContext here = told_to(flip, mesh, config);
    const std::string failure = failure_of([&] { select_in(model, here); });
    if (every == 0) {
      EXPECT_EQ(failure, "no failure");
    } else {
      EXPECT_THAT(failure, HasSubstr("rank 0: select, step " + std::to_string(every == 1 ? 2 : 4) +
                                     ": the frozen weight model.layers.3.self_attn.k_proj.weight in the memory of "));
    }
  }
}

// Makes rank 0 slow, and hears of it.
struct SlowRank : StageObserver {
  std::vector<std::vector<RankVitals>> heard;
  std::vector<std::string> warnings;
  void stepped(const StepReport&) override {
    const auto start = std::chrono::steady_clock::now();
    while (world().rank() == 0 && std::chrono::steady_clock::now() - start < std::chrono::milliseconds(200)) {
    }
  }
  void ranks(const std::vector<RankVitals>& vitals) override { heard.push_back(vitals); }
  void warn(const std::string& warning) override { warnings.push_back(warning); }
};

TEST(StepWatch, ASlowRankIsNamedOnceWithItsFigures) {
  if (world().size() == 1) return;
  const SharedModel small({.layers = 4});
  RunConfig config = ten_steps();
  config.stages.select.tokens *= 2;
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const MorphableModel model = load(small.path(), mesh, config, at::kFloat);
  SlowRank slow;
  StageContext here = told_to(slow, mesh, config);
  select_in(model, here);
  ASSERT_EQ(slow.heard.size(), 2u) << "after 10 and 20 steps";
  ASSERT_EQ(static_cast<int>(slow.heard[0].size()), world().size());
  EXPECT_EQ(std::ranges::max(slow.heard[0], {}, &RankVitals::own_seconds).rank, 0);
  ASSERT_EQ(slow.warnings.size(), 1u);
  EXPECT_THAT(slow.warnings[0], MatchesRegex("rank 0 on .* is slow: select, steps 1 to 10, [0-9.]+ s a step of its own work; the "
                                             "ranks' median is [0-9.]+ s, and more than 3 times as long is told .health.straggler."));
}

}  // namespace
}  // namespace flashmorph
