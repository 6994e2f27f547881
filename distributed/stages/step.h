#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/pipeline.h"

namespace flashmorph {

// A step's sequences, as one rank works through them.
struct MicroBatches {
  MicroBatchRange mine;               // this rank's, by their index in the step
  int64_t count;                      // of the whole step, over all ranks
  std::pair<int64_t, int64_t> shape;  // rows and tokens of each one's tensors
  std::function<Batch(int64_t index)> batch;
};

// What a step comes to, the same on every rank but for the gradients, which are of what this rank trains.
struct StepResult {
  double loss;
  std::vector<at::Tensor> gradients;  // of `loss`, over the whole mesh
  double norm;                        // of all of them, or for gates their sum: finite only when every gradient is
  double regularizer = 0.0;           // select: the part of the loss that pulls the gates down

  bool is_finite() const { return std::isfinite(loss) && std::isfinite(norm); }
};

// Forward and backward of a step's micro-batches, reduced over the mesh. Collective. The same function trains
// (training.h), is gone through again to find a number that is not finite (non_finite.cpp), and is rehearsed without
// values (distributed/forecast/rehearsal.h).
using StepFunction = std::function<StepResult(const MicroBatches&)>;

// Whether a teacher and what learns from it go through the layers in turns, so that the sums over the shards of one
// arrive behind the work of the other. Without shards the teacher goes first, and the next pipeline rank begins with
// it.
inline bool go_in_turns(const MorphableModel& model) { return model.shard().size() > 1; }

// What a pipeline carries for a micro-batch of so many rows and tokens.
inline StateShape state_shape(const MorphableModel& model, std::pair<int64_t, int64_t> rows_and_tokens) {
  const auto [rows, tokens] = rows_and_tokens;
  return {{rows, model.shard().own_count(tokens), model.spec().hidden},
          at::TensorOptions(model.placement().dtype).device(model.placement().device)};
}

}  // namespace flashmorph
