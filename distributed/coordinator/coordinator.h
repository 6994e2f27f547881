#pragma once

#include "distributed/coordinator/stage_table.h"

namespace flashmorph {

// Takes a run through its stages as a state machine (commands.h): rank 0 looks at the run's state and commands the next
// stage; every rank carries it out (stage_table.h), each stage on its own mesh, from what is on disk, and reports; rank
// 0 writes the state. A stage whose result is on disk is not done again, so a stopped run goes on where it was, on any
// mesh. Collective.
void run_stages(RunUnderWay& run);

}  // namespace flashmorph
