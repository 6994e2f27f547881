#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"

namespace flashmorph {

// What the config, the model's config.json and the number of ranks say about each other, which no single section can
// check: budget, export format, mixer, and each stage's mesh, micro-batches and lengths. BadInput; all faults of the
// stages at once.
void check_settings(const RunConfig& config, const ModelSpec& spec, int64_t ranks);

// What branches.safetensors says beside its weights: the mixer's settings on which a branch's results depend, by key,
// and the hash of the teacher.
std::map<std::string, std::string> branch_facts(const RunConfig& config, const std::string& teacher);

// BadInput when stages.align.branches is a file of another mixer or teacher, or none that align has written.
void check_branches(const RunConfig& config, const std::string& teacher);

}  // namespace flashmorph
