#include "core/select/rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(TopLayers, AreTheLargestInLayerOrder) {
  EXPECT_THAT(top_layers({0.1, 0.9, 0.3, 0.8, 0.2}, 3), ElementsAre(1, 2, 3));
  EXPECT_THAT(top_layers({-3.0, -1.0, -2.0}, 1), ElementsAre(1));
  EXPECT_THAT(top_layers({0.5, 0.4}, 0), IsEmpty());
  EXPECT_THAT(top_layers({0.5, 0.4}, 2), ElementsAre(0, 1));
}

TEST(TopLayers, AmongEqualScoresTheLowerLayerIsKept) {
  EXPECT_THAT(top_layers(std::vector<double>(6, 1.0), 2), ElementsAre(0, 1));
  EXPECT_THAT(top_layers({0.0, 1.0, 0.5, 0.5, 0.5, 1.0}, 4), ElementsAre(1, 2, 3, 5));
  EXPECT_THAT(top_layers(std::vector<double>(40, 0.0), 39), testing::Not(testing::Contains(39)));
}

TEST(TopLayers, MisuseThrows) {
  EXPECT_ANY_THROW(top_layers({0.5, 0.4}, 3));
  EXPECT_ANY_THROW(top_layers({0.5, 0.4}, -1));
  EXPECT_ANY_THROW(top_layers({0.5, std::nan("")}, 1));
  EXPECT_ANY_THROW(uniform_layers(2, 3));
}

TEST(UniformLayers, AreTheMiddlesOfEqualStretches) {
  EXPECT_THAT(uniform_layers(12, 3), ElementsAre(2, 6, 10));
  EXPECT_THAT(uniform_layers(9, 3), ElementsAre(1, 4, 7));
  EXPECT_THAT(uniform_layers(28, 4), ElementsAre(3, 10, 17, 24));
  EXPECT_THAT(uniform_layers(5, 1), ElementsAre(2));
  EXPECT_THAT(uniform_layers(4, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(uniform_layers(12, 0), IsEmpty());
}

TEST(UniformLayers, AreSpreadAndInside) {
  for (int64_t layers = 1; layers <= 40; ++layers)
    for (int64_t keep = 1; keep <= layers; ++keep) {
      const std::vector<int64_t> kept = uniform_layers(layers, keep);
      ASSERT_EQ(static_cast<int64_t>(kept.size()), keep);
      EXPECT_GE(kept.front(), 0);
      EXPECT_LT(kept.back(), layers);
      for (size_t i = 1; i < kept.size(); ++i) {
        EXPECT_GE(kept[i] - kept[i - 1], layers / keep) << layers << " " << keep;
        EXPECT_LE(kept[i] - kept[i - 1], (layers + keep - 1) / keep) << layers << " " << keep;
      }
    }
}

TEST(KeepMargin, IsFromTheLastKeptToTheFirstDropped) {
  EXPECT_DOUBLE_EQ(keep_margin({0.125, 1.0, 0.5, 0.75}, 2), 0.25);
  EXPECT_DOUBLE_EQ(keep_margin({0.125, 1.0, 0.5, 0.75}, 3), 0.375);
  EXPECT_EQ(keep_margin({0.5, 0.5, 0.5}, 1), 0.0);
  EXPECT_EQ(keep_margin({0.1, 0.9}, 0), 0.0);
  EXPECT_EQ(keep_margin({0.1, 0.9}, 2), 0.0);
}

}  // namespace
}  // namespace flashmorph
