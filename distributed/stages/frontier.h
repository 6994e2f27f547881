#pragma once

#include <vector>

#include "core/config/run_config.h"
#include "core/select/budget.h"
#include "proto/run.pb.h"

// What the gates of a run say, from their history alone (gates.json).

namespace flashmorph {

// The step of the history whose gates count for a budget, the run's or another: with a falling budget the last whose
// gates still cost its limit or more, and else the last of all.
int deciding_step(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget);

// What a run's gates say of a budget, which need not be the one it was made for: the pick by the gates that just met
// it (deciding_step), their margin and noise, and the error of the mixture with them, which the step measured.
// kv_bytes: of the KV cache, a token and layer with full attention.
proto::FrontierPoint pick_for(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget,
                              int64_t kv_bytes);

// The same for K / L of what all layers cost, K = 1 .. L - 1, as far as a falling budget has come: to 1 unless select
// was stopped. Empty for gates that a penalty moved, which stand for one budget alone.
std::vector<proto::FrontierPoint> frontier(const proto::GateSnapshot& gates, const SelectSection& section,
                                           const LayerBudget& budget, int64_t kv_bytes);

// Whether the gates have come down to a budget.
bool has_met(const proto::GateSnapshot& gates, const LayerBudget& budget);

// Whether select need not go on (stages.select.stop): its pick has been the same in so many steps before the last, and
// the pick's margin exceeds the gates' noise.
bool has_settled(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget);

// The scatter of the gates that were decided at that step, at most of all gates: moved by a penalty, the standard
// deviation over the last 10% of the steps (at least 2); under a falling budget, which moves them all, what the second
// differences of the steps before leave of it (a trend has none). 0 with fewer steps.
double gate_noise(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget);

}  // namespace flashmorph
