#include "distributed/coordinator/plans.h"

#include <algorithm>
#include <cmath>

#include "core/base/sha256.h"
#include "core/select/by_gates.h"
#include "core/select/selector.h"
#include "distributed/stages/gates.h"

namespace flashmorph {
namespace {

proto::HybridPlan plan_by(const std::string& method, const Evidence& evidence) {
  const Pick pick = selector_named(method).pick(evidence);
  proto::HybridPlan plan;
  plan.set_name(method);
  plan.set_margin(pick.margin);
  plan.set_noise(pick.noise);
  plan.mutable_full_layers()->Add(pick.full_layers.begin(), pick.full_layers.end());
  plan.mutable_scores()->Add(pick.scores.begin(), pick.scores.end());
  return plan;
}

double noise_of(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget) {
  if (section.own.of<GateSettings>().has_penalty()) return gate_noise(gates);
  return falling_gate_noise(gates, deciding_step(gates, section, budget));
}

}  // namespace

proto::PlanSet discretize(const RunConfig& config, const LayerBudget& budget, const proto::GateSnapshot& gates,
                          JudgedSets* judged) {
  proto::PlanSet set;
  set.set_layers(budget.layers());
  set.set_budget(std::to_string(budget.limit) + " " + budget.unit);
  const Evidence evidence{.settings = config.stages.select,
                          .budget = budget,
                          .gates = {gates.alpha().begin(), gates.alpha().end()},
                          .gate_noise = noise_of(gates, config.stages.select, budget),
                          .judge = [judged](const std::vector<int64_t>& kept) { return judged->judge(kept); }};
  for (const std::string& method : methods_of(config.stages)) {
    proto::HybridPlan& plan = *set.add_plans() = plan_by(method, evidence);
    if (selector_named(method).needs_judge(config.stages.select)) *plan.mutable_judging() = judged->take_cost();
  }
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

double falling_gate_noise(const proto::GateSnapshot& gates, int decided) {
  const int triples = std::max(2, gates.history_size() / 10);
  if (decided < triples + 1) return 0.0;
  double most = 0.0;
  for (int layer = 0; layer < gates.alpha_size(); ++layer) {
    const auto at = [&](int step) { return gates.history(step).alpha(layer); };
    double square = 0.0;
    for (int step = decided; step > decided - triples; --step)
      square += std::pow(at(step) - 2.0 * at(step - 1) + at(step - 2), 2);
    most = std::max(most, std::sqrt(square / (6.0 * triples)));  // 1 + 4 + 1: of three independent deviations
  }
  return most;
}

std::string hash_of(const proto::PlanSet& plans) {
  proto::PlanSet hashed = plans;
  hashed.clear_provenance();
  for (proto::HybridPlan& plan : *hashed.mutable_plans()) plan.clear_judging();
  const std::string bytes = hashed.SerializeAsString();  // no maps: the same bits for the same plans
  return sha256_of_bytes(bytes.data(), bytes.size());
}

}  // namespace flashmorph
