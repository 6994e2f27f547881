#pragma once

#include <string>

#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"
#include "distributed/stages/step.h"

namespace flashmorph {

// Both train every weight of the hybrid, data-parallel; `plan` names it in reports.

// mean over tokens of KL(teacher's next-token distribution || hybrid's).
StageCost distill(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                  const std::string& plan, StageContext& context);

// mean over tokens of -log p(next token).
StageCost finetune(const MorphableModel& hybrid, const Routes& routes, const std::string& plan, StageContext& context);

// A step of each.
StepResult distill_step(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                        const MicroBatches& batches, const DistillSection& section, Mesh& mesh);
StepResult finetune_step(const MorphableModel& hybrid, const Routes& routes, const MicroBatches& batches,
                         const FinetuneSection& section, Mesh& mesh);

}  // namespace flashmorph
