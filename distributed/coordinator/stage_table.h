#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "distributed/coordinator/placed_model.h"
#include "distributed/run/run_folder.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// A run under way: what its stages work with, and what they have found so far, the same on every rank.
struct RunUnderWay : RunInputs {
  const proto::LayerLatency& latency;  // of a budget in milliseconds (latency_of_run)
  Communicator& world;
  PlacedModel& placed;
  RunFolder& folder;
  proto::GateSnapshot gates = {};
  proto::PlanSet plans = {};
  proto::Evaluation evaluation = {};

  bool leads() const { return world.rank() == 0; }
  void on_rank_0(const std::function<void()>& work) const;  // where it fails, all ranks do. Collective
};

// A kind of stage: all that the run has to know of it.
struct Stage {
  using Files = std::vector<std::filesystem::path>;
  using Command = proto::StageCommand;
  const char* name;
  const char* mesh;  // the stage whose layout it works on; nullptr: it needs no model
  bool (*is_in)(const RunConfig&);
  Files (*reads)(const RunUnderWay&, const Command&);   // of what earlier stages have written
  Files (*writes)(const RunUnderWay&, const Command&);  // what later ones go on from; plans are hashed apart
  StageCost (*run)(RunUnderWay&, const Command&);       // what every rank does
};

const Stage& stage_named(const std::string& name);

// The model on a stage's mesh, with its trained branches when it is asked for them. Collective.
void place(RunUnderWay& run, const char* mesh, bool with_branches);

// What a budget in milliseconds needs: each layer's latency, measured on the mesh of evaluate, or, unless `fresh`, as
// an earlier start of this run has left it. Empty for other budgets. BadInput for a budget that cannot be met. To be
// called before anything is written. Collective.
proto::LayerLatency latency_of_run(const RunConfig& config, PlacedModel& placed, const RunFolder& folder, bool fresh,
                                   Communicator& world);

}  // namespace flashmorph
