#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/clock.h"
#include "distributed/health/rank_vitals.h"
#include "distributed/health/sniff.h"
#include "tests/mpi/world.h"

namespace flashmorph {
namespace {

using test::world;
using testing::HasSubstr;

TEST(CallLog, KeepsTheLast64CallsWithGroupNumberStepAndTensor) {
  if (world().size() == 1) return;
  CallLog& log = world().log();
  const auto group = world().split(0, world().rank(), "data");
  const int64_t before = log.groups().back().collectives;
  log.at_step(12);
  at::Tensor values = at::zeros({3, 5});
  for (int64_t call = 0; call < 70; ++call) group->all_reduce(values, Reduction::sum);
  group->barrier();

  const std::vector<CallRecord> calls = log.last();
  ASSERT_EQ(calls.size(), CallLog::kKept);
  EXPECT_EQ(text_of(calls.back()), "barrier");
  EXPECT_EQ(calls.back().number, before + 71);
  const CallRecord& reduced = calls.at(CallLog::kKept - 2);
  EXPECT_EQ(text_of(reduced), "all_reduce of Float [3, 5] (60 bytes)");
  EXPECT_EQ(reduced.number, before + 70);
  EXPECT_EQ(reduced.step, 12);
  EXPECT_GE(reduced.seconds, 0.0);
  EXPECT_EQ(log.groups().at(reduced.group).name, "data");
  EXPECT_EQ(log.groups().at(reduced.group).members.size(), static_cast<size_t>(world().size()));
}

TEST(CallLog, AMessageHasItsPeerAndNoNumberOfItsOwn) {
  if (world().size() == 1) return;
  const int rank = world().rank();
  at::Tensor values = at::zeros({2}, at::kDouble);
  world().barrier();
  const int64_t number = world().log().last().back().number;
  if (rank == 0) world().send(values, 1);
  if (rank == 1) world().receive(values, 0);
  if (rank > 1) return;
  const CallRecord message = world().log().last().back();
  EXPECT_EQ(text_of(message),
            rank == 0 ? "send of Double [2] (16 bytes) to 1" : "receive of Double [2] (16 bytes) from 0");
  EXPECT_EQ(message.number, number);
}

TEST(CallLog, GroupsKnowTheirRanksInTheWorld) {
  const int rank = world().rank(), size = world().size();
  const auto half = world().split(rank % 2, -rank, "half");
  const std::vector<int> members = world().log().groups().back().members;
  ASSERT_EQ(static_cast<int>(members.size()), half->size());
  EXPECT_EQ(members[half->rank()], rank);
  for (const int member : members) EXPECT_EQ(member % 2, rank % 2);
  EXPECT_LE(members.front(), size - 1);
}

TEST(CallLog, AFailedCallIsOverAsWell) {
  if (world().size() == 1) return;
  const auto group = world().split(0, world().rank(), "data");
  at::Tensor values = at::zeros({2});
  EXPECT_THROW(group->send(values, world().size()), CommunicationError);
  EXPECT_GE(world().log().last().back().seconds, 0.0);
}

TEST(CallLog, ACardIsInItsOldestCallUntilThatIsDone) {
  if (world().size() == 1) return;
  CallLog log;
  const size_t group = log.add_group("data", {0, 1});
  EXPECT_FALSE(log.on_card().has_value());
  std::vector<int64_t> tickets;
  for (const char* operation : {"all_reduce", "broadcast"}) {
    log.begin(group, operation, kAll, nullptr);
    tickets.push_back(log.goes_on_on_card());
    log.end();
  }
  EXPECT_EQ(text_of(log.on_card().value()), "all_reduce");
  log.done_on_card(tickets[0]);
  EXPECT_EQ(text_of(log.on_card().value()), "broadcast");
  EXPECT_EQ(log.on_card()->number, 2);
  log.done_on_card(tickets[1]);
  EXPECT_FALSE(log.on_card().has_value());
}

constexpr int kMostLooks = 100;

// Own work, by the clock of this thread.
void work_for(double seconds) {
  const Stopwatch watch;
  while (watch.seconds() < seconds) {
  }
}

TEST(VitalSigns, TheOneThatWorksLongIsTheSlowOneNotThoseThatWait) {
  if (world().size() == 1) return;
  const int last = world().size() - 1;
  std::vector<std::string> hosts;
  for (int rank = 0; rank < world().size(); ++rank) hosts.push_back("host" + std::to_string(rank));
  VitalSigns signs(world(), hosts);
  for (const int worker : {last, 0}) {  // what was before the last look was told then
    bool only_the_worker = false;
    for (int look = 0; look < kMostLooks && !only_the_worker; ++look) {  // a busy machine makes others slow as well
      for (int step = 0; step < 2; ++step) {
        if (world().rank() == worker) work_for(0.3);
        world().barrier();
      }
      const std::vector<RankVitals> ranks = signs.look(2);
      ASSERT_EQ(static_cast<int>(ranks.size()), world().size());
      for (const RankVitals& rank : ranks) {
        EXPECT_GT(rank.resident_bytes, 1 << 20);
        EXPECT_EQ(rank.host, "host" + std::to_string(rank.rank));
        EXPECT_LE(rank.communication_seconds, rank.step_seconds);
      }
      EXPECT_GE(ranks.at(worker).own_seconds(), 0.3) << "of each step, which it worked at least";
      const std::vector<RankVitals> slow = stragglers(ranks, 3.0);
      only_the_worker = slow.size() == 1 && slow[0].rank == worker;
    }
    EXPECT_TRUE(only_the_worker) << "rank " << worker;
  }
}

TEST(Sniff, EveryRankAndLinkIsMeasured) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const std::vector<Rates> ranks = gather_rates(measured_rates(world(), at::kCPU, dtype), world());
    ASSERT_EQ(static_cast<int>(ranks.size()), world().size());
    for (const Rates& rank : ranks) {
      EXPECT_GT(rank.product, 0.0);
      EXPECT_GT(rank.memory, 0.0);
      EXPECT_EQ(rank.link > 0.0, &rank != &ranks.back()) << "with the next rank";
    }
  }
}

TEST(Sniff, ASlowRankIsNamedOnEveryRank) {
  const int last = world().size() - 1;
  const Rates mine{world().rank() == last ? 1e9 : 2e9, 1e9, 1e9};
  const std::vector<std::string> odd =
      odd_rates(gather_rates(mine, world()), std::vector<std::string>(world().size(), "host"));
  ASSERT_EQ(odd.size(), world().size() == 1 ? 0 : 1);
  if (!odd.empty()) {
    EXPECT_EQ(odd[0].substr(0, 14), "rank " + std::to_string(last) + " on host");
  }
}

}  // namespace
}  // namespace flashmorph
