#include "core/mixer/decay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using testing::DoubleNear;
using testing::HasSubstr;
using testing::Pointwise;

constexpr double kExact = 1e-15;

TEST(LogDecays, AlibiHalvesFromHeadToHead) {
  EXPECT_THAT(log_decays("alibi", 4, 0, 2), Pointwise(DoubleNear(kExact), {-0.25, -0.0625, -0.015625, -0.00390625}));
  const std::vector<double> sixteen = log_decays("alibi", 16, 3, 12);
  EXPECT_NEAR(sixteen.front(), -std::sqrt(0.5), kExact);
  EXPECT_NEAR(sixteen.back(), -1.0 / 256, kExact);
}

TEST(LogDecays, AlibiOfOtherHeadCountsTakesEverySecondOfTheNextPower) {
  EXPECT_THAT(log_decays("alibi", 6, 0, 1),
              Pointwise(DoubleNear(kExact), {-1.0 / 4, -1.0 / 16, -1.0 / 64, -1.0 / 256, -1.0 / 2, -1.0 / 8}));
  const std::vector<double> twelve = log_decays("alibi", 12, 0, 1);
  ASSERT_EQ(twelve.size(), 12u);
  EXPECT_NEAR(twelve[7], -1.0 / 256, kExact);
  for (int64_t h = 8; h < 12; ++h) EXPECT_NEAR(twelve[h], -std::pow(2.0, 7.5 - static_cast<double>(h)), kExact) << h;
}

TEST(LogDecays, RetnetIsTheLogOfOneMinusAPower) {
  EXPECT_THAT(log_decays("retnet", 3, 0, 1),
              Pointwise(DoubleNear(kExact), {std::log(31.0 / 32), std::log(63.0 / 64), std::log(127.0 / 128)}));
}

TEST(LogDecays, LayeredForgetsLessInLaterLayers) {
  EXPECT_THAT(log_decays("layered", 4, 0, 12), Pointwise(DoubleNear(kExact), {0.0, -2.0, -4.0, -6.0}));
  EXPECT_THAT(log_decays("layered", 4, 9, 12), Pointwise(DoubleNear(kExact), {0.0, -0.5, -1.0, -1.5}));
  EXPECT_NEAR(log_decays("layered", 16, 0, 12).back(), -7.5, kExact);
}

TEST(LogDecays, EveryRuleForgets) {
  for (const std::string& rule : decay_rules())
    for (const double decay : log_decays(rule, 5, 1, 3)) EXPECT_LE(decay, 0.0) << rule;
}

TEST(LogDecays, AnUnknownRuleIsNamed) {
  try {
    log_decays("alibbi", 4, 0, 1);
    FAIL() << "accepted";
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("mixer.decay"), HasSubstr("alibbi"), HasSubstr("retnet")));
  }
}

}  // namespace
}  // namespace flashmorph
