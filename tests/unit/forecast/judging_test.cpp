#include "distributed/forecast/judging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flashmorph {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::Pair;

std::optional<JudgingForecast> quickstart_judging(int64_t ranks, const std::vector<std::string>& set) {
  const RunConfig config = RunConfig::from_file("configs/quickstart.yaml", set);
  return forecast_judging(config, ModelSpec::open(config.model.path), ranks);
}

TEST(JudgingForecast, CountsTheSetsOfPolishUntilNoExchangeIsBetter) {
  constexpr int64_t kLayers = 12, kKept = 3, kWidth = 6, kContenders = 3, kFinalists = 4;
  constexpr int64_t kOnce = kContenders + kLayers + 1 + (kLayers - kKept) + kWidth * kKept;  // polish.h
  EXPECT_EQ(quickstart_judging(4, {})->sets, kOnce + kFinalists);
  EXPECT_EQ(quickstart_judging(4, {"stages.select.finalist_samples=1"})->sets, kOnce);
}

TEST(JudgingForecast, IsNoneWhereNobodyIsAsked) {
  EXPECT_FALSE(quickstart_judging(4, {"stages.select.polish=0", "stages.evaluate.compare=[uniform]"}));
}

// kl_ls asks for {11}, {10}, ..., {0}, behind the teacher: the first and the last differ from the one before in layer
// 0, {l} from {l + 1} in layer l. States that there is room for everywhere are kept behind every layer.
TEST(JudgingForecast, LeavesOutTheLayersInFrontOfThoseThatDiffer) {
  const double layers_run = 12.0 + (2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12);
  const auto judging = quickstart_judging(
      2, {"stages.select.method=kl_ls", "stages.evaluate.compare=[]", "parallel.tensor=1",
          "stages.evaluate.lengths=[512, 1024]", "stages.select.judge_samples=12"});  // 3 forwards, 2 of them of 512
  ASSERT_TRUE(judging);
  EXPECT_EQ(judging->sets, 12);
  EXPECT_EQ(judging->finalists, 0) << "nobody asks for them";
  const double whole = 1.0 + layers_run / 12.0;
  EXPECT_THAT(judging->forwards,
              ElementsAre(Pair(512, DoubleNear(2 * whole / 2, 1e-9)), Pair(1024, DoubleNear(whole / 2, 1e-9))));
}

TEST(JudgingForecast, TakesAsLongAsItsForwards) {
  const std::vector<std::string> set = {"stages.select.method=kl_ls", "stages.evaluate.compare=[]",
                                        "parallel.tensor=1"};
  const RunConfig config = RunConfig::from_file("configs/quickstart.yaml", set);
  const ModelSpec spec = ModelSpec::open(config.model.path);
  JudgingForecast judging = *forecast_judging(config, spec, 1);
  const double once = seconds_of(judging, config, spec, 1, card_named("h100"));
  for (auto& [length, forwards] : judging.forwards) forwards *= 3.0;
  EXPECT_GT(once, 0.0);
  EXPECT_NEAR(seconds_of(judging, config, spec, 1, card_named("h100")), 3.0 * once, 1e-9 * once);
}

}  // namespace
}  // namespace flashmorph
