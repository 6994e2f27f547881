#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "core/config/run_config.h"
#include "core/select/budget.h"
#include "core/train/adamw.h"
#include "distributed/stages/gates.h"

namespace flashmorph {

// How the error's gradient moves the gates. Collective, and the same on every rank that has the same gates.
class GateDescent {
 public:
  virtual ~GateDescent() = default;

  // gradient_l: of the loss, by this rank's gates, which move.
  virtual MovedGates step(const at::Tensor& gradient_l, double learning_rate, int64_t steps_done) = 0;

  virtual AdamW::State state() const = 0;  // shares storage with what the next step depends on
  virtual void resume_at(int64_t steps) = 0;
};

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
