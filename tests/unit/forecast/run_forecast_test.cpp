#include "distributed/forecast/run_forecast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "distributed/coordinator/checks.h"
#include "distributed/forecast/cards.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const ModelSpec& teacher() {
  static const ModelSpec spec = ModelSpec::open("tests/data/passkey-teacher");
  return spec;
}

RunConfig quickstart(const std::vector<std::string>& set = {}) {
  return RunConfig::from_file("configs/quickstart.yaml", set);
}

TEST(RunForecast, GoesThroughTheStagesOfTheRun) {
  std::vector<std::string> stages;
  for (const StageForecast& stage : forecast_run(quickstart(), teacher(), 4)) stages.push_back(stage.stage);
  EXPECT_THAT(stages, ElementsAre("align", "select", "distill", "evaluate"));
  stages.clear();
  for (const StageForecast& stage :
       forecast_run(quickstart({"stages.select.method=uniform", "stages.distill.tokens=0"}), teacher(), 4))
    stages.push_back(stage.stage);
  EXPECT_THAT(stages, ElementsAre("align", "evaluate"));
}

TEST(RunForecast, AStepIsCutAsTheRunCutsIt) {
  const StageForecast align = forecast_stage("align", quickstart(), teacher(), 4);
  EXPECT_EQ(align.layout.shape, (MeshShape{2, 1, 2}));
  EXPECT_EQ(align.shape.sequences, 2);
  EXPECT_EQ(align.shape.length, 1024);
  EXPECT_EQ(align.shape.micro_batches, 1);
  EXPECT_EQ(align.steps, 147);
}

TEST(RunForecast, AnotherMeshIsOfferedWhereOneDoesNotFit) {
  const RunConfig config = quickstart({"parallel.tensor=8", "stages.distill.parallel.pipeline=3"});
  EXPECT_THROW(check_settings(config, teacher(), 8), BadInput);
  const std::vector<MeshChoice> meshes = meshes_that_would_do(config, teacher(), 8);
  ASSERT_FALSE(meshes.empty());
  for (const MeshChoice& mesh : meshes) {
    EXPECT_NO_THROW(check_settings(on_mesh(config, mesh), teacher(), 8));
    EXPECT_LE(mesh.tensor, 4) << "the model has 4 heads";
  }
  EXPECT_TRUE(meshes_that_would_do(config, teacher(), 1031).empty())
      << "a prime number of ranks and four micro-batches";
}

// By hand, a token of T of a plain transformer: 2 for each multiply-add of a weight, forward, and twice that back; of
// attention's scores and their use half the pairs, and back five such products instead of two; the last one has no
// logits.
TEST(RunForecast, FlopOfAStageAreThoseCountedByHand) {
  const RunConfig config = quickstart({"stages.finetune.parallel.recompute=full"});
  const ModelSpec& m = teacher();
  const auto T = static_cast<double>(config.stages.finetune.longest()), D = static_cast<double>(m.hidden),
             Q = static_cast<double>(m.heads * m.head_dim), G = static_cast<double>(m.kv_heads * m.head_dim),
             F = static_cast<double>(m.intermediate), V = static_cast<double>(m.vocabulary);
  const double layer = 3.0 * 2.0 * (D * (2.0 * Q + 2.0 * G) + 3.0 * D * F) + (2.0 + 5.0) * T * Q;
  const double token = static_cast<double>(m.layers) * layer + 3.0 * 2.0 * D * V * (T - 1.0) / T;
  std::vector<int64_t> all;
  for (int64_t l = 0; l < m.layers; ++l) all.push_back(l);
  EXPECT_DOUBLE_EQ(flop_of(16384, "finetune", config, m, all), 16384.0 * token);
}

TEST(Cards, TheTimeIsFlopAndMessages) {
  StageForecast stage = forecast_stage("align", quickstart(), teacher(), 4);
  const Card& card = card_named("h100");
  stage.ranks[0].traffic.clear();
  stage.ranks[0].flop = 1e15;
  EXPECT_NEAR(seconds_of_step(stage, card, at::kBFloat16), 1e15 / (989e12 * kReachedShare), 1e-9);
  stage.ranks[0].traffic[{"tensor", "all_reduce"}] = {10.0, 4.5e9};  // two ranks: each byte once over the link
  EXPECT_NEAR(seconds_of_step(stage, card, at::kBFloat16), 1e15 / (989e12 * kReachedShare) + 0.01 + 10 * kLatency,
              1e-9);
  EXPECT_TRUE(fits(stage, card));
  stage.ranks[0].peak[MemoryKind::activations] = int64_t{80} * 1000 * 1000 * 1000;
  EXPECT_FALSE(fits(stage, card));
  EXPECT_TRUE(fits(stage, card_named("h200")));
}

TEST(Cards, AnUnknownOneIsRefusedWithTheKnown) {
  try {
    card_named("abacus");
    FAIL();
  } catch (const BadInput& fault) {
    EXPECT_THAT(fault.what(), HasSubstr("'abacus', expected one of: a100, h100, h200, b200"));
  }
}

}  // namespace
}  // namespace flashmorph
