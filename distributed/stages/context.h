#pragma once

#include <string>

#include "core/base/clock.h"
#include "core/config/run_config.h"
#include "core/data/corpus.h"
#include "core/data/passkeys.h"
#include "distributed/checkpoint/stage_checkpoints.h"
#include "distributed/health/stop_signal.h"
#include "distributed/health/watchdog.h"
#include "distributed/parallel/mesh.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/stages/observer.h"

namespace flashmorph {

// What every stage works with; owned by the coordinator.
struct StageContext {
  const RunConfig& config;
  Mesh& mesh;
  const Corpus& corpus;
  const PasskeyTask& passkeys;
  StageObserver& observer;  // does nothing on ranks other than 0
  StopSignal& stop;
  Watchdog& watchdog;
  CheckpointPlace checkpoints = {};  // of this stage; none by default
};

// Tokens and wall time of one stage, on rank 0's clock.
struct StageCost {
  int64_t tokens = 0;
  double seconds = 0.0;
};

// The stage's checkpoints of what it trains.
StageCheckpoints checkpoints_of(StageContext& context, Regions regions);

// Takes the stage and its optimizer to the newest checkpoint, if there is one, and says how far it is.
template <class Optimizer>
proto::StageProgress resumed(StageCheckpoints& checkpoints, Optimizer& optimizer, int64_t batch_tokens,
                             StageContext& context) {
  proto::StageProgress progress = checkpoints.resume();
  if (progress.step() > 0) {
    optimizer.resume_at(progress.step());
    context.observer.resumed(progress.step(), progress.step() * batch_tokens);
  }
  return progress;
}

// One more step is done.
void advance(proto::StageProgress& progress, const Stopwatch& watch, double loss);

// Throws Stopped on every rank when any rank was asked to stop; the second form writes a checkpoint first. Collective.
void stop_if_asked(StageContext& context, const std::string& stage, int64_t step);
void stop_if_asked(StageContext& context, const std::string& stage, StageCheckpoints& checkpoints,
                   const proto::StageProgress& progress);

}  // namespace flashmorph
