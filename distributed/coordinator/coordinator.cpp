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

// Files of the run, before they are read. Collective.
void require_as_written(RunUnderWay& run, const Stage::Files& files) {
  run.on_rank_0([&] {
    for (const std::filesystem::path& file : files) run.folder.require_as_written(file);
  });
}

// What every finished stage has left under checkpoints/: its result is on disk.
void forget_checkpoints(const RunFolder& folder) {
  for (const proto::StageResult& result : folder.state().finished())
    StageFolders{folder.checkpoints_folder(), result.stage()}.remove_all();
}

// What earlier starts of this run have left on disk.
void recall(RunUnderWay& run) {
  RunFolder& folder = run.folder;
  require_as_written(run, {folder.latency_file(), folder.gates_file()});
  read_on_all_ranks(folder.gates_file(), run.gates, run.world);
  const bool has_plans = is_finished(folder.state(), "discretize");  // as rank 0 knows, which alone reads
  read_on_all_ranks(has_plans ? folder.plan_file() : "", run.plans, run.world);
  read_on_all_ranks(folder.evaluation_file(), run.evaluation, run.world);
  run.on_rank_0([&] {
    if (const std::string expected = folder.state().plan_hash(), found = hash_of(run.plans);
        !expected.empty() && expected != found)
      throw BadInput(
          folder.plan_file().string(),
          fmt::format("is not what this run's discretize wrote: its plans' hash is {}, expected {}", found, expected));
    for (const proto::StageResult& result : folder.state().finished())
      run.observer.skipped(result.stage(), folder.path().string());
    forget_checkpoints(folder);
  });
}

// Ranks with other plans would run another model, and might wait for each other forever.
proto::StageCommand agreed_next_command(RunUnderWay& run) {
  proto::StageCommand command;
  if (run.leads()) {
    command = next_command(run.config, run.folder.state(), run.plans);
    command.set_plan_hash(run.folder.state().plan_hash());
  }
  command.ParseFromString(run.world.broadcast_text(command.SerializeAsString(), 0));
  on_all_ranks(run.world, [&] {
    if (const std::string held = hash_of(run.plans); held != command.plan_hash())
      throw BadInput(run.folder.plan_file().string(),
                     fmt::format("rank {} holds other plans than rank 0 before {}: their hash is {}, expected {}",
                                 run.world.rank(), command.stage().empty() ? "the run's end" : name_of(command), held,
                                 command.plan_hash()));
  });
  return command;
}

StageCost execute(RunUnderWay& run, const proto::StageCommand& command) {
  const Stage& stage = stage_named(command.stage());
  const Stage::Files files = stage.reads(run, command);
  require_as_written(run, files);
  if (stage.mesh != nullptr) place(run, stage.mesh, std::ranges::count(files, run.folder.branches_file()) > 0);
  return stage.run(run, command);
}

// Every rank has done its part; the stage is finished once rank 0 has written so.
void conclude(RunUnderWay& run, const proto::StageCommand& command, const StageCost& cost, int64_t bytes_moved) {
  const Phase saving(run.watchdog, Work::save, name_of(command));
  const at::Tensor used = run.world.all_gather(at::tensor({bytes_moved, peak_bytes()}, at::kLong));  // a row a rank
  proto::StageResult result;
  result.set_stage(name_of(command));
  result.set_tokens(cost.tokens);
  result.set_seconds(cost.seconds);
  result.set_ranks(run.world.size());
  result.set_bytes_moved(used.select(1, 0).sum().item<int64_t>());
  result.set_peak_bytes(used.select(1, 1).max().item<int64_t>());
  run.on_rank_0([&] {
    const Stage& stage = stage_named(command.stage());
    run.folder.finish(result, stage.writes(run, command), hash_of(run.plans));
    forget_checkpoints(run.folder);
  });
  run.observer.finished(result.stage(), result.seconds());
}

}  // namespace

void run_stages(RunUnderWay& run) {
  recall(run);
  for (auto command = agreed_next_command(run); !command.stage().empty(); command = agreed_next_command(run)) {
    run.stop.throw_if_agreed(run.world, "before " + name_of(command));
    const int64_t bytes_before = run.placed.bytes_moved();
    const StageCost cost = execute(run, command);
    conclude(run, command, cost, run.placed.bytes_moved() - bytes_before);
  }
}

}  // namespace flashmorph
