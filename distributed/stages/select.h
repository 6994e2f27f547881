#pragma once

#include <utility>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// The gates as they moved: [step][layer]; the last row is the result.
struct GateTrajectory {
  std::vector<std::vector<double>> alpha;
};

// Trains one gate per layer with all weights frozen: gates start at 1 (the teacher) and stay in [0, 1];
//     mean over layers and answer tokens of |H_mix - H_teacher|^2  +  lambda * sum of gates.
// The mixed states propagate, so every gate learns under the current mixture of all layers.
std::pair<GateTrajectory, StageCost> select_gates(const MorphableModel& model, int64_t keep_full, StageContext& context);

// One micro-batch's part of the objective, before the mean: row = [d error / d alpha (L), error, answer tokens], float64,
// where error = mean over layers of the sum over answer tokens of |H_mix - H_teacher|^2. The first L entries are this
// tensor rank's partial sums; the last two are given by tensor rank 0 alone, so that summing rows over ranks is right.
at::Tensor gate_gradient_row(const MorphableModel& model, const Batch& batch, const at::Tensor& alpha_L);

}  // namespace flashmorph
