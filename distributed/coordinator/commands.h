#pragma once

#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "proto/run.pb.h"

namespace flashmorph {

// The run as a state machine: its states are the stages that are finished, its moves the commands below.

// "select", "distill uniform", "evaluate uniform after distill": the command's name in RunState and messages.
std::string name_of(const proto::StageCommand& command);

// Everything the run does, in order: latency (with a budget in milliseconds), align, select (with gates), discretize;
// then, once there are plans: evaluate the teacher, and every plan after align; for each plan distill and finetune
// (those with tokens; plans that keep the same layers are trained once) and evaluate again; export.
std::vector<proto::StageCommand> commands_of(const RunConfig& config, const proto::PlanSet& plans);

// The first plan that keeps the same layers: its hybrid is this plan's, too.
const proto::HybridPlan& first_alike(const proto::HybridPlan& plan, const proto::PlanSet& plans);

// command: its name.
bool is_finished(const proto::RunState& state, const std::string& command);

// The first command that is not finished; one without a stage when all are.
proto::StageCommand next_command(const RunConfig& config, const proto::RunState& state, const proto::PlanSet& plans);

// The last training that a plan's model has had before a stage, and in the whole run: align, distill or finetune.
std::string training_before(const std::string& stage, const RunConfig& config);
std::string last_training(const RunConfig& config);

}  // namespace flashmorph
