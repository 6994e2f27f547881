#pragma once

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"
#include "distributed/stages/step.h"

namespace flashmorph {

// Trains every layer's linear branch to do what its attention does on the teacher's own states:
//     mean over layers, tokens and channels of |A_lin(LN X) - A_full(LN X)|^2,  X the teacher's.
// The teacher streams forward; no gradient crosses a layer.
StageCost align(MorphableModel& model, StageContext& context);

// A step of it.
StepResult align_step(const MorphableModel& model, const MicroBatches& batches, const AlignSection& section,
                      Mesh& mesh);

// One micro-batch through this rank's layers; each branch's gradient is this micro-batch's share of the step's. Passes
// the states behind the layers on, on a pipeline before the branches learn, and adds the mean error over all layers,
// divided by micro_batches, to `loss`, a float64 scalar where the model is.
// x_BTD: the states before them, undefined where the model begins. Letters: B sequences, T tokens, D hidden.
void align_micro_batch(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD, int64_t micro_batches,
                       at::Tensor& loss, const PassOn& pass_on);

// mixer.init: data. Starts the decays of this rank's branches from how far the teacher's attention looks back in one
// micro-batch, the first of the stage for every rank. States as above.
at::Tensor start_decays(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD);

}  // namespace flashmorph
