#pragma once

#include <string>

#include "core/base/clock.h"
#include "distributed/communication/communicator.h"

namespace flashmorph {

enum class StopReason : int { none, signal, time_limit, slurm };  // where ranks differ, the last one counts
const char* text_of(StopReason reason);

// Whether this start of the run is to end early. SIGINT, SIGTERM and SIGUSR1 ask for it; the first one restores the
// default action of all three, so a second one ends the process at once. So does a time limit, and the end of a Slurm
// job, ahead of which there must be time for two steps and a save. One object a process, for the life of the run.
class StopSignal {
 public:
  // `time_limit`: seconds from now; `slurm_end`: Unix time in seconds. 0: none.
  explicit StopSignal(double time_limit = 0.0, double slurm_end = 0.0);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Whether this process has a reason to stop now.
  StopReason here(double seconds_to_save = 0.0) const;

  // Whether any rank has; the same answer on all of them. Collective, once a step: the longest of the last times
  // between two calls is what a step may take.
  StopReason agreed(Communicator& world, double seconds_to_save = 0.0);

  // Stopped on every rank when any has: "stopped before select: a signal asked for it". Collective.
  void throw_if_agreed(Communicator& world, const std::string& where);

 private:
  Stopwatch since_start_, since_asked_;
  double time_limit_;
  double slurm_end_;
  double step_seconds_ = 0.0;
};

// SLURM_JOB_END_TIME of the environment; 0 outside a job.
double slurm_end_time();

}  // namespace flashmorph
