#include "distributed/forecast/run_forecast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "distributed/coordinator/checks.h"
#include "distributed/forecast/cards.h"
#include "distributed/forecast/replay.h"

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

using Kind = Meeting::Kind;

// Kernels that take a second and a half each on one card of this kind, whose host is not in their way.
std::vector<Kernel> three_seconds(const Card& card) {
  const Kernel half{Kernel::Kind::product, at::kBFloat16, (1.5 - kBetweenKernels) * card.bfloat16_flops * kProductShare,
                    0.0};
  return {half, half};
}

// Bytes that take so long between two ranks of one host, an all_reduce among them.
double bytes_for(double seconds, const Card& card) { return (seconds - kLatency) * card.link_bytes * kLinkShare; }

TEST(Cards, AKernelTakesWhatBoundsIt) {
  const Card& card = card_named("h100");
  const auto seconds = [&](Kernel::Kind kind, at::ScalarType dtype, double flop, double bytes) {
    return seconds_of({kind, dtype, flop, bytes}, card) - kBetweenKernels;
  };
  const double product = 1e12 / (989e12 * kProductShare), moved = 1e9 / (3.35e12 * kMemoryShare);
  EXPECT_DOUBLE_EQ(seconds(Kernel::Kind::product, at::kBFloat16, 1e12, 1e9), product);
  EXPECT_DOUBLE_EQ(seconds(Kernel::Kind::product, at::kBFloat16, 1e11, 1e9), moved);
  EXPECT_NEAR(seconds(Kernel::Kind::product, at::kFloat8_e4m3fn, 1e12, 1e8), 1e12 / (1979e12 * kFloat8ProductShare),
              1e-12);
  EXPECT_NEAR(seconds(Kernel::Kind::product, at::kFloat, 1e12, 0.0), product * 989.0 / 67.0, 1e-12);
  EXPECT_NEAR(seconds(Kernel::Kind::attention, at::kBFloat16, 1e12, 1e9), 1e12 / (989e12 * kAttentionShare) + moved,
              1e-12);
  EXPECT_DOUBLE_EQ(seconds(Kernel::Kind::pointwise, at::kFloat, 0.0, 1e9), moved);
  EXPECT_GT(seconds(Kernel::Kind::gated_delta, at::kBFloat16, 0.0, 1e9), 2.0 * moved);
}

TEST(Replay, AHostThatIsSlowerThanItsCardIsWaitedFor) {
  const Card& card = card_named("h100");
  const std::vector<Kernel> small(1000, {Kernel::Kind::pointwise, at::kBFloat16, 0.0, 1.0});
  const Trace trace = {{small, {}}};
  EXPECT_NEAR(time_of({&trace}, {}, card).seconds, 1000.0 * kOperatorOnHost, 1e-4);
}

TEST(Replay, WhatIsBegunTravelsBesideTheWork) {
  const Card& card = card_named("h100");
  const MeshShape two{1, 1, 2};
  const std::vector<Kernel> work = three_seconds(card);
  const auto step = [&](Kind kind, double seconds) {
    const Trace trace = {{work, {kind, "tensor", "all_reduce", bytes_for(seconds, card), 7}},
                         {work, kind == Kind::begun ? Meeting{Kind::awaited, "tensor", "", 0.0, 7} : Meeting{}},
                         {{}, {}}};
    return time_of({&trace}, two, card).seconds;
  };
  EXPECT_NEAR(step(Kind::collective, 2.0), 3.0 + 2.0 + 3.0, 1e-3);
  EXPECT_NEAR(step(Kind::begun, 2.0), 3.0 + 3.0 + 2.0 * kTakenByMessages, 1e-3) << "hidden, but for what it takes";
  EXPECT_NEAR(step(Kind::begun, 10.0), 3.0 + 10.0, 1e-3) << "longer than the work beside it";
}

// One forward and one backward of two ranks, the second of which takes twice as long: the first one waits for it.
TEST(Replay, ARankWaitsForWhatAnotherSends) {
  const Card& card = card_named("h100");
  const std::vector<Kernel> work = three_seconds(card);
  std::vector<Kernel> twice = work;
  twice.insert(twice.end(), work.begin(), work.end());
  const double bytes = bytes_for(0.5, card);
  const Trace first = {{work, {Kind::sent, "pipeline", "send", bytes, 1}},
                       {{}, {Kind::received, "pipeline", "receive", bytes, 1}},
                       {work, {Kind::collective, "replica", "all_reduce", 8.0, 0}},
                       {{}, {}}};
  const Trace second = {{{}, {Kind::received, "pipeline", "receive", bytes, 0}},
                        {twice, {Kind::sent, "pipeline", "send", bytes, 0}},
                        {work, {Kind::collective, "replica", "all_reduce", 8.0, 0}},
                        {{}, {}}};
  const StepTime time = time_of({&first, &second}, {1, 2, 1}, card);
  EXPECT_NEAR(time.seconds, 3.0 + 0.5 + 6.0 + 0.5 + 3.0, 1e-3);
  EXPECT_NEAR(time.waits[0], 0.5 + 6.0 + 0.5, 1e-3);
  EXPECT_NEAR(time.waits[1], 3.0 + 0.5 + 0.5, 1e-3) << "before, and for the other one at the end";
  EXPECT_NEAR(time_of({&second}, {1, 2, 1}, card).seconds, 9.0, 1e-3) << "alone it waits for nobody";
}

// One and two micro-batches are rehearsed whole, of four the first two.
TEST(Replay, MicroBatchesThatWereNotRehearsedTakeAsLongAsOne) {
  RunConfig config = quickstart({"parallel.tensor=1"});
  const auto seconds = [&](int64_t micro_batches) {
    config.stages.align.batch_tokens = micro_batches * config.stages.align.micro_batch();
    const StageForecast stage = forecast_stage("align", config, teacher(), 1);
    EXPECT_EQ(stage.shape.micro_batches, micro_batches);
    EXPECT_EQ(stage.ranks[0].micro_batches, std::min<int64_t>(2, micro_batches));
    return time_of_step(stage, card_named("h100")).seconds;
  };
  const double one = seconds(1), two = seconds(2);
  EXPECT_GT(two, 1.5 * one);
  EXPECT_NEAR(seconds(4), two + 2.0 * (two - one), 1e-9);
}

TEST(Cards, HaveRoomOrNot) {
  StageForecast stage = forecast_stage("align", quickstart(), teacher(), 4);
  EXPECT_TRUE(fits(stage, card_named("h100")));
  stage.ranks[0].peak[MemoryKind::activations] = int64_t{80} * 1000 * 1000 * 1000;
  EXPECT_FALSE(fits(stage, card_named("h100")));
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
