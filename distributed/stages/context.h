#pragma once

#include <chrono>
#include <stdexcept>

#include "core/config/run_config.h"
#include "core/data/corpus.h"
#include "core/data/passkeys.h"
#include "distributed/health/stop_signal.h"
#include "distributed/health/watchdog.h"
#include "distributed/parallel/mesh.h"
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
};

// A person or a scheduler asked to stop; every rank throws it at the same step.
class Stopped : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Tokens and wall time of one stage, on rank 0's clock.
struct StageCost {
  int64_t tokens = 0;
  double seconds = 0.0;
};

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Throws Stopped on every rank when any rank was asked to stop.
void stop_if_asked(StageContext& context, const std::string& stage, int64_t step);

}  // namespace flashmorph
