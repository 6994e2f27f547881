#include "distributed/stages/gate_history.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/select/by_gates.h"
#include "core/select/selector.h"

namespace flashmorph {
namespace {

// Of a layer's gates, one behind the other.
double deviation(const std::vector<double>& gates) {
  const auto count = static_cast<double>(gates.size());
  double mean = 0.0, square = 0.0;
  for (const double gate : gates) mean += gate / count;
  for (const double gate : gates) square += std::pow(gate - mean, 2);
  return std::sqrt(square / (count - 1.0));
}

double deviation_from_trend(const std::vector<double>& gates) {
  double square = 0.0;
  for (size_t i = gates.size(); i-- > 2;) square += std::pow(gates[i] - 2.0 * gates[i - 1] + gates[i - 2], 2);
  return std::sqrt(square / (6.0 * static_cast<double>(gates.size() - 2)));  // 1 + 4 + 1: of three independent ones
}

}  // namespace

GateHistory::GateHistory(proto::GateSnapshot gates, const SelectSection& section, const LayerBudget& budget)
    : gates_(std::move(gates)),
      section_(section),
      budget_(budget),
      rounding_(1e-9 * gates_cost(std::vector<double>(budget.costs.size(), 1.0), budget)) {}

void GateHistory::record(const StepResult& step, const PricedGates& moved) {
  proto::GateStep& done = *gates_.add_history();
  done.set_step(steps());
  done.set_loss(step.loss);
  done.set_regularizer(step.regularizer);
  done.mutable_alpha()->Add(moved.gates.begin(), moved.gates.end());
  done.set_price(moved.price);
  done.set_cost(gates_cost(moved.gates, budget_));
}

int GateHistory::deciding_step() const {
  int step = steps() - 1;
  if (section_.own.of<GateSettings>().has_penalty()) return step;
  while (step > 0 && cost(step) < static_cast<double>(budget_.limit) - rounding_) --step;
  return std::max(step, 0);
}

proto::GateSnapshot GateHistory::decided() const {
  proto::GateSnapshot decided = gates_;
  if (steps() > 0) *decided.mutable_alpha() = gates_.history(deciding_step()).alpha();
  return decided;
}

std::vector<int64_t> GateHistory::top_layers() const { return best_layers(alpha(deciding_step()), budget_); }

bool GateHistory::has_met() const { return cost(steps() - 1) <= static_cast<double>(budget_.limit) + rounding_; }

bool GateHistory::has_settled() const {
  const int64_t window = section_.own.of<GateSettings>().stop;
  if (window == 0 || steps() <= window) return false;
  const std::vector<double> now = alpha(steps() - 1);
  const std::vector<int64_t> pick = best_layers(now, budget_);
  for (int step = steps() - 1 - static_cast<int>(window); step < steps() - 1; ++step)
    if (best_layers(alpha(step), budget_) != pick) return false;
  return keep_margin(now, budget_) > noise();
}

double GateHistory::noise() const {
  const bool has_penalty = section_.own.of<GateSettings>().has_penalty();
  const int last = deciding_step(), count = std::max(2, steps() / 10) + (has_penalty ? 0 : 2);
  if (last + 1 < count) return 0.0;
  double most = 0.0;
  for (int layer = 0; layer < gates_.history(0).alpha_size(); ++layer) {
    std::vector<double> gates;
    for (int step = last + 1 - count; step <= last; ++step) gates.push_back(gates_.history(step).alpha(layer));
    most = std::max(most, has_penalty ? deviation(gates) : deviation_from_trend(gates));
  }
  return most;
}

proto::FrontierPoint GateHistory::pick(int64_t kv_bytes) const {
  const int step = deciding_step();
  const Pick pick = selector_named("flashmorph")
                        .pick({.settings = section_, .budget = budget_, .gates = alpha(step), .gate_noise = noise()});
  proto::FrontierPoint point;
  point.set_budget(budget_.limit);
  point.mutable_full_layers()->Add(pick.full_layers.begin(), pick.full_layers.end());
  point.set_margin(pick.margin);
  point.set_noise(pick.noise);
  point.set_kv_bytes_per_token(kv_bytes * point.full_layers_size());
  point.set_error(gates_.history(step).loss() - gates_.history(step).regularizer());
  return point;
}

std::vector<proto::FrontierPoint> GateHistory::frontier(int64_t kv_bytes) const {
  std::vector<proto::FrontierPoint> points;
  if (section_.own.of<GateSettings>().has_penalty() || steps() == 0) return points;
  const int64_t all = std::accumulate(budget_.costs.begin(), budget_.costs.end(), int64_t{0});
  LayerBudget share = budget_;
  const GateHistory history(gates_, section_, share);
  for (int64_t kept = 1; kept < share.layers(); ++kept) {
    share.limit = all * kept / share.layers();
    if (history.has_met()) points.push_back(history.pick(kv_bytes));
  }
  return points;
}

std::vector<double> GateHistory::alpha(int step) const {
  return {gates_.history(step).alpha().begin(), gates_.history(step).alpha().end()};
}

double GateHistory::cost(int step) const { return gates_cost(alpha(step), budget_); }

}  // namespace flashmorph
