#include "distributed/health/rank_vitals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "distributed/health/sniff.h"

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

using testing::ElementsAre;
using testing::HasSubstr;

constexpr double kGiga = 1e9;
const std::vector<std::string> kTwoHosts = {"a", "a", "a", "b", "b", "b"};

// Six ranks on two hosts that all give the same; the links inside a host are faster than the one between hosts.
std::vector<Rates> alike() {
  std::vector<Rates> ranks(6, {100 * kGiga, 10 * kGiga, 5 * kGiga});
  ranks[2].link = kGiga;
  ranks[5].link = 0.0;
  return ranks;
}

TEST(OddRates, AreNoneAmongRanksAlike) { EXPECT_THAT(odd_rates(alike(), kTwoHosts), testing::IsEmpty()); }

TEST(OddRates, NameTheRankItsHostAndFigures) {
  std::vector<Rates> ranks = alike();
  ranks[4].product = 70 * kGiga;
  EXPECT_THAT(
      odd_rates(ranks, kTwoHosts),
      ElementsAre("rank 4 on b is slow before the first step: matrix product, 70.0 GFLOP/s; the median is 100.0 "
                  "GFLOP/s, and less than 75 % of it is told (health.sniff)"));
  ranks[4].product = 76 * kGiga;
  ranks[0].memory = 7 * kGiga;
  EXPECT_THAT(
      odd_rates(ranks, kTwoHosts),
      ElementsAre(HasSubstr("rank 0 on a is slow before the first step: memory, 7.0 GB/s; the median is 10.0")));
}

TEST(OddRates, NameALinkByBothEndsBesideLinksOfItsKind) {
  std::vector<Rates> ranks = alike();
  ranks[3].link = 2 * kGiga;
  EXPECT_THAT(odd_rates(ranks, kTwoHosts),
              ElementsAre(HasSubstr("the link between rank 3 on b and rank 4 on b is slow before the first step: "
                                    "all-reduce inside a host, 2.0 GB/s; the median is 5.0 GB/s")));
  const std::vector<std::string> hosts = {"a", "b", "c", "d", "e", "f"};
  EXPECT_THAT(odd_rates(ranks, hosts), ElementsAre(HasSubstr("between rank 2 on c and rank 3 on d"),
                                                   HasSubstr("between rank 3 on d and rank 4 on e")));
}

TEST(OddRates, OfTwoTheFasterOneIsTheMeasureAndOneIsNone) {
  const Rates fast{2 * kGiga, kGiga, kGiga}, slow{kGiga, kGiga, 0.0};
  EXPECT_THAT(odd_rates({fast, slow}, {"a", "b"}), ElementsAre(HasSubstr("rank 1 on b")));
  EXPECT_THAT(odd_rates({slow}, {"a"}), testing::IsEmpty());
  EXPECT_EQ(text_of({slow}), "1 rank: matrix product 1.0 to 1.0 GFLOP/s, memory 1.0 to 1.0 GB/s, links none");
}

}  // namespace
}  // namespace flashmorph
