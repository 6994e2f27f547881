#pragma once

#include <string>
#include <vector>

#include "core/select/budget.h"
#include "distributed/coordinator/placed_model.h"
#include "distributed/run/run_folder.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// What a run works with besides its model; owned by the launcher.
struct RunInputs {
  const RunConfig& config;
  const Corpus& corpus;
  const PasskeyTask& passkeys;
  const proto::LayerLatency& latency;  // of a budget in milliseconds (latency_of_run)
  StageObserver& observer;             // does nothing on ranks other than 0
  StopSignal& stop;
  Watchdog& watchdog;
  const TaskMaterial* tasks = nullptr;  // for stages.evaluate.tasks
};

// What a budget in milliseconds needs: each layer's latency, measured on the mesh of evaluate, or, unless `fresh`, as
// an earlier start of this run has left it. Empty for other budgets. BadInput for a budget that cannot be met. To be
// called before anything is written. Collective.
proto::LayerLatency latency_of_run(const RunConfig& config, PlacedModel& placed, const RunFolder& folder, bool fresh,
                                   Communicator& world);

// Takes a run through its stages as a state machine (commands.h): rank 0 looks at the run's state and commands the next
// stage; every rank carries it out, each stage on its own mesh, from what is on disk, and reports; rank 0 writes the
// state. A stage whose result is on disk is not done again, so a stopped run goes on where it was, on any mesh. Every
// rank calls run().
class Coordinator {
 public:
  // A kind of stage: all that the run has to know of it.
  struct Stage {
    using Files = std::vector<std::filesystem::path>;
    const char* name;
    const char* mesh;                 // the stage whose layout it works on; nullptr: it needs no model
    bool (*is_in)(const RunConfig&);  // whether the run has it
    Files (*reads)(const RunFolder&, const RunConfig&, const proto::StageCommand&);  // what earlier stages have written
    Files (*writes)(const RunFolder&,
                    const proto::StageCommand&);                // what later ones go on from; plans are hashed apart
    StageCost (Coordinator::*run)(const proto::StageCommand&);  // what every rank does
  };
  static const Stage& stage(const std::string& name);

  Coordinator(RunInputs inputs, Communicator& world, PlacedModel& placed, RunFolder& folder);

  void run();

  const proto::PlanSet& plans() const { return plans_; }
  const proto::Evaluation& evaluation() const { return evaluation_; }

 private:
  void recall();
  proto::StageCommand agreed_next_command();
  void check_plans(const proto::StageCommand& command) const;
  void require_as_written(const std::filesystem::path& file);
  StageCost execute(const proto::StageCommand& command);
  void conclude(const proto::StageCommand& command, proto::StageReport report);

  StageCost keep_latency(const proto::StageCommand& command);
  StageCost align_branches(const proto::StageCommand& command);
  StageCost select_layers(const proto::StageCommand& command);
  StageCost discretize_gates(const proto::StageCommand& command);
  StageCost evaluate_model(const proto::StageCommand& command);
  StageCost distill_hybrid(const proto::StageCommand& command);
  StageCost finetune_hybrid(const proto::StageCommand& command);
  StageCost export_hybrid(const proto::StageCommand& command);

  proto::Measurement measure(const proto::StageCommand& command);
  void pick_by_judging();
  void place(const char* mesh, bool with_branches);  // the model, with its trained branches, on a stage's mesh
  void save_hybrid(const MorphableModel& hybrid, const proto::StageCommand& command);
  MorphableModel hybrid(const proto::HybridPlan& plan, const std::string& after);
  LayerBudget budget();
  StageContext context(const std::string& command = "");
  CheckpointPlace checkpoints_of(const std::string& command);
  void forget_checkpoints();
  bool leads() const { return world_.rank() == 0; }
  bool finished(const std::string& stage);
  void write(const std::filesystem::path& file, const google::protobuf::Message& message);
  proto::Provenance provenance(const std::string& stage, const StageCost& cost) const;
  const proto::HybridPlan& plan_of(const std::string& name) const;
  Routes routes_of(const proto::HybridPlan& plan) const;

  RunInputs inputs_;
  Communicator& world_;
  PlacedModel& placed_;
  RunFolder& folder_;
  proto::GateSnapshot gates_;
  proto::PlanSet plans_;
  proto::Evaluation evaluation_;
};

}  // namespace flashmorph
