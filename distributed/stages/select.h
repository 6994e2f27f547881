#pragma once

#include <utility>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// The gates as they moved, and the objective that moved them: alpha[step][layer]; the last row is the result.
struct GateTrajectory {
  std::vector<std::vector<double>> alpha;
  std::vector<double> loss;
};

// Trains one gate per layer with all weights frozen: gates start at 1 (the teacher) and stay in [0, 1];
//     mean over layers and answer tokens of |H_mix - H_teacher|^2  +  lambda * sum of gates.
// The mixed states propagate, so every gate learns under the current mixture of all layers. A pipeline rank trains the
// gates of its own layers; every rank gets all of them.
std::pair<GateTrajectory, StageCost> select_gates(const MorphableModel& model, const LayerBudget& budget,
                                                  StageContext& context);

// A step of select over the mesh, the same for any number of data ranks.
struct GateSums {
  at::Tensor gradient_l;  // of this rank's gates, float64
  double error;           // of all layers
  double regularizer;     // lambda * sum of all gates
  double gradient;        // the sum of all gates' gradients
};
// rows: one a micro-batch of this rank, [d error / d alpha of its layers, error, answer tokens], float64;
// micro_batches: of the whole step; penalty: lambda.
GateSums gates_over_mesh(const at::Tensor& rows, int64_t micro_batches, const at::Tensor& alpha_l, double penalty,
                         Mesh& mesh);
// Each pipeline rank's numbers at their layers' places among all layers' numbers, float64.
at::Tensor of_all_layers(const at::Tensor& own_l, const MorphableModel& model, Mesh& mesh);

// One micro-batch through this rank's layers, the mixture (learning) beside the teacher (fixed). The loss is its error,
// float64: over its layers and its answer tokens the sum of |H_mix - H_teacher|^2, divided by the layers of the model.
// mixing: a mixed route for each of this rank's layers; mixing_routes makes them of the gates, a leaf where the model
// is, with their numbers from the host, so that nobody waits for a device to read them. `recompute`: keep a layer's
// input only, and run it again in the backward pass.
Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l);
StageOutput mix_beside_teacher(const MorphableModel& model, const Batch& batch, const Routes& mixing, States x,
                               bool recompute = false);

}  // namespace flashmorph
