#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "core/select/gate_budget.h"
#include "core/train/adamw.h"
#include "distributed/stages/training.h"
#include "proto/run.pb.h"

namespace flashmorph {

// How the error's gradient moves the gates. Collective, and the same on every rank that has the same gates.
class GateDescent {
 public:
  virtual ~GateDescent() = default;

  // gradient_l: of the loss, by this rank's gates, which move. Returns those of all layers, and the lambda that would
  // hold them where they are.
  virtual PricedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t steps_done) = 0;

  virtual AdamW::State state() const = 0;  // shares storage with what the next step depends on
  virtual void resume_at(int64_t steps) = 0;
};

// One gate a layer, alpha in [0, 1]: 1 is full attention, 0 linear. A pipeline rank trains those of its own layers, the
// same on all its data and tensor ranks.
class Gates {
 public:
  // Open: all 1, where the mixture is the teacher. Or all at another value.
  Gates(const MorphableModel& model, Mesh& mesh, double at = 1.0);

  // [own layers] float64, on the host: what an optimizer moves.
  const at::Tensor& alpha() const { return alpha_l_; }
  void set(const std::vector<double>& of_all_layers);

  // A copy where the model is, for a micro-batch of its own: its gradient stays apart from the others'.
  at::Tensor leaf() const;

  // Numbers of all layers' gates, in order, from one of each of this rank's. Collective.
  std::vector<double> of_all_layers(const at::Tensor& own_l) const;

  Trained trained_by(GateDescent& descent, proto::GateSnapshot& history);  // whose history checkpoints hold

 private:
  const MorphableModel& model_;
  Mesh& mesh_;
  at::Tensor alpha_l_;
};

// A mixed route for each gate of alpha_l, a leaf where the model is, with their numbers from the host, so that nobody
// waits for a device to read them.
Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l);

// By stages.select.objective:
//   paper    AdamW on the error + lambda * sum of gates, clamped to [0, 1].
//   budget   the error alone, under a budget that falls from all layers to the cheapest one over the stage:
//              m, v = moving means of g and g^2;  s = sqrt(mean over layers of v)
//              gates <- the nearest point of [0, 1]^L to gates - rate m / s that costs what is allowed now.
//            One s for all gates keeps their gradients in proportion, and takes the unit out: an error, and so a model,
//            a thousand times larger moves the gates alike.
std::unique_ptr<GateDescent> gate_descent(Gates& gates, const LayerBudget& budget, const SelectSection& section);

// How often a step gathers a number of every gate.
int gathers_a_step(const SelectSection& section);

}  // namespace flashmorph
