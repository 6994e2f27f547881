#pragma once

#include <string>

#include "core/config/run_config.h"
#include "core/data/corpus.h"
#include "core/data/passkeys.h"
#include "core/tasks/material.h"
#include "distributed/checkpoint/stage_checkpoints.h"
#include "distributed/health/stop_signal.h"
#include "distributed/health/watchdog.h"
#include "distributed/parallel/mesh.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/stages/observer.h"

namespace flashmorph {

// What the stages of a run work with; owned by the launcher.
struct RunInputs {
  const RunConfig& config;
  const Corpus& corpus;
  const PasskeyTask& passkeys;
  StageObserver& observer;  // does nothing on ranks other than 0
  StopSignal& stop;
  Watchdog& watchdog;
  const TaskMaterial* tasks = nullptr;  // for stages.evaluate.tasks
};

// And one of them.
struct StageContext : RunInputs {
  Mesh& mesh;
  CheckpointPlace checkpoints = {};  // none by default
};

// Tokens and wall time of one stage, on rank 0's clock.
struct StageCost {
  int64_t tokens = 0;
  double seconds = 0.0;
};

}  // namespace flashmorph
