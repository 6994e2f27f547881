#pragma once

#include <utility>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "distributed/stages/context.h"
#include "distributed/stages/step.h"
#include "proto/run.pb.h"

namespace flashmorph {

// Trains one gate per layer with all weights frozen: gates start at 1 (the teacher) and stay in [0, 1], and
//     E = mean over layers and answer tokens of |H_mix - H_teacher|^2
// is made small, each layer's relative to what the teacher's attention adds there, under a budget that falls (objective
// budget), or as it is beside lambda * sum of gates (objective paper); see open_gates(). The gates that count are
// those that just meet the run's budget, or the last. The mixed states propagate, so every gate learns under the
// current mixture of all layers. Every rank gets all gates, as gates.json has them.
std::pair<proto::GateSnapshot, StageCost> select_gates(const MorphableModel& model, const LayerBudget& budget,
                                                       StageContext& context);

// A step of it. The gradients are of this rank's gates, alpha_l, float64, the same bits for any number of data ranks.
StepResult select_step(const MorphableModel& model, const at::Tensor& alpha_l, const MicroBatches& batches,
                       const SelectSection& section, Mesh& mesh);

// What a layer's error is a share of.
enum class ErrorOf {
  states,     // of 1: the error itself
  attention,  // of the mean over the micro-batch's answer tokens of |H - X|^2, what the teacher's attention adds, and
              // of a millionth of |H|^2, so that a layer which adds nothing does not count for infinitely much
};

// One micro-batch through this rank's layers, the mixture (learning) beside the teacher (fixed). The loss is its error,
// float64: over its layers and its answer tokens the sum of |H_mix - H_teacher|^2, each layer's as such a share,
// divided by the layers of the model. mixing: a mixed route for each of this rank's layers. `recompute`: keep a layer's
// input only, and run it again in the backward pass.
StageOutput mix_beside_teacher(const MorphableModel& model, const Batch& batch, const Routes& mixing,
                               const States& states, ErrorOf of = ErrorOf::states, bool recompute = false);

}  // namespace flashmorph
