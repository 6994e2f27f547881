#pragma once

#include <memory>
#include <vector>

#include "core/model/parameter.h"
#include "distributed/parallel/zero.h"
#include "distributed/stages/training.h"

namespace flashmorph {

// A step over the mesh, of which the ranks have parts of the loss (a float64 number, where it was made) and of the
// weights' gradients: gradients clipped, `norm` the one they had before. Collective.
StepResult over_mesh(const at::Tensor& part_of_loss, const Parameters& weights, const TrainingSection& section,
                     Mesh& mesh);

// Weights that need gradients while this lives, and the AdamW that moves them: how align, distill and finetune train.
class TrainedWeights : public Trained {
 public:
  TrainedWeights(Parameters weights, const TrainingSection& section, Mesh& mesh);
  ~TrainedWeights() override;
  TrainedWeights(const TrainedWeights&) = delete;
  TrainedWeights& operator=(const TrainedWeights&) = delete;

  // For each step its gradients, clipped, and an update.
  StageCost train(Training& training, const StepFunction& step);
  void update(const std::vector<at::Tensor>& gradients, double learning_rate);  // and forgets the gradients
  void resume_at(int64_t steps) override { optimizer_.resume_at(steps); }

 private:
  std::unique_ptr<Communicator> alone_;
  DataShardedAdamW optimizer_;
};

}  // namespace flashmorph
