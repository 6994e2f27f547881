#pragma once

#include <vector>

#include "core/config/run_config.h"
#include "core/select/budget.h"
#include "proto/run.pb.h"

namespace flashmorph {

// What a run's gates say of a budget, which need not be the one it was made for: the pick by the gates that just met
// it (deciding_step), their margin and noise, and the error of the mixture with them, which the step measured.
// kv_bytes: of the KV cache, a token and layer with full attention.
proto::FrontierPoint pick_for(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget,
                              int64_t kv_bytes);

// The same for K / L of what all layers cost, K = 1 .. L - 1: gates under a falling budget have passed them all. Empty
// for gates that a penalty moved, which stand for one budget alone.
std::vector<proto::FrontierPoint> frontier(const proto::GateSnapshot& gates, const SelectSection& section,
                                           const LayerBudget& budget, int64_t kv_bytes);

// The scatter of the gates that were decided at that step, at most of all gates: moved by a penalty, the standard
// deviation over the last 10% of the steps (at least 2); under a falling budget, which moves them all, what the second
// differences of the steps before leave of it (a trend has none). 0 with fewer steps.
double gate_noise(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget);

// As a budget in milliseconds takes it.
LayerLatency numbers_of(const proto::LayerLatency& latency);

}  // namespace flashmorph
