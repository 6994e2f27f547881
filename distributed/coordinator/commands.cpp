#include "distributed/coordinator/commands.h"

#include <algorithm>

#include "core/select/selector.h"

namespace flashmorph {
namespace {

proto::StageCommand command(const std::string& stage, const std::string& model = "", const std::string& after = "") {
  proto::StageCommand command;
  command.set_stage(stage);
  command.set_model(model);
  command.set_after(after);
  return command;
}

}  // namespace

std::string name_of(const proto::StageCommand& command) {
  std::string name = command.stage();
  if (!command.model().empty()) name += " " + command.model();
  if (!command.after().empty()) name += " after " + command.after();
  return name;
}

std::vector<proto::StageCommand> commands_of(const RunConfig& config, const proto::PlanSet& plans) {
  std::vector<proto::StageCommand> commands;
  if (config.budget.milliseconds > 0.0) commands.push_back(command("latency"));
  commands.push_back(command("align"));
  if (trains_gates(config.stages)) commands.push_back(command("select"));
  commands.push_back(command("discretize"));
  if (plans.plans().empty()) return commands;

  commands.push_back(command("evaluate", "teacher"));
  for (const proto::HybridPlan& plan : plans.plans()) commands.push_back(command("evaluate", plan.name(), "align"));
  for (const proto::HybridPlan& plan : plans.plans()) {
    if (config.stages.distill.tokens > 0) commands.push_back(command("distill", plan.name()));
    if (config.stages.finetune.tokens > 0) commands.push_back(command("finetune", plan.name()));
    if (last_training(config) != "align") commands.push_back(command("evaluate", plan.name(), last_training(config)));
  }
  if (config.stages.export_.enabled) commands.push_back(command("export"));
  return commands;
}

bool is_finished(const proto::RunState& state, const proto::StageCommand& command) {
  const std::string name = name_of(command);
  return std::ranges::any_of(state.finished(),
                             [&](const proto::StageResult& result) { return result.stage() == name; });
}

proto::StageCommand next_command(const RunConfig& config, const proto::RunState& state, const proto::PlanSet& plans) {
  for (const proto::StageCommand& command : commands_of(config, plans))
    if (!is_finished(state, command)) return command;
  return {};
}

std::string last_training(const RunConfig& config) {
  if (config.stages.finetune.tokens > 0) return "finetune";
  if (config.stages.distill.tokens > 0) return "distill";
  return "align";
}

}  // namespace flashmorph
