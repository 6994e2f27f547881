#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/model/model_spec.h"

namespace flashmorph {

// What full attention costs in each layer and how much of it there is, in one whole unit.
struct LayerBudget {
  std::vector<int64_t> costs;  // of full attention above linear attention, a layer; at least 0
  int64_t limit = 0;
  std::string unit;  // layers, bytes a token, microseconds
  std::string key;   // budget.full_layers, ...: for messages

  static LayerBudget of_layers(int64_t layers, int64_t keep);  // each layer costs 1; 0 <= keep <= layers

  int64_t layers() const { return static_cast<int64_t>(costs.size()); }
  bool allows(const std::vector<int64_t>& kept) const;
};

// How long each layer's two attentions take, in milliseconds, a forward over budget.length tokens.
struct LayerLatency {
  std::vector<double> full;
  std::vector<double> linear;
};

// The budget that the run asks for. `latency` is only read when it is in milliseconds: its limit is what is left above
// all-linear attention. BadInput when it allows no layer, or all of them.
LayerBudget layer_budget(const BudgetSection& budget, const ModelSpec& spec, int64_t element_bytes,
                         const LayerLatency& latency = {});

// The layers to keep, ascending: the largest sum of scores (in steps of 2^-40) that the budget allows, exactly, by
// dynamic programming; with equal costs the top K. Among equal sums the set with more layers, so that a score of 0
// still fills the budget; among those the one whose lowest layer is lower, then its second lowest, and so on.
// Scores are finite and not negative.
std::vector<int64_t> best_layers(const std::vector<double>& scores, const LayerBudget& budget);

// By how much the sum of scores falls in the best choice that leaves out one of the kept layers: with equal costs the
// score of the last kept layer minus that of the first dropped one. 0 when nothing is kept or dropped.
double keep_margin(const std::vector<double>& scores, const LayerBudget& budget);

}  // namespace flashmorph
