#include "distributed/coordinator/plans.h"

#include <algorithm>
#include <cmath>

#include "core/base/sha256.h"

namespace flashmorph {
namespace {

proto::HybridPlan plan_by(const std::string& method, const LayerBudget& budget, const proto::GateSnapshot& gates) {
  proto::HybridPlan plan;
  plan.set_name(method);
  std::vector<int64_t> kept;
  if (method == "flashmorph") {
    const std::vector<double> scores(gates.alpha().begin(), gates.alpha().end());
    kept = best_layers(scores, budget);
    plan.set_margin(keep_margin(scores, budget));
    plan.set_noise(gate_noise(gates));
    plan.mutable_scores()->Add(scores.begin(), scores.end());
  } else if (method == "uniform") {
    kept = uniform_layers(budget);
  }  // all_linear keeps none
  for (const int64_t layer : kept) plan.add_full_layers(layer);
  return plan;
}

}  // namespace

proto::PlanSet discretize(const RunConfig& config, const LayerBudget& budget, const proto::GateSnapshot& gates) {
  proto::PlanSet set;
  set.set_layers(budget.layers());
  set.set_budget(std::to_string(budget.limit) + " " + budget.unit);
  *set.add_plans() = plan_by(config.stages.select.method, budget, gates);
  for (const std::string& other : config.stages.evaluate.compare)
    if (other != config.stages.select.method) *set.add_plans() = plan_by(other, budget, gates);
  return set;
}

double gate_noise(const proto::GateSnapshot& gates) {
  const int steps = gates.history_size(), last = std::max(2, steps / 10);
  if (steps < last) return 0.0;
  double most = 0.0;
  for (int layer = 0; layer < gates.alpha_size(); ++layer) {
    double mean = 0.0, square = 0.0;
    for (int step = steps - last; step < steps; ++step) mean += gates.history(step).alpha(layer) / last;
    for (int step = steps - last; step < steps; ++step) square += std::pow(gates.history(step).alpha(layer) - mean, 2);
    most = std::max(most, std::sqrt(square / (last - 1)));
  }
  return most;
}

std::string hash_of(const proto::PlanSet& plans) {
  proto::PlanSet hashed = plans;
  hashed.clear_provenance();
  const std::string bytes = hashed.SerializeAsString();  // no maps: the same bits for the same plans
  return sha256_of_bytes(bytes.data(), bytes.size());
}

}  // namespace flashmorph
