#include "distributed/health/stop_signal.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>

#include "core/base/endings.h"

namespace flashmorph {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1};
constexpr double kToLeave = 5.0;     // seconds for the ranks to end, after the save
constexpr double kForgetting = 0.9;  // of the longest step, a step

volatile std::sig_atomic_t asked = 0;  // a signal handler can reach nothing else

void restore_default_actions() {
  for (const int signal : kSignals) std::signal(signal, SIG_DFL);
}

void remember(int) {
  asked = 1;
  restore_default_actions();
}

}  // namespace

const char* text_of(StopReason reason) {
  switch (reason) {
    case StopReason::none:
      return "nobody asked";
    case StopReason::signal:
      return "a signal asked for it";
    case StopReason::time_limit:
      return "run.time_limit is over";
    case StopReason::slurm:
      return "the Slurm job is about to end";
  }
  return "";
}

StopSignal::StopSignal(double time_limit, double slurm_end) : time_limit_(time_limit), slurm_end_(slurm_end) {
  asked = 0;
  for (const int signal : kSignals) std::signal(signal, remember);
}

StopSignal::~StopSignal() { restore_default_actions(); }

StopReason StopSignal::here(double seconds_to_save) const {
  if (slurm_end_ > 0.0 && unix_time() + 2.0 * step_seconds_ + seconds_to_save + kToLeave >= slurm_end_)
    return StopReason::slurm;
  if (time_limit_ > 0.0 && since_start_.seconds() >= time_limit_) return StopReason::time_limit;
  return asked != 0 ? StopReason::signal : StopReason::none;
}

StopReason StopSignal::agreed(Communicator& world, double seconds_to_save) {
  step_seconds_ = std::max(kForgetting * step_seconds_, since_asked_.seconds());
  since_asked_ = Stopwatch();
  at::Tensor any = at::full({1}, static_cast<int64_t>(here(seconds_to_save)), at::kLong);
  world.all_reduce(any, Reduction::max);
  return static_cast<StopReason>(any.item<int64_t>());
}

void StopSignal::throw_if_agreed(Communicator& world, const std::string& where) {
  if (const StopReason reason = agreed(world); reason != StopReason::none)
    throw Stopped("stopped " + where + ": " + text_of(reason));
}

double slurm_end_time() {
  const char* end = std::getenv("SLURM_JOB_END_TIME");
  return end == nullptr ? 0.0 : std::atof(end);
}

}  // namespace flashmorph
