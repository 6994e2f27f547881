#include "distributed/coordinator/coordinator.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>

#include "core/base/bad_input.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/coordinator/commands.h"
#include "distributed/coordinator/plans.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

int64_t peak_bytes() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return int64_t{1024} * used.ru_maxrss;
}

}  // namespace

void Coordinator::run() {
  recall();
  for (auto command = agreed_next_command(); !command.stage().empty(); command = agreed_next_command()) {
    run_.inputs.stop.throw_if_agreed(run_.world, "before " + name_of(command));
    const int64_t bytes_before = run_.placed.bytes_moved();
    const StageCost cost = execute(command);
    conclude(command, cost, run_.placed.bytes_moved() - bytes_before);
  }
}

// What earlier starts of this run have left on disk.
void Coordinator::recall() {
  RunFolder& folder = run_.folder;
  require_as_written({folder.latency_file(), folder.gates_file()});
  read_on_all_ranks(folder.gates_file(), run_.gates, run_.world);
  const bool has_plans = is_finished(folder.state(), "discretize");  // as rank 0 knows, which alone reads
  read_on_all_ranks(has_plans ? folder.plan_file() : "", run_.plans, run_.world);
  read_on_all_ranks(folder.evaluation_file(), run_.evaluation, run_.world);
  on_all_ranks(run_.world, [&] {
    if (!run_.leads()) return;
    if (const std::string expected = folder.state().plan_hash(), found = hash_of(run_.plans);
        !expected.empty() && expected != found)
      throw BadInput(
          folder.plan_file().string(),
          fmt::format("is not what this run's discretize wrote: its plans' hash is {}, expected {}", found, expected));
    for (const proto::StageResult& result : folder.state().finished())
      run_.inputs.observer.skipped(result.stage(), folder.path().string());
    forget_checkpoints(folder);
  });
}

// Ranks with other plans would run another model, and might wait for each other forever.
proto::StageCommand Coordinator::agreed_next_command() {
  proto::StageCommand command;
  if (run_.leads()) {
    command = next_command(run_.inputs.config, run_.folder.state(), run_.plans);
    command.set_plan_hash(run_.folder.state().plan_hash());
  }
  command.ParseFromString(run_.world.broadcast_text(command.SerializeAsString(), 0));
  on_all_ranks(run_.world, [&] {
    if (const std::string held = hash_of(run_.plans); held != command.plan_hash())
      throw BadInput(run_.folder.plan_file().string(),
                     fmt::format("rank {} holds other plans than rank 0 before {}: their hash is {}, expected {}",
                                 run_.world.rank(), command.stage().empty() ? "the run's end" : name_of(command), held,
                                 command.plan_hash()));
  });
  return command;
}

// Files of the run, before they are read. Collective.
void Coordinator::require_as_written(const Stage::Files& files) {
  on_all_ranks(run_.world, [&] {
    if (!run_.leads()) return;
    for (const std::filesystem::path& file : files) run_.folder.require_as_written(file);
  });
}

StageCost Coordinator::execute(const proto::StageCommand& command) {
  const Stage& stage = stage_named(command.stage());
  const Stage::Files files = stage.reads(run_.folder, run_.inputs.config, command);
  require_as_written(files);
  if (stage.mesh != nullptr) place(run_, stage.mesh, std::ranges::count(files, run_.folder.branches_file()) > 0);
  return stage.run(run_, command);
}

// Every rank has done its part; the stage is finished once rank 0 has written so.
void Coordinator::conclude(const proto::StageCommand& command, const StageCost& cost, int64_t bytes_moved) {
  const Phase saving(run_.inputs.watchdog, Work::save, name_of(command));
  const at::Tensor used = run_.world.all_gather(at::tensor({bytes_moved, peak_bytes()}, at::kLong));  // a row a rank
  proto::StageResult result;
  result.set_stage(name_of(command));
  result.set_tokens(cost.tokens);
  result.set_seconds(cost.seconds);
  result.set_ranks(run_.world.size());
  result.set_bytes_moved(used.select(1, 0).sum().item<int64_t>());
  result.set_peak_bytes(used.select(1, 1).max().item<int64_t>());
  on_all_ranks(run_.world, [&] {
    if (!run_.leads()) return;
    const Stage& stage = stage_named(command.stage());
    run_.folder.finish(result, stage.writes(run_.folder, run_.inputs.config, command), hash_of(run_.plans));
    forget_checkpoints(run_.folder);
  });
  run_.inputs.observer.finished(result.stage(), result.seconds());
}

}  // namespace flashmorph
