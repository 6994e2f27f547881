#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"
#include "core/data/sample_stream.h"
#include "core/data/samples_ahead.h"
#include "core/model/parameter.h"
#include "core/morph/morphable_model.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/context.h"
#include "distributed/stages/numbers.h"

namespace flashmorph {

// The sequences of a training stage, of which the observer hears that it starts on `what`.
SampleStream start_stage(const std::string& stage, const std::string& what, const TrainingSection& section,
                         StageContext& context);

// A step's micro-batches of this rank, forward and backward. Each one's loss is divided by the micro-batches of the
// whole step, so that gradients add up to the mean; returns the sum of what this rank has of these losses.
using StepLoss = std::function<double(int64_t step, MicroBatchRange mine)>;

// The loop that align, distill and finetune share: for each step, this rank's micro-batches forward and backward,
// gradients reduced over the mesh, clipped, one AdamW update. Goes on from the stage's newest checkpoint. Leaves the
// parameters without gradients.
// passes: how the stage uses its models; the weights of these that are not among the parameters are frozen.
StageCost train(const std::string& stage, const Parameters& parameters, const std::vector<ForwardPass>& passes,
                const TrainingSection& section, const SampleStream& data, StageContext& context,
                const StepLoss& loss_of);

// A step over the mesh: the loss that the ranks had parts of, the same on all of them, and this rank's gradients,
// clipped, with the norm they had before.
struct MeshStep {
  double loss;
  std::vector<at::Tensor> gradients;
  double norm;
};
MeshStep over_mesh(double part_of_loss, const Parameters& parameters, const TrainingSection& section, Mesh& mesh);

// What a pipeline carries for a micro-batch of so many rows of so many tokens.
StateShape state_shape(const MorphableModel& model, std::pair<int64_t, int64_t> rows_and_tokens);

// This rank's micro-batches of the stage, made one ahead.
SamplesAhead samples_ahead(const SampleStream& data, const MorphableModel& model, const Mesh& mesh);

}  // namespace flashmorph
