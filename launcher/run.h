#pragma once

#include "distributed/communication/communicator.h"
#include "launcher/command_line.h"

namespace flashmorph {

// A whole run on the ranks of `world`. Everything the user gave is checked on all ranks before the first step and
// before anything on disk changes. Returns the exit code: 0, or kStoppedEarly; throws BadInput, or Stopped while it
// loads, on every rank.
int run(const CommandLine& line, Communicator& world);

}  // namespace flashmorph
