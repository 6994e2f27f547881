#include "distributed/stages/frontier.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/select/by_gates.h"
#include "core/select/gate_budget.h"
#include "core/select/selector.h"

namespace flashmorph {
namespace {

double settled_noise(const proto::GateSnapshot& gates) {
  const int steps = gates.history_size(), last = std::max(2, steps / 10);
  if (steps < last) return 0.0;
  double most = 0.0;
  for (int layer = 0; layer < gates.history(0).alpha_size(); ++layer) {
    double mean = 0.0, square = 0.0;
    for (int step = steps - last; step < steps; ++step) mean += gates.history(step).alpha(layer) / last;
    for (int step = steps - last; step < steps; ++step) square += std::pow(gates.history(step).alpha(layer) - mean, 2);
    most = std::max(most, std::sqrt(square / (last - 1)));
  }
  return most;
}

double falling_noise(const proto::GateSnapshot& gates, int decided) {
  const int triples = std::max(2, gates.history_size() / 10);
  if (decided < triples + 1) return 0.0;
  double most = 0.0;
  for (int layer = 0; layer < gates.history(0).alpha_size(); ++layer) {
    const auto at = [&](int step) { return gates.history(step).alpha(layer); };
    double square = 0.0;
    for (int step = decided; step > decided - triples; --step)
      square += std::pow(at(step) - 2.0 * at(step - 1) + at(step - 2), 2);
    most = std::max(most, std::sqrt(square / (6.0 * triples)));  // 1 + 4 + 1: of three independent deviations
  }
  return most;
}

std::vector<double> alpha_of(const proto::GateStep& step) { return {step.alpha().begin(), step.alpha().end()}; }

double cost_of(const proto::GateStep& step, const LayerBudget& budget) { return gates_cost(alpha_of(step), budget); }

// What a budget comes to may be a sum of many gates.
double rounding_of(const LayerBudget& budget) {
  return 1e-9 * gates_cost(std::vector<double>(budget.costs.size(), 1.0), budget);
}

}  // namespace

int deciding_step(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget) {
  const int last = gates.history_size() - 1;
  if (section.own.of<GateSettings>().has_penalty()) return last;
  for (int step = last; step > 0; --step)
    if (cost_of(gates.history(step), budget) >= static_cast<double>(budget.limit) - rounding_of(budget)) return step;
  return 0;
}

bool has_met(const proto::GateSnapshot& gates, const LayerBudget& budget) {
  return cost_of(*gates.history().rbegin(), budget) <= static_cast<double>(budget.limit) + rounding_of(budget);
}

bool has_settled(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget) {
  const int steps = gates.history_size();
  const int64_t window = section.own.of<GateSettings>().stop;
  if (window == 0 || steps <= window) return false;
  const std::vector<double> now = alpha_of(gates.history(steps - 1));
  const std::vector<int64_t> pick = best_layers(now, budget);
  for (int step = steps - 1 - static_cast<int>(window); step < steps - 1; ++step)
    if (best_layers(alpha_of(gates.history(step)), budget) != pick) return false;
  return keep_margin(now, budget) > gate_noise(gates, section, budget);
}

double gate_noise(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget) {
  if (section.own.of<GateSettings>().has_penalty()) return settled_noise(gates);
  return falling_noise(gates, deciding_step(gates, section, budget));
}

proto::FrontierPoint pick_for(const proto::GateSnapshot& gates, const SelectSection& section, const LayerBudget& budget,
                              int64_t kv_bytes) {
  const proto::GateStep& decided = gates.history(deciding_step(gates, section, budget));
  const Pick pick = selector_named("flashmorph")
                        .pick({.settings = section,
                               .budget = budget,
                               .gates = alpha_of(decided),
                               .gate_noise = gate_noise(gates, section, budget)});
  proto::FrontierPoint point;
  point.set_budget(budget.limit);
  point.mutable_full_layers()->Add(pick.full_layers.begin(), pick.full_layers.end());
  point.set_margin(pick.margin);
  point.set_noise(pick.noise);
  point.set_kv_bytes_per_token(kv_bytes * point.full_layers_size());
  point.set_error(decided.loss() - decided.regularizer());
  return point;
}

std::vector<proto::FrontierPoint> frontier(const proto::GateSnapshot& gates, const SelectSection& section,
                                           const LayerBudget& budget, int64_t kv_bytes) {
  std::vector<proto::FrontierPoint> points;
  if (section.own.of<GateSettings>().has_penalty() || gates.history().empty()) return points;
  const int64_t all = std::accumulate(budget.costs.begin(), budget.costs.end(), int64_t{0});
  LayerBudget share = budget;
  for (int64_t kept = 1; kept < budget.layers(); ++kept) {
    share.limit = all * kept / budget.layers();
    if (!has_met(gates, share)) continue;
    points.push_back(pick_for(gates, section, share, kv_bytes));
  }
  return points;
}

}  // namespace flashmorph
