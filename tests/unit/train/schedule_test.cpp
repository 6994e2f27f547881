#include "core/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace flashmorph {
namespace {

TEST(CosineSchedule, StartsAtFromEndsAtToAndCrossesTheMeanInTheMiddle) {
  const CosineSchedule rate{.from = 1e-3, .to = 1e-5, .steps = 101};
  EXPECT_DOUBLE_EQ(rate.at(0), 1e-3);
  EXPECT_NEAR(rate.at(50), (1e-3 + 1e-5) / 2, 1e-15);
  EXPECT_NEAR(rate.at(25), 1e-5 + (1e-3 - 1e-5) * (2 + std::sqrt(2.0)) / 4, 1e-15);
  EXPECT_DOUBLE_EQ(rate.at(100), 1e-5);
  EXPECT_DOUBLE_EQ(rate.at(1000), 1e-5);
}

TEST(CosineSchedule, WarmsUpInEqualStepsFromAboveZero) {
  const CosineSchedule rate{.from = 0.8, .to = 0.1, .steps = 15, .warmup_steps = 4};
  EXPECT_DOUBLE_EQ(rate.at(0), 0.2);
  EXPECT_DOUBLE_EQ(rate.at(1), 0.4);
  EXPECT_DOUBLE_EQ(rate.at(3), 0.8);
  EXPECT_DOUBLE_EQ(rate.at(4), 0.8);
  EXPECT_NEAR(rate.at(9), 0.45, 1e-15);
  EXPECT_DOUBLE_EQ(rate.at(14), 0.1);
}

TEST(CosineSchedule, FallsAtEveryStepAfterTheWarmUp) {
  const CosineSchedule rate{.from = 1.0, .to = 0.0, .steps = 40, .warmup_steps = 7};
  for (int64_t step = 8; step < 40; ++step) EXPECT_LT(rate.at(step), rate.at(step - 1)) << step;
}

TEST(CosineSchedule, OneStepRunsAtFrom) { EXPECT_DOUBLE_EQ((CosineSchedule{0.5, 0.1, 1}.at(0)), 0.5); }

}  // namespace
}  // namespace flashmorph
