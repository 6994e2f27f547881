#pragma once

#include "distributed/communication/communicator.h"

namespace flashmorph {

// SIGINT, SIGTERM and SIGUSR1 ask this process to stop at the next step; the first one restores the default action, so
// a second one stops at once. One object a process, for the life of the run.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Whether any rank was asked; the same answer on all of them. Collective.
  bool agreed(Communicator& world) const;
};

}  // namespace flashmorph
