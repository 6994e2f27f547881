#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "core/select/gate_budget.h"
#include "core/train/adamw.h"
#include "distributed/stages/training.h"

namespace flashmorph {

// One gate a layer, alpha in [0, 1]: 1 is full attention, 0 linear. A pipeline rank trains those of its own layers, the
// same on all its data and tensor ranks.
class Gates : public Trained {
 public:
  Gates(const MorphableModel& model, Mesh& mesh);  // open: all 1, where the mixture is the teacher

  const at::Tensor& alpha() const { return alpha_l_; }  // [own layers] float64, on the host

  // Moves them by the gradient of the loss, gradient_l of this rank's. Returns those of all layers, and the lambda that
  // would hold them where they are. Collective, and the same on every rank that has the same gates.
  virtual PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t steps_done) = 0;

 protected:
  void depends_on(const AdamW::State& state);  // the next step does: it is what checkpoints hold

  const MorphableModel& model_;
  Mesh& mesh_;
  at::Tensor alpha_l_;
};

// By stages.select.objective:
//   paper    AdamW on the error + lambda * sum of gates, clamped to [0, 1].
//   budget   the error alone, under a budget that falls from all layers to the cheapest one over the stage:
//              m, v = moving means of g and g^2;  s = sqrt(mean over layers of v)
//              gates <- the nearest point of [0, 1]^L to gates - rate m / s that costs what is allowed now.
//            One s for all gates keeps their gradients in proportion, and takes the unit out: an error, and so a model,
//            a thousand times larger moves the gates alike.
std::unique_ptr<Gates> open_gates(const MorphableModel& model, Mesh& mesh, const LayerBudget& budget,
                                  const SelectSection& section);

// One number of each of this rank's layers, of all layers in order; and how often a step gathers so. Collective.
std::vector<double> of_all_layers(const at::Tensor& own_l, const MorphableModel& model, Mesh& mesh);
int gathers_a_step(const SelectSection& section);

// A mixed route for each gate of alpha_l, a leaf where the model is, with their numbers from the host, so that nobody
// waits for a device to read them.
Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l);

}  // namespace flashmorph
