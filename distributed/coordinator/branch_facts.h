#pragma once

#include <map>
#include <string>

#include "core/config/run_config.h"

namespace flashmorph {

// What branches.safetensors says beside its weights: the mixer's settings on which a branch's results depend, by key,
// and the hash of the teacher.
std::map<std::string, std::string> branch_facts(const RunConfig& config, const std::string& teacher);

// BadInput when stages.align.branches is a file of another mixer or teacher, or none that align has written.
void check_branches(const RunConfig& config, const std::string& teacher);

}  // namespace flashmorph
