#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "distributed/parallel/pipeline_order.h"

namespace flashmorph {
namespace {

using Kind = PipelineTask::Kind;

// All ranks carried out as far as their inputs allow, each task one unit of time; the time when the last one ends, or
// -1 when nobody can go on.
int64_t simulated_time(int64_t ranks, int64_t micro_batches) {
  std::vector<std::vector<PipelineTask>> tasks;
  for (int64_t rank = 0; rank < ranks; ++rank) tasks.push_back(one_forward_one_backward(ranks, rank, micro_batches));
  std::map<std::tuple<int64_t, Kind, int64_t>, int64_t> ended;  // rank, kind, micro-batch
  std::vector<size_t> next(ranks, 0);
  std::vector<int64_t> free_at(ranks, 0);
  for (bool moved = true; moved;) {
    moved = false;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      if (next[rank] == tasks[rank].size()) continue;
      const auto [kind, m] = tasks[rank][next[rank]];
      const bool forward = kind == Kind::forward;
      const int64_t source = forward ? rank - 1 : rank + 1;
      int64_t ready = 0;
      if (source >= 0 && source < ranks) {
        const auto input = ended.find({source, kind, m});
        if (input == ended.end()) continue;
        ready = input->second;
      }
      if (!forward && !ended.contains({rank, Kind::forward, m})) return -1;
      free_at[rank] = std::max(free_at[rank], ready) + 1;
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
        std::vector<int64_t> forward, backward, expected;
        size_t most_held = 0;
        for (const auto& [kind, m] : one_forward_one_backward(ranks, rank, count)) {
          (kind == Kind::forward ? forward : backward).push_back(m);
          most_held = std::max(most_held, forward.size() - backward.size());
        }
        for (int64_t m = 0; m < count; ++m) expected.push_back(m);
        EXPECT_EQ(forward, expected);
        EXPECT_EQ(backward, expected);
        EXPECT_EQ(most_held, static_cast<size_t>(std::min(ranks - rank, count)))
            << ranks << " " << rank << " " << count;
      }
}

TEST(Schedule, EndsWithTheBubbleOfTheFormula) {
  for (int64_t ranks = 1; ranks <= 6; ++ranks)
    for (int64_t count = 1; count <= 12; ++count)
      EXPECT_EQ(simulated_time(ranks, count), 2 * (count + ranks - 1)) << ranks << " ranks, " << count;
}

TEST(Schedule, IsOneForwardOneBackward) {
  const auto tasks = one_forward_one_backward(3, 1, 3);
  EXPECT_THAT(tasks, testing::ElementsAre(PipelineTask{Kind::forward, 0}, PipelineTask{Kind::forward, 1},
                                          PipelineTask{Kind::backward, 0}, PipelineTask{Kind::forward, 2},
                                          PipelineTask{Kind::backward, 1}, PipelineTask{Kind::backward, 2}));
}

}  // namespace
}  // namespace flashmorph
