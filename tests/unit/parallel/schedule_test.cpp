#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "distributed/parallel/pipeline_order.h"

namespace flashmorph {
namespace {

using Kind = PipelineTask::Kind;

struct Durations {
  int64_t forward, backward, weights;
};

// All ranks carried out as far as their inputs allow; the time when the last one ends, or -1 when nobody can go on.
int64_t simulated_time(int64_t ranks, int64_t micro_batches, const Durations& durations) {
  std::vector<std::vector<PipelineTask>> tasks;
  for (int64_t rank = 0; rank < ranks; ++rank) tasks.push_back(pipeline_order(ranks, rank, micro_batches));
  std::map<std::tuple<int64_t, Kind, int64_t>, int64_t> ended;  // rank, kind, micro-batch
  std::vector<size_t> next(ranks, 0);
  std::vector<int64_t> free_at(ranks, 0);
  for (bool moved = true; moved;) {
    moved = false;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      if (next[rank] == tasks[rank].size()) continue;
      const auto [kind, m] = tasks[rank][next[rank]];
      const int64_t source = kind == Kind::forward ? rank - 1 : kind == Kind::backward ? rank + 1 : rank;
      int64_t ready = 0;
      if (source != rank && source >= 0 && source < ranks) {
        const auto input = ended.find({source, kind, m});
        if (input == ended.end()) continue;
        ready = input->second;
      }
      if (kind == Kind::backward && !ended.contains({rank, Kind::forward, m})) return -1;
      if (kind == Kind::weights && !ended.contains({rank, Kind::backward, m})) return -1;
      int64_t duration = kind == Kind::forward    ? durations.forward
                         : kind == Kind::backward ? durations.backward
                                                  : durations.weights;
      if (kind == Kind::backward && rank == 0) duration += durations.weights;  // which puts nothing off
      free_at[rank] = std::max(free_at[rank], ready) + duration;
      ended[{rank, kind, m}] = free_at[rank];
      ++next[rank];
      moved = true;
    }
  }
  for (int64_t rank = 0; rank < ranks; ++rank)
    if (next[rank] < tasks[rank].size()) return -1;
  return *std::max_element(free_at.begin(), free_at.end());
}

TEST(Schedule, EveryMicroBatchGoesOnceEachWayInOrder) {
  for (int64_t ranks = 1; ranks <= 6; ++ranks)
    for (int64_t rank = 0; rank < ranks; ++rank)
      for (int64_t count = 1; count <= 9; ++count) {
        std::map<Kind, std::vector<int64_t>> done;
        std::vector<int64_t> expected;
        size_t most_held = 0;
        for (const auto& [kind, m] : pipeline_order(ranks, rank, count)) {
          done[kind].push_back(m);
          most_held =
              std::max(most_held, done[Kind::forward].size() - done[rank == 0 ? Kind::backward : Kind::weights].size());
        }
        for (int64_t m = 0; m < count; ++m) expected.push_back(m);
        EXPECT_EQ(done[Kind::forward], expected);
        EXPECT_EQ(done[Kind::backward], expected);
        EXPECT_EQ(done[Kind::weights], rank == 0 ? std::vector<int64_t>() : expected);
        EXPECT_LE(most_held, static_cast<size_t>(std::min(ranks + (rank > 0), count)))
            << ranks << " " << rank << " " << count;
      }
}

TEST(Schedule, EndsWithTheBubbleOfTheFormula) {
  for (int64_t ranks = 1; ranks <= 6; ++ranks)
    for (int64_t count = 1; count <= 12; ++count) {
      EXPECT_EQ(simulated_time(ranks, count, {1, 1, 0}), 2 * (count + ranks - 1)) << ranks << " ranks, " << count;
      if (count < ranks) continue;  // there is too little to put off
      EXPECT_EQ(simulated_time(ranks, count, {1, 1, 1}), 3 * count + ranks - 1) << ranks << " ranks, " << count;
      EXPECT_EQ(simulated_time(ranks, count, {2, 1, 1}), 4 * count + 2 * (ranks - 1)) << ranks << " ranks, " << count;
    }
}

TEST(Schedule, IsOneForwardOneBackwardWithTheWeightsBehind) {
  const auto tasks = pipeline_order(3, 1, 3);
  EXPECT_THAT(tasks, testing::ElementsAre(PipelineTask{Kind::forward, 0}, PipelineTask{Kind::forward, 1},
                                          PipelineTask{Kind::backward, 0}, PipelineTask{Kind::forward, 2},
                                          PipelineTask{Kind::backward, 1}, PipelineTask{Kind::weights, 0},
                                          PipelineTask{Kind::backward, 2}, PipelineTask{Kind::weights, 1},
                                          PipelineTask{Kind::weights, 2}));
}

}  // namespace
}  // namespace flashmorph
