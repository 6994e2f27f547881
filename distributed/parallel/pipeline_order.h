#pragma once

#include <cstdint>
#include <vector>

namespace flashmorph {

struct PipelineTask {
  enum class Kind { forward, backward };
  Kind kind;
  int64_t micro_batch;  // 0, 1, ... of this step

  bool operator==(const PipelineTask&) const = default;
};

// One forward, one backward (arXiv 2104.04473, section 2.2): what pipeline rank `rank` of `ranks` does in a step, in
// order. It runs ahead by as many micro-batches as there are ranks after it, then each forward is followed by the
// backward of the oldest one, so that at most ranks - rank micro-batches are held at a time. Idle share of a step:
// (ranks - 1) / (micro_batches + ranks - 1).
std::vector<PipelineTask> one_forward_one_backward(int64_t ranks, int64_t rank, int64_t micro_batches);

}  // namespace flashmorph
