#include "distributed/coordinator/plans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/select/by_gates.h"
#include "distributed/run/results.h"
#include "distributed/stages/gate_history.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

RunConfig settings(const std::string& objective = "paper") {
  return RunConfig::from_yaml(
      "model: {path: teacher}\nbudget: {full_layers: 2}\ndata: {text: book.txt}\n"
      "stages: {align: {tokens: 1M}, select: {tokens: 1M, polish: 0, objective: " +
          objective + "}, evaluate: {compare: [all_linear, uniform]}}",
      "run.yaml");
}

// Gates that jump by +-jitter around their values in every step.
proto::GateSnapshot gates(const std::vector<double>& values, int steps, double jitter) {
  proto::GateSnapshot snapshot;
  for (int step = 0; step < steps; ++step) {
    proto::GateStep& moved = *snapshot.add_history();
    for (const double value : values) moved.add_alpha(value + (step % 2 == 0 ? jitter : -jitter));
  }
  snapshot.mutable_alpha()->Add(values.begin(), values.end());
  return snapshot;
}

TEST(Discretize, RecordsPickMarginNoiseAndBudget) {
  const proto::PlanSet set =
      discretize(settings(), LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02));
  ASSERT_EQ(set.plans_size(), 3);
  EXPECT_EQ(set.budget(), "2 layers");
  EXPECT_THAT(set.plans(0).full_layers(), testing::ElementsAre(1, 3));
  EXPECT_NEAR(set.plans(0).margin(), 0.1, 1e-9);
  EXPECT_NEAR(set.plans(0).noise(), 0.02 * std::sqrt(4.0 / 3.0), 1e-12);  // of 4 values, 0.02 off their mean
  EXPECT_THAT(set.plans(1).full_layers(), testing::IsEmpty());
  EXPECT_THAT(set.plans(2).full_layers(), testing::ElementsAre(1, 3));
  EXPECT_EQ(set.plans(2).scores_size(), 0);
}

TEST(Discretize, AsksACloserJudgeOnlyForMoreSamples) {
  const auto judged_on = [](int64_t finalist_samples, const std::string& method) {
    RunConfig config = settings("budget");
    config.stages.select.method = method;
    config.stages.select.own.of<GateSettings>().polish = 1;
    config.stages.select.own.of<GateSettings>().finalist_samples = finalist_samples;
    const auto world = single_communicator();
    const test::TemporaryFolder folder;
    std::map<int64_t, int64_t> sets;  // by samples
    JudgedSets judged(folder.path() / "judgements.json", *world,
                      [&](const std::vector<int64_t>& full_layers, int64_t samples, bool) {
                        ++sets[samples];
                        proto::JudgedSet judged;
                        judged.set_recall(0.1 * static_cast<double>(full_layers.size()));
                        return judged;
                      });
    discretize(config, LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02), &judged);
    return sets;
  };
  const std::map<int64_t, int64_t> finalists = judged_on(128, "flashmorph"), none = judged_on(32, "flashmorph");
  EXPECT_THAT(finalists, testing::UnorderedElementsAre(testing::Pair(32, testing::_), testing::Pair(128, testing::_)));
  EXPECT_THAT(none, testing::ElementsAre(testing::Pair(32, testing::_)));
  EXPECT_THAT(judged_on(128, "greedy"), testing::ElementsAre(testing::Pair(32, testing::_)));
}

