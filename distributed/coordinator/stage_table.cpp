#include <c10/util/Exception.h>

#include <algorithm>

#include "distributed/coordinator/commands.h"
#include "distributed/coordinator/coordinator.h"
#include "distributed/coordinator/plans.h"

// The stages of a run: whether it has one, what one reads and writes, on which mesh, and how it runs.

namespace flashmorph {
namespace {

// What a plan's model after a training stage is read from.
Coordinator::Stage::Files of_hybrid(const RunFolder& run, const std::string& plan, const std::string& after) {
  Coordinator::Stage::Files files = {run.branches_file()};
  if (!after.empty() && after != "align") files.push_back(run.hybrid_file(plan, after));
  return files;
}

}  // namespace

const Coordinator::Stage& Coordinator::stage(const std::string& name) {
  using Command = proto::StageCommand;
  using Files = Stage::Files;
  const auto branches = [](const RunFolder& run, const RunConfig&, const Command&) {
    return Files{run.branches_file()};
  };
  const auto hybrid = [](const RunFolder& run, const Command& command) {
    return Files{run.hybrid_file(command.model(), command.stage())};
  };
  static const Stage all[] = {
      {.name = "latency",  // measured at the start, before anything is written
       .is_in = [](const RunConfig& config) { return config.budget.milliseconds > 0.0; },
       .writes = [](const RunFolder& run, const Command&) { return Files{run.latency_file()}; },
       .run = &Coordinator::keep_latency},
      {.name = "align",
       .mesh = "align",
       .writes = [](const RunFolder& run, const Command&) { return Files{run.branches_file()}; },
       .run = &Coordinator::align_branches},
      {.name = "select",
       .mesh = "select",
       .is_in = [](const RunConfig& config) { return trains_gates(config.stages); },
       .reads = branches,
       .writes = [](const RunFolder& run, const Command&) { return Files{run.gates_file()}; },
       .run = &Coordinator::select_layers},
      {.name = "discretize",
       .reads = [](const RunFolder& run, const RunConfig& config,
                   const Command&) { return asks_a_judge(config.stages) ? Files{run.branches_file()} : Files(); },
       .run = &Coordinator::discretize_gates},
      {.name = "evaluate",
       .mesh = "evaluate",
       .reads = [](const RunFolder& run, const RunConfig&,
                   const Command& command) { return of_hybrid(run, command.model(), command.after()); },
       .run = &Coordinator::evaluate_model},
      {.name = "distill",
       .mesh = "distill",
       .is_in = [](const RunConfig& config) { return config.stages.distill.tokens > 0; },
       .reads = branches,
       .writes = hybrid,
       .run = &Coordinator::distill_hybrid},
      {.name = "finetune",
       .mesh = "finetune",
       .is_in = [](const RunConfig& config) { return config.stages.finetune.tokens > 0; },
       .reads =
           [](const RunFolder& run, const RunConfig& config, const Command& command) {
             return of_hybrid(run, command.model(), training_before("finetune", config));
           },
       .writes = hybrid,
       .run = &Coordinator::finetune_hybrid},
      {.name = "export",
       .mesh = "evaluate",
       .is_in = [](const RunConfig& config) { return config.stages.export_.enabled; },
       .reads = [](const RunFolder& run, const RunConfig& config,
                   const Command&) { return of_hybrid(run, methods_of(config.stages).front(), last_training(config)); },
       .run = &Coordinator::export_hybrid},
  };
  const auto found = std::ranges::find(all, name, &Stage::name);
  TORCH_CHECK(found != std::end(all), "unknown stage ", name);
  return *found;
}

}  // namespace flashmorph
