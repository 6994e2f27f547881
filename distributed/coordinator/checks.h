#pragma once

#include <cstdint>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"

namespace flashmorph {

// What the config, the model's config.json and the number of ranks say about each other, which no single section can
// check: budget, export format, mixer, and each stage's mesh, micro-batches and lengths. BadInput; all faults of the
// stages at once.
void check_settings(const RunConfig& config, const ModelSpec& spec, int64_t ranks);

}  // namespace flashmorph