TEST(ModelCard, SaysWhatItIsWhatItRecallsAndWhatItCost) {
  const RunConfig config = settings();
  const proto::PlanSet set = discretize(config, LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02));
  proto::Evaluation evaluation;
  proto::Measurement& measured = *evaluation.add_measurements();
  measured.set_name("flashmorph");
  measured.set_after("align");
  measured.set_perplexity(12.34);
  measured.set_kv_bytes_per_token(512);
  proto::RecallAtLength& recall = *measured.add_recall();
  recall.set_length(1024);
  recall.mutable_teacher_forced()->set_words(8);
  recall.mutable_teacher_forced()->set_right_words(6);
  proto::TaskScore& task = *measured.add_tasks();
  task.set_task("values");
  task.set_length(512);
  task.set_score(0.625);
  StageResults finished;
  for (const auto& [stage, tokens, seconds] :
       {std::tuple{"align", 1000000, 1800.0}, std::tuple{"evaluate teacher", 0, 36.0}}) {
    proto::StageResult& result = *finished.Add();
    result.set_stage(stage);
    result.set_tokens(tokens);
    result.set_seconds(seconds);
    result.set_ranks(4);
  }
  const std::string card = model_card(config, set, evaluation, finished);
  for (const char* part :
       {"# run\n\nA hybrid-attention model made by flashmorph-dist from `teacher`: full attention in layers 1 3 of 4 "
        "(chosen by flashmorph for a budget of 2 layers), lightning attention in the others.\n",
        "| flashmorph | align | 1 3 | 75.0 % | 75.0 % | - | 12.3 | 512 |\n",
        "| model | after | task | tokens | score |\n|---|---|---|---|---|\n| flashmorph | align | values | 512 | 62.5 "
        "|\n",
        "| stage | tokens | seconds | ranks | rank-hours |\n|---|---|---|---|---|\n| align | 1000000 | 1800.0 | 4 | "
        "2.0000 |\n"
        "| evaluate teacher | 0 | 36.0 | 4 | 0.0400 |\n| in all |  |  |  | 2.0400 |\n",
        "```yaml\nrun:\n", "stages:\n  align:\n    tokens: 1000000\n"})
    EXPECT_THAT(card, testing::HasSubstr(part));
}

double noise(const proto::GateSnapshot& gates, const std::string& objective = "paper") {
  return GateHistory(gates, settings(objective).stages.select, LayerBudget::of_layers(gates.alpha_size(), 1)).noise();
}

TEST(GateNoise, IsThatOfTheLastTenthOfTheSteps) {
  proto::GateSnapshot moved = gates({0.5}, 100, 0.3);
  for (int step = 90; step < 100; ++step) moved.mutable_history(step)->set_alpha(0, 0.5);
  EXPECT_NEAR(noise(moved), 0.0, 1e-15);
  moved.mutable_history(95)->set_alpha(0, 0.6);
  EXPECT_NEAR(noise(moved), 0.1 / std::sqrt(10.0), 1e-12);
  EXPECT_EQ(noise(gates({0.5}, 1, 0.3)), 0.0);
  EXPECT_GT(noise(gates({0.5}, 2, 0.3)), 0.3);
}

// Layer l's gate falls evenly from 1 to 0 in the l-th tenth of the steps, the last one's not at all. Layer 2 is noisy.
proto::GateSnapshot falling(double jitter = 0.0) {
  proto::GateSnapshot snapshot;
  for (int step = 0; step <= 40; ++step) {
    proto::GateStep& moved = *snapshot.add_history();
    for (int layer = 0; layer < 5; ++layer)
      moved.add_alpha(layer == 4 ? 1.0 : std::clamp(static_cast<double>(10 * (layer + 1) - step) / 10.0, 0.0, 1.0));
    moved.set_alpha(2, moved.alpha(2) + (step % 2 == 0 ? jitter : -jitter));
    moved.set_loss(step);
  }
  *snapshot.mutable_alpha() = snapshot.history().rbegin()->alpha();
  return snapshot;
}

TEST(GateNoise, OfFallingGatesIsWhatATrendLeavesWhereTheyMeetTheBudget) {
  EXPECT_NEAR(noise(falling(), "budget"), 0.0, 1e-15);
  EXPECT_NEAR(noise(falling(0.03), "budget"), 4.0 * 0.03 / std::sqrt(6.0), 1e-12);
}

