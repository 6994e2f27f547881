#include "distributed/stages/weights.h"

#include <ATen/ATen.h>

#include "distributed/parallel/gradients.h"

namespace flashmorph {

StepResult over_mesh(const at::Tensor& part_of_loss, const Parameters& weights, const TrainingSection& section,
                     Mesh& mesh) {
  const DataSum over_data = section.parallel.zero ? DataSum::own_partition : DataSum::whole;
  std::vector<at::Tensor> gradients = reduced_gradients(weights, mesh, over_data);
  const double norm = clip_gradients(weights, gradients, section.clip, mesh, over_data);
  at::Tensor loss = part_of_loss.cpu().view({1});    // not earlier: a device is waited for once, with its norm
  mesh.pipeline().all_reduce(loss, Reduction::sum);  // of the layers
  mesh.data().all_reduce(loss, Reduction::sum);      // of the samples; tensor ranks have the same numbers
  return {loss.item<double>(), std::move(gradients), norm};
}

TrainedWeights::TrainedWeights(Parameters weights, const TrainingSection& section, Mesh& mesh)
    : alone_(single_communicator("data")),
      optimizer_(values_of(weights),
                 {.beta1 = section.beta1, .beta2 = section.beta2, .weight_decay = section.weight_decay},
                 section.parallel.zero ? mesh.data() : *alone_) {
  parameters = std::move(weights);
  regions = regions_of(parameters, optimizer_, mesh, section.parallel.zero);
  for (const Parameter& weight : parameters) weight.value.set_requires_grad(true);
}

TrainedWeights::~TrainedWeights() {
  for (const Parameter& weight : parameters) weight.value.set_requires_grad(false);
}

StageCost TrainedWeights::train(Training& training, const StepFunction& step) {
  while (training.next()) {
    const StepResult found = training.run(step);
    update(found.gradients, training.learning_rate());
    training.finish(found.loss);
  }
  return training.cost();
}

void TrainedWeights::update(const std::vector<at::Tensor>& gradients, double learning_rate) {
  optimizer_.step(gradients, learning_rate);
  for (const Parameter& weight : parameters) weight.value.mutable_grad().reset();
}

}  // namespace flashmorph
