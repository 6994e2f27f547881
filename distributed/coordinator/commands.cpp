#include "distributed/coordinator/commands.h"

#include <algorithm>

#include "distributed/coordinator/stage_table.h"

namespace flashmorph {

std::string name_of(const proto::StageCommand& command) {
  std::string name = command.stage();
  if (!command.model().empty()) name += " " + command.model();
  if (!command.after().empty()) name += " after " + command.after();
  return name;
}

std::vector<proto::StageCommand> commands_of(const RunConfig& config, const proto::PlanSet& plans) {
  std::vector<proto::StageCommand> commands;
  const auto add = [&](const std::string& stage, const std::string& model = "", const std::string& after = "") {
    if (!stage_named(stage).is_in(config)) return;
    proto::StageCommand& command = commands.emplace_back();
    command.set_stage(stage);
    command.set_model(model);
    command.set_after(after);
  };
  for (const char* stage : {"latency", "align", "select", "discretize"}) add(stage);
  if (plans.plans().empty()) return commands;

  const std::string last = last_training(config);
  add("evaluate", "teacher");
  for (const proto::HybridPlan& plan : plans.plans()) add("evaluate", plan.name(), "align");
  for (const proto::HybridPlan& plan : plans.plans()) {
    if (&first_alike(plan, plans) == &plan) {
      add("distill", plan.name());
      add("finetune", plan.name());
    }
    if (last != "align") add("evaluate", plan.name(), last);
  }
  add("export");
  return commands;
}

const proto::HybridPlan& first_alike(const proto::HybridPlan& plan, const proto::PlanSet& plans) {
  return *std::ranges::find_if(plans.plans(), [&](const proto::HybridPlan& other) {
    return &other == &plan || std::ranges::equal(other.full_layers(), plan.full_layers());
  });
}

bool is_finished(const proto::RunState& state, const std::string& command) {
  return std::ranges::count(state.finished(), command, &proto::StageResult::stage) > 0;
}

proto::StageCommand next_command(const RunConfig& config, const proto::RunState& state, const proto::PlanSet& plans) {
  for (const proto::StageCommand& command : commands_of(config, plans))
    if (!is_finished(state, name_of(command))) return command;
  return {};
}

std::string training_before(const std::string& stage, const RunConfig& config) {
  std::string before = "align";
  for (const char* training : {"distill", "finetune"}) {
    if (training == stage) break;
    if (stage_named(training).is_in(config)) before = training;
  }
  return before;
}

std::string last_training(const RunConfig& config) { return training_before("", config); }

}  // namespace flashmorph
