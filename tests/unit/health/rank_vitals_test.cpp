#include "distributed/health/rank_vitals.h"

#include <gtest/gtest.h>

namespace flashmorph {
namespace {

// A second a step, of which the rank itself works so long.
std::vector<RankVitals> working(const std::vector<double>& own) {
  std::vector<RankVitals> ranks;
  for (const double seconds : own) ranks.push_back({static_cast<int64_t>(ranks.size()), "host", 1.0, 1.0 - seconds, 0});
  return ranks;
}

std::vector<int64_t> slow_ones(const std::vector<double>& own, double factor = 3.0) {
  std::vector<int64_t> ranks;
  for (const RankVitals& slow : stragglers(working(own), factor)) ranks.push_back(slow.rank);
  return ranks;
}

TEST(Stragglers, AreThoseBeyondTheFactorOfTheMedian) {
  EXPECT_EQ(slow_ones({0.1, 0.1, 0.31, 0.1}), std::vector<int64_t>{2});
  EXPECT_EQ(slow_ones({0.1, 0.1, 0.29, 0.1}), std::vector<int64_t>{});
  EXPECT_EQ(slow_ones({0.1, 0.1, 0.29, 0.1}, 2.0), std::vector<int64_t>{2});
  EXPECT_EQ(slow_ones({0.9, 0.1, 0.1, 0.8, 0.2}), (std::vector<int64_t>{0, 3}));
}

TEST(Stragglers, OfTwoTheFasterOneIsTheMeasure) { EXPECT_EQ(slow_ones({0.1, 0.5}), std::vector<int64_t>{1}); }

TEST(Stragglers, OneRankIsNone) { EXPECT_EQ(slow_ones({0.9}), std::vector<int64_t>{}); }

TEST(Stragglers, MillisecondsAreNoise) { EXPECT_EQ(slow_ones({0.001, 0.001, 0.009}), std::vector<int64_t>{}); }

TEST(Stragglers, WaitingForOthersIsNotOwnWork) {
  EXPECT_TRUE(stragglers({{0, "a", 9.0, 8.9, 0}, {1, "b", 9.0, 8.9, 0}, {2, "c", 9.0, 8.9, 0}}, 3.0).empty());
}

}  // namespace
}  // namespace flashmorph
