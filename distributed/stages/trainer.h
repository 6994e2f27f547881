#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/config/run_config.h"
#include "core/data/sample_stream.h"
#include "core/model/parameter.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// The loss of one micro-batch. It calls backward itself, on loss / `micro_batches`, so that gradients add up to the
// mean over a step; returns the loss.
using MicroBatchLoss = std::function<double(const Batch& batch, int64_t micro_batches)>;

// The loop that align, distill and finetune share: for each step, this rank's micro-batches forward and backward,
// gradients reduced over the mesh, clipped, one AdamW update. Leaves the parameters without gradients.
StageCost train(const std::string& stage, const Parameters& parameters, const TrainingSection& section,
                const SampleStream& data, StageContext& context, const MicroBatchLoss& loss_of);

}  // namespace flashmorph