TEST(Frontier, HasAPickForEveryNumberOfLayersFromTheGatesThatJustMetIt) {
  const auto points =
      GateHistory(falling(), settings("budget").stages.select, LayerBudget::of_layers(5, 2)).frontier(100);
  ASSERT_EQ(points.size(), 4U);
  EXPECT_THAT(points[0].full_layers(), testing::ElementsAre(4));
  EXPECT_THAT(points[2].full_layers(), testing::ElementsAre(2, 3, 4));
  EXPECT_EQ(points[0].error(), 40.0);
  EXPECT_EQ(points[2].error(), 20.0) << "at step 20 two gates are at 0";
  EXPECT_EQ(points[2].kv_bytes_per_token(), 300);
  EXPECT_NEAR(points[2].margin(), 1.0, 1e-9);
  EXPECT_TRUE(
      GateHistory(falling(), settings("paper").stages.select, LayerBudget::of_layers(5, 2)).frontier(100).empty());
}

TEST(Frontier, TakesABudgetInAnotherUnitThanTheRuns) {
  const LayerBudget bytes{{10, 10, 10, 20, 60}, 65, "bytes a token", "budget.kv_bytes_per_token"};
  const proto::FrontierPoint point = GateHistory(falling(), settings("budget").stages.select, bytes).pick(100);
  EXPECT_EQ(point.error(), 37.0) << "60 + 20 * 0.3 is the last that costs 65";
  EXPECT_THAT(point.full_layers(), testing::ElementsAre(4)) << "3 and 4 would cost 80";
}

TEST(Settled, IsAPickThatStaysTheSameWithAMarginAboveTheNoise) {
  SelectSection section = settings("budget").stages.select;
  const LayerBudget two = LayerBudget::of_layers(5, 2);
  const auto settled = [&](int64_t window, int steps, double jitter) {
    section.own.of<GateSettings>().stop = window;
    proto::GateSnapshot gates = falling(jitter);
    gates.mutable_history()->DeleteSubrange(steps, gates.history_size() - steps);
    for (proto::GateStep& step : *gates.mutable_history())
      for (double& alpha : *step.mutable_alpha()) alpha = std::max(alpha, 0.0);
    return GateHistory(gates, section, two).has_settled();
  };
  EXPECT_FALSE(settled(0, 30, 0.0)) << "not asked for";
  EXPECT_FALSE(settled(5, 22, 0.0)) << "layer 3 has been one of the two for two steps";
  EXPECT_TRUE(settled(5, 27, 0.0));
  EXPECT_TRUE(settled(5, 29, 0.1)) << "noise of 0.16, margin of 0.7";
  EXPECT_FALSE(settled(5, 29, 0.39)) << "noise of 0.64, margin of 0.41";
}

TEST(Frontier, EndsWhereSelectWasStopped) {
  proto::GateSnapshot gates = falling();
  gates.mutable_history()->DeleteSubrange(21, gates.history_size() - 21);
  const auto points = GateHistory(gates, settings("budget").stages.select, LayerBudget::of_layers(5, 2)).frontier(100);
  ASSERT_EQ(points.size(), 2U);
  EXPECT_EQ(points[0].budget(), 3.0);
}

TEST(PlanHash, IsOfThePlansAlone) {
  proto::PlanSet set = discretize(settings(), LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02));
  const std::string hash = hash_of(set);
  set.mutable_provenance()->set_seconds(3.0);
  EXPECT_EQ(hash_of(set), hash);
  set.mutable_plans(0)->set_full_layers(0, 0);
  EXPECT_NE(hash_of(set), hash);
}

TEST(JudgedText, NamesEveryContenderAndWhatCameOfThem) {
  proto::HybridPlan plan;
  plan.set_name("flashmorph");
  for (const int64_t layer : {3, 8}) plan.add_full_layers(layer);
  for (const auto& [method, layers, recall] :
       {std::tuple{"flashmorph", std::vector{3, 6}, 0.5}, {"uniform", std::vector{2, 9}, 0.125}}) {
    proto::Contender& one = *plan.add_contenders();
    one.set_method(method);
    one.mutable_full_layers()->Add(layers.begin(), layers.end());
    one.set_recall(recall);
  }
  plan.add_exchanges();
  plan.mutable_judging()->set_sets(7);
  EXPECT_EQ(judged_text(plan),
            "flashmorph: flashmorph 3 6, recall 50.0 %; uniform 2 9, recall 12.5 %; kept 3 8 after 1 exchanges, 7 sets "
            "judged");
}

}  // namespace
}  // namespace flashmorph
