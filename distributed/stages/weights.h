#pragma once

#include <memory>
#include <vector>

#include "core/model/parameter.h"
#include "distributed/parallel/zero.h"
#include "distributed/stages/training.h"

namespace flashmorph {

// How align, distill and finetune train: for each step the gradients, clipped, and one AdamW update of these weights.
StageCost train_weights(const Parameters& weights, Training& training, const StepFunction& step);

// A step over the mesh, of which the ranks have parts of the loss and of the weights' gradients: gradients clipped,
// `norm` the one they had before. Collective.
StepResult over_mesh(double part_of_loss, const Parameters& weights, const TrainingSection& section, Mesh& mesh);

// Weights that need gradients while this lives, and the AdamW that moves them.
class TrainedWeights {
 public:
  TrainedWeights(Parameters weights, const TrainingSection& section, Mesh& mesh);
  ~TrainedWeights();
  TrainedWeights(const TrainedWeights&) = delete;
  TrainedWeights& operator=(const TrainedWeights&) = delete;

  void update(const std::vector<at::Tensor>& gradients, double learning_rate);  // and forgets the gradients
  Trained as_trained();

 private:
  Parameters weights_;
  const TrainingSection& section_;
  Mesh& mesh_;
  std::unique_ptr<Communicator> alone_;
  DataShardedAdamW optimizer_;
};

}  // namespace flashmorph
