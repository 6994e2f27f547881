#include "distributed/coordinator/plans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace flashmorph {
namespace {

RunConfig config() {
  return RunConfig::from_yaml(
      "model: {path: teacher}\nbudget: {full_layers: 2}\ndata: {text: book.txt}\n"
      "stages: {align: {tokens: 1M}, select: {tokens: 1M}, evaluate: {compare: [all_linear, uniform]}}",
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
  const proto::PlanSet set = discretize(config(), LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02));
  ASSERT_EQ(set.plans_size(), 3);
  EXPECT_EQ(set.budget(), "2 layers");
  EXPECT_THAT(set.plans(0).full_layers(), testing::ElementsAre(1, 3));
  EXPECT_NEAR(set.plans(0).margin(), 0.1, 1e-9);
  EXPECT_NEAR(set.plans(0).noise(), 0.02 * std::sqrt(4.0 / 3.0), 1e-12);  // of 4 values, 0.02 off their mean
  EXPECT_THAT(set.plans(1).full_layers(), testing::IsEmpty());
  EXPECT_THAT(set.plans(2).full_layers(), testing::ElementsAre(1, 3));
  EXPECT_EQ(set.plans(2).scores_size(), 0);
}

TEST(GateNoise, IsThatOfTheLastTenthOfTheSteps) {
  proto::GateSnapshot moved = gates({0.5}, 100, 0.3);
  for (int step = 90; step < 100; ++step) moved.mutable_history(step)->set_alpha(0, 0.5);
  EXPECT_NEAR(gate_noise(moved), 0.0, 1e-15);
  moved.mutable_history(95)->set_alpha(0, 0.6);
  EXPECT_NEAR(gate_noise(moved), 0.1 / std::sqrt(10.0), 1e-12);
  EXPECT_EQ(gate_noise(gates({0.5}, 1, 0.3)), 0.0);
  EXPECT_GT(gate_noise(gates({0.5}, 2, 0.3)), 0.3);
}

TEST(PlanHash, IsOfThePlansAlone) {
  proto::PlanSet set = discretize(config(), LayerBudget::of_layers(4, 2), gates({0.1, 0.9, 0.4, 0.5}, 40, 0.02));
  const std::string hash = hash_of(set);
  set.mutable_provenance()->set_seconds(3.0);
  EXPECT_EQ(hash_of(set), hash);
  set.mutable_plans(0)->set_full_layers(0, 0);
  EXPECT_NE(hash_of(set), hash);
}

}  // namespace
}  // namespace flashmorph
