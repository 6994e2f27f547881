#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/config/run_config.h"
#include "core/data/sample_stream.h"
#include "core/data/samples_ahead.h"
#include "core/model/parameter.h"
#include "core/train/schedule.h"
#include "distributed/checkpoint/regions.h"
#include "distributed/stages/context.h"
#include "distributed/stages/frozen_weights.h"
#include "distributed/stages/non_finite.h"
#include "distributed/stages/step.h"
#include "distributed/stages/step_watch.h"

namespace flashmorph {

// What a training stage moves, as checkpoints and messages need to know it.
struct Trained {
  Parameters weights;                            // of the stage's models; all their other weights are frozen
  Regions regions;                               // share storage with the optimizer's states
  std::function<void(int64_t steps)> resume_at;  // the optimizer's: the regions hold what was after so many steps
  std::function<NamedGradients(const std::vector<at::Tensor>& gradients)> named;
  google::protobuf::Message* own = nullptr;  // what the stage keeps beside its tensors; see StageCheckpoints
};

// All of a training stage but its mathematics, which stands between the calls:
//
//     Training training("align", "12 linear branches", section, {{model}}, context);
//     training.resume(trained);                                  // from the newest checkpoint
//     while (training.next()) {                                  // saves what is due, and stops when asked to
//       const StepResult found = training.run(step_function);    // forward, backward; finite, or the run ends
//       optimizer.step(found.gradients, training.learning_rate());
//       training.finish(found.loss);                             // tells, and looks after ranks and frozen weights
//     }
//
// Every call is collective.
class Training {
 public:
  // The observer hears that the stage starts on `what`. Everything outlives this.
  Training(std::string stage, const std::string& what, const TrainingSection& section, std::vector<StageModel> models,
           StageContext& context);

  // The first micro-batch of the stage, the same for every rank.
  MicroBatches first_micro_batch() const;

  void resume(Trained trained);
  bool next();  // false behind the last step
  StepResult run(const StepFunction& step);
  double learning_rate() const { return rate_.at(progress_.step()); }
  using Tell = std::function<void(const StepReport& report)>;  // the observer's stepped, unless a stage has more to say
  void finish(double loss, const Tell& tell = {});
  void end_early(const std::string& why);  // after this step

  int64_t steps_done() const { return progress_.step(); }
  StageCost cost() const;
  const TrainingSection& section() const { return section_; }
  Mesh& mesh() const { return context_.mesh; }

 private:
  MicroBatches micro_batches();
  void stop_if_asked();

  std::string stage_;
  const TrainingSection& section_;
  std::vector<StageModel> models_;
  StageContext& context_;
  SampleStream data_;
  CosineSchedule rate_;
  SamplesAhead samples_;
  Trained trained_;
  std::optional<FrozenWeights> frozen_;
  std::unique_ptr<StageCheckpoints> checkpoints_;
  proto::StageProgress progress_;
  bool ends_early_ = false;
  Stopwatch watch_;
  std::optional<StepWatch> ranks_;
  std::optional<Phase> phase_;  // of the step under way
};

}  // namespace flashmorph
