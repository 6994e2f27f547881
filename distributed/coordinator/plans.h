#pragma once

#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The run's own plan first (by its method, from the gates when it has them), then those of stages.evaluate.compare.
// Ties between scores: the lower layer is kept.
proto::PlanSet discretize(const RunConfig& config, int64_t layers, int64_t keep_full, const std::vector<double>& gates);

}  // namespace flashmorph
