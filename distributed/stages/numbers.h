#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/data/sample_stream.h"
#include "core/morph/morphable_model.h"
#include "distributed/stages/context.h"

namespace flashmorph {

// How a stage takes its micro-batches through a model, to go that way again when a number is not finite.
struct ForwardPass {
  const MorphableModel& model;
  Routes routes;                 // of the whole model's layers
  std::string of = "";           // "teacher's "; "" for the stage's own model
  bool beside_branches = false;  // the branches work as well, on states they do not change
  bool to_head = false;          // the last layer's states go on to the head
};

using NamedGradients = std::vector<std::pair<std::string, at::Tensor>>;  // from the first layer to the last

// A step's results, the same on every rank.
struct StepNumbers {
  double loss;
  double gradient;  // a norm or a sum: finite only when every gradient is

  bool are_finite() const;
};

// Ends the run on every rank with the same CommonFailure, before the update. It names stage and step, and what it looks
// for only now, the first thing that is not finite: a weight; else the states of the step's micro-batches, layer by
// layer; else the gradient nearest to the loss. Collective. step: from 0.
[[noreturn]] void stop_at_numbers(const StepNumbers& numbers, const std::string& stage, int64_t step,
                                  const std::vector<ForwardPass>& passes, const NamedGradients& gradients,
                                  const SampleStream& data, StageContext& context);

}  // namespace flashmorph
