#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/config/run_config.h"
#include "core/data/sample_stream.h"
#include "core/data/samples_ahead.h"
#include "core/model/parameter.h"
#include "core/morph/morphable_model.h"
#include "core/train/schedule.h"
#include "distributed/checkpoint/regions.h"
#include "distributed/stages/context.h"
#include "distributed/stages/frozen_in_float8.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/step.h"
#include "distributed/stages/step_watch.h"

namespace flashmorph {

// What a training stage moves, as checkpoints and messages need to know it.
struct Trained {
  virtual ~Trained() = default;
  virtual void resume_at(int64_t steps) {}  // the regions hold what was after so many steps

  Parameters parameters;                     // in the order of a step's gradients
  Regions regions;                           // share storage with what the next step depends on
  google::protobuf::Message* own = nullptr;  // what the stage keeps beside its tensors; see StageCheckpoints
};

// All of a training stage but its mathematics, which stands between the calls:
//
//     Training training("align", "12 linear branches", section, {{model}}, trained, context);
//     while (training.next()) {                                  // saves what is due, and stops when asked to
//       const StepResult found = training.run(step_function);    // forward, backward; finite, or the run ends
//       optimizer.step(found.gradients, training.learning_rate());
//       training.finish(found.loss);                             // tells, and looks after ranks and frozen weights
//     }
//
// Every call is collective.
class Training {
 public:
  // The observer hears that the stage starts on `what`; it goes on from its newest checkpoint. Everything outlives
  // this.
  Training(std::string stage, const std::string& what, const TrainingSection& section, std::vector<StageModel> models,
           Trained& trained, StageContext& context);

  bool next();                   // false behind the last step
  MicroBatches micro_batches();  // of the next step
  StepResult run(const StepFunction& step);
  double learning_rate() const { return rate_.at(progress_.step()); }
  using Tell = std::function<void(const StepReport& report)>;  // the observer's stepped, unless a stage has more to say
  void finish(double loss, const Tell& tell = {});
  void end_early(const std::string& why);  // after this step

  int64_t steps_done() const { return progress_.step(); }
  StageCost cost() const;

 private:
  void stop_if_asked();

  // Ends the run on every rank with the same CommonFailure, before the update. It names stage and step, and what it
  // looks for only now, the first thing that is not finite: a weight; else a state, as the step makes them once more;
  // else the gradient nearest to the loss.
  [[noreturn]] void stop_at_non_finite(const StepResult& found, const StepFunction& again, const MicroBatches& batches);

  std::string stage_;
  const TrainingSection& section_;
  std::vector<StageModel> models_;
  StageContext& context_;
  SampleStream data_;
  CosineSchedule rate_;
  SamplesAhead samples_;
  Trained& trained_;
  FrozenInFloat8 in_float8_;
  FrozenWeights frozen_;
  StageCheckpoints checkpoints_;
  proto::StageProgress progress_;
  bool ends_early_ = false;
  Stopwatch watch_;
  StepWatch ranks_;
  std::optional<Phase> phase_;  // of the step under way
};

}  // namespace flashmorph
