#include "core/select/gate_budget.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace flashmorph {
namespace {

constexpr int kHalvings = 120;  // until the two ends of the search are neighbouring numbers

std::vector<double> priced(std::vector<double> gates, const std::vector<double>& costs, double price) {
  for (size_t l = 0; l < gates.size(); ++l) gates[l] = std::clamp(gates[l] - price * costs[l], 0.0, 1.0);
  return gates;
}

double cost_of(const std::vector<double>& gates, const std::vector<double>& costs) {
  return std::inner_product(gates.begin(), gates.end(), costs.begin(), 0.0);
}

double least_positive(const std::vector<double>& costs) {
  double least = std::numeric_limits<double>::infinity();
  for (const double cost : costs)
    if (cost > 0.0) least = std::min(least, cost);
  return least;
}

}  // namespace

PricedGates nearest_within(const std::vector<double>& gates, const std::vector<double>& costs, double allowed) {
  TORCH_CHECK(gates.size() == costs.size(), gates.size(), " gates for ", costs.size(), " layers");
  double low = 0.0, high = 0.0;  // prices at which every gate is 1, or 0
  for (size_t l = 0; l < gates.size(); ++l) {
    if (costs[l] == 0.0) continue;
    low = std::min(low, (gates[l] - 1.0) / costs[l]);
    high = std::max(high, gates[l] / costs[l]);
  }
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = low + (high - low) / 2.0;
    (cost_of(priced(gates, costs, middle), costs) > allowed ? low : high) = middle;
  }
  return {priced(gates, costs, high), high};
}

std::vector<double> relative_costs(const LayerBudget& budget) {
  const double sum = std::accumulate(budget.costs.begin(), budget.costs.end(), 0.0);
  TORCH_CHECK(sum > 0.0, "a budget in which no layer costs anything");
  std::vector<double> relative;
  for (const int64_t cost : budget.costs)
    relative.push_back(static_cast<double>(cost) * static_cast<double>(budget.layers()) / sum);
  return relative;
}

double gates_cost(const std::vector<double>& gates, const LayerBudget& budget) {
  return cost_of(gates, {budget.costs.begin(), budget.costs.end()});
}

double falling_allowance(const std::vector<double>& relative_costs, int64_t done, int64_t steps) {
  const auto all = static_cast<double>(relative_costs.size());
  const double share = static_cast<double>(done) / static_cast<double>(steps);
  return all * std::pow(least_positive(relative_costs) / all, share);
}

}  // namespace flashmorph
