#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"
#include "core/rehearsal/tensor_memory.h"
#include "core/select/budget.h"
#include "distributed/forecast/trace.h"
#include "distributed/parallel/layout.h"

namespace flashmorph {

// How a training step is cut: micro-batches of `sequences` rows of `length` tokens, so many for each data rank.
struct StepShape {
  int64_t sequences = 0;
  int64_t length = 0;
  int64_t micro_batches = 0;

  // With the longest of the section's lengths; all have the same tokens a micro-batch.
  static StepShape of(const TrainingSection& section, int64_t data_ranks);
  static StepShape of(const EvaluateSection& section, int64_t data_ranks);  // a batch of the longest samples
};

struct Sent {
  double calls = 0.0;
  double bytes = 0.0;  // of this rank's tensors
};
using TrafficByGroup = std::map<std::pair<std::string, std::string>, Sent>;  // by group and operation

// What one rank computes and sends.
struct RankWork {
  double flop = 0.0;       // matrix products, triangular solves and attention
  TrafficByGroup traffic;  // of groups of more than one rank
};

// And holds, in a step of a stage.
struct RankUse : RankWork {
  LayerRange layers;
  std::map<MemoryKind, int64_t> parameters;  // frozen, branches, hybrid: elements of this rank's slices
  BytesByKind peak;                          // of all tensors, when they were most
  int64_t micro_batches = 0;                 // so many of the step's were rehearsed,
  Trace trace;                               // which are a step of their own: this,
  Trace of_one;                              // and where the step has more, a step of one
};

// The budget of a hybrid; a quarter of the layers where it is in milliseconds, which nobody has measured.
LayerBudget expected_budget(const RunConfig& config, const ModelSpec& spec);

using FullLayers = std::optional<std::vector<int64_t>>;

// One step of a stage (align, select, distill, finetune; of evaluate: the longest batch of samples), as tensor rank 0
// of this pipeline rank does it: the stage's own code on tensors without values, with nobody on the other ranks.
// Nothing of the model but its spec is needed. A hybrid keeps `full_layers`; before they are known, as many as
// expected_budget says, spread evenly.
RankUse rehearse(const std::string& stage, const RunConfig& config, const ModelSpec& spec, const Layout& layout,
                 int64_t pipeline_rank, const FullLayers& full_layers = std::nullopt);

}  // namespace flashmorph
