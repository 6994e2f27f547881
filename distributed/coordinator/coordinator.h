#pragma once

#include "distributed/coordinator/stage_table.h"

namespace flashmorph {

// Takes a run through its stages as a state machine (commands.h): rank 0 looks at the run's state and commands the next
// stage; every rank carries it out (stage_table.h), each stage on its own mesh, from what is on disk, and reports; rank
// 0 writes the state. A stage whose result is on disk is not done again, so a stopped run goes on where it was, on any
// mesh. Every rank calls run().
class Coordinator {
 public:
  // latency: of a budget in milliseconds (latency_of_run).
  Coordinator(const RunInputs& inputs, const proto::LayerLatency& latency, Communicator& world, PlacedModel& placed,
              RunFolder& folder)
      : run_{inputs, latency, world, placed, folder} {}

  void run();

  const proto::PlanSet& plans() const { return run_.plans; }
  const proto::Evaluation& evaluation() const { return run_.evaluation; }

 private:
  void recall();
  proto::StageCommand agreed_next_command();
  void require_as_written(const Stage::Files& files);
  StageCost execute(const proto::StageCommand& command);
  void conclude(const proto::StageCommand& command, const StageCost& cost, int64_t bytes_moved);

  RunUnderWay run_;
};

}  // namespace flashmorph
