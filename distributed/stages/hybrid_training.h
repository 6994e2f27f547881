#pragma once

#include <string>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "distributed/parallel/pipeline.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// Both train every weight of the hybrid, data-parallel; `plan` names it in reports.

// mean over tokens of KL(teacher's next-token distribution || hybrid's).
StageCost distill(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                  const std::string& plan, StageContext& context);

// mean over tokens of -log p(next token).
StageCost finetune(const MorphableModel& hybrid, const Routes& routes, const std::string& plan, StageContext& context);

// One micro-batch of each through this rank's layers; the last rank makes the loss, this micro-batch's share of the
// step's.
StageOutput distill_micro_batch(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                                const Batch& batch, const States& input, int64_t micro_batches,
                                const ParallelSection& parallel);
StageOutput finetune_micro_batch(const MorphableModel& hybrid, const Routes& routes, const Batch& batch,
                                 const States& input, int64_t micro_batches, const ParallelSection& parallel);

}  // namespace flashmorph
