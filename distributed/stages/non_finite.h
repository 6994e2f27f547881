#pragma once

#include <string>
#include <utility>
#include <vector>

#include "distributed/parallel/mesh.h"
#include "distributed/stages/step.h"

namespace flashmorph {

// A model that a stage works with, by the words before the names of its weights and layers.
struct StageModel {
  const MorphableModel& model;
  std::string of = "";  // "teacher's "; "" for the stage's own
};

using NamedGradients = std::vector<std::pair<std::string, at::Tensor>>;  // from the first layer to the last

// A step that has gone wrong, to be gone through once more.
struct SuspectStep {
  std::string stage;
  int64_t step;  // from 0
  const std::vector<StageModel>& models;
  NamedGradients gradients;
  const StepFunction& again;
  const MicroBatches& batches;
};

// Ends the run on every rank with the same CommonFailure, before the update. It names stage and step, and what it looks
// for only now, the first thing that is not finite: a weight; else a state, as the step makes them once more; else the
// gradient nearest to the loss. Collective.
[[noreturn]] void stop_at_non_finite(const StepResult& found, const SuspectStep& suspect, Mesh& mesh);

}  // namespace flashmorph
