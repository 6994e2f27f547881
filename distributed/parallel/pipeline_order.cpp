#include "distributed/parallel/pipeline_order.h"

#include <algorithm>

namespace flashmorph {

std::vector<PipelineTask> pipeline_order(int64_t ranks, int64_t rank, int64_t micro_batches) {
  using Kind = PipelineTask::Kind;
  const int64_t ahead = std::min(ranks - 1 - rank, micro_batches), behind = std::min(rank, micro_batches);
  std::vector<PipelineTask> tasks;
  const auto backward = [&](int64_t m) {
    tasks.push_back({Kind::backward, m});
    if (rank > 0 && m >= behind) tasks.push_back({Kind::weights, m - behind});
  };
  for (int64_t m = 0; m < ahead; ++m) tasks.push_back({Kind::forward, m});
  for (int64_t m = ahead; m < micro_batches; ++m) {
    tasks.push_back({Kind::forward, m});
    backward(m - ahead);
  }
  for (int64_t m = micro_batches - ahead; m < micro_batches; ++m) backward(m);
  for (int64_t m = micro_batches - behind; m < micro_batches; ++m) tasks.push_back({Kind::weights, m});
  return tasks;
}

}  // namespace flashmorph
