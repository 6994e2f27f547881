#pragma once

#include <cstdint>
#include <vector>

namespace flashmorph {

struct PipelineTask {
  enum class Kind {
    forward,
    backward,  // the gradients of its inputs, and of all weights whose products are not put off
    weights,   // the products that its backward has put off
  };
  Kind kind;
  int64_t micro_batch;  // 0, 1, ... of this step

  bool operator==(const PipelineTask&) const = default;
};

// What pipeline rank `rank` of `ranks` does in a step, in order: one forward, one backward (arXiv 2104.04473, section
// 2.2), with the weights' gradients put off (ZB-H1 of arXiv 2401.10241). A rank runs ahead by as many micro-batches as
// there are ranks after it, then each forward is followed by the backward of the oldest one; a micro-batch's weights
// come as many backwards later as there are ranks before it, so that at most `ranks` micro-batches are held at a time.
// Nobody waits for the first rank's backward: it puts nothing off.
//
// With the seconds F of a forward, B of a backward and W of the weights, each rank is idle for
//     (ranks - 1) (F + B - W)   of micro_batches (F + B + W) in which it works, W <= B;
//     (ranks - 1) (F + B)       where W = 0: the share (ranks - 1) / (micro_batches + ranks - 1).
std::vector<PipelineTask> pipeline_order(int64_t ranks, int64_t rank, int64_t micro_batches);

}  // namespace flashmorph
