#pragma once

#include <string>

#include "core/config/run_config.h"
#include "core/select/budget.h"
#include "distributed/measure/judged_sets.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The plan of each of the run's methods, its own first. Collective with `judged`, nullptr when no method asks for it.
proto::PlanSet discretize(const RunConfig& config, const LayerBudget& budget, const proto::GateSnapshot& gates,
                          JudgedSets* judged = nullptr);

// What was judged before a plan was settled, in a line: the contenders, each with its recall, and what came of them.
std::string judged_text(const proto::HybridPlan& plan);

// SHA-256 over what the plans are: layers, names, kept layers, scores and margins, not where they came from and what
// they cost. Empty when there are none.
std::string hash_of(const proto::PlanSet& plans);

}  // namespace flashmorph
