#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

#include "core/config/run_config.h"
#include "distributed/parallel/layout.h"

namespace flashmorph {

at::ScalarType dtype_of(const DeviceSection& device);

// The stages that have a mesh, in order.
inline constexpr const char* kStagesOnMeshes[] = {"align", "select", "distill", "finetune", "evaluate"};

// The layout that one of them asks for; BadInput under the stage's own section, or under `parallel` when the stage
// has the run's.
Layout layout_of(const std::string& stage, const RunConfig& config, const ModelSpec& spec, int64_t ranks);

}  // namespace flashmorph
