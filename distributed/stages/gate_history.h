#pragma once

#include <vector>

#include "core/config/run_config.h"
#include "core/select/budget.h"
#include "core/select/gate_budget.h"
#include "distributed/stages/step.h"
#include "proto/run.pb.h"

namespace flashmorph {

// How the gates of a run moved (gates.json), and what that says of a budget, the run's or another.
class GateHistory {
 public:
  // Section and budget outlive this.
  GateHistory(proto::GateSnapshot gates, const SelectSection& section, const LayerBudget& budget);

  void record(const StepResult& step, const PricedGates& moved);
  const proto::GateStep& last() const { return *gates_.history().rbegin(); }
  proto::GateSnapshot& message() { return gates_; }  // as far as the steps say it

  // The step whose gates count: with a falling budget the last whose gates still cost its limit or more, and else the
  // last of all.
  int deciding_step() const;
  proto::GateSnapshot decided() const;      // with the gates that count
  std::vector<int64_t> top_layers() const;  // what they would keep

  bool has_met() const;  // whether the gates have come down to the budget

  // Whether select need not go on (stages.select.stop): its pick has been the same in so many steps before the last,
  // and the pick's margin exceeds the gates' noise.
  bool has_settled() const;

  // The scatter of the gates that count, at most of all gates: moved by a penalty, the standard deviation over the last
  // 10% of the steps (at least 2); under a falling budget, which moves them all, what the second differences of the
  // steps before leave of it (a trend has none). 0 with fewer steps.
  double noise() const;

  // The pick by the gates that count, its margin and noise, and the error of the mixture with them, which the step
  // measured. kv_bytes: of the KV cache, a token and layer with full attention.
  proto::FrontierPoint pick(int64_t kv_bytes) const;

  // The same for K / L of what all layers cost, K = 1 .. L - 1, as far as a falling budget has come: to 1 unless select
  // was stopped. Empty for gates that a penalty moved, which stand for one budget alone.
  std::vector<proto::FrontierPoint> frontier(int64_t kv_bytes) const;

 private:
  int steps() const { return gates_.history_size(); }
  std::vector<double> alpha(int step) const;
  double cost(int step) const;

  proto::GateSnapshot gates_;
  const SelectSection& section_;
  const LayerBudget& budget_;
  double rounding_;  // what a budget comes to may be a sum of many gates
};

}  // namespace flashmorph
