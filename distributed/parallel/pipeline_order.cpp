#include "distributed/parallel/pipeline_order.h"

#include <algorithm>

namespace flashmorph {

std::vector<PipelineTask> one_forward_one_backward(int64_t ranks, int64_t rank, int64_t micro_batches) {
  const int64_t ahead = std::min(ranks - 1 - rank, micro_batches);
  std::vector<PipelineTask> tasks;
  for (int64_t m = 0; m < ahead; ++m) tasks.push_back({PipelineTask::Kind::forward, m});
  for (int64_t m = ahead; m < micro_batches; ++m) {
    tasks.push_back({PipelineTask::Kind::forward, m});
    tasks.push_back({PipelineTask::Kind::backward, m - ahead});
  }
  for (int64_t m = micro_batches - ahead; m < micro_batches; ++m) tasks.push_back({PipelineTask::Kind::backward, m});
  return tasks;
}

}  // namespace flashmorph
