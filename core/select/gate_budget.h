#pragma once

#include <cstdint>
#include <vector>

#include "core/select/budget.h"

namespace flashmorph {

// Gates that cost what is allowed, and the price that makes them do so.
struct PricedGates {
  std::vector<double> gates;
  double price = 0.0;  // of a unit of cost, in gates
};

// The point of [0, 1]^L nearest to `gates` with sum_l costs_l gates_l = allowed. By the conditions of Karush, Kuhn and
// Tucker it is clamp(gates_l - price costs_l, 0, 1) for the one price that spends exactly `allowed`.
// costs: at least 0 and not all 0; allowed: from 0 to their sum.
PricedGates nearest_within(const std::vector<double>& gates, const std::vector<double>& costs, double allowed);

// The budget's costs a layer, in units of their mean.
std::vector<double> relative_costs(const LayerBudget& budget);

// What the gates cost, in the budget's unit.
double gates_cost(const std::vector<double>& gates, const LayerBudget& budget);

// What the gates may cost after `done` of `steps` steps, in the same unit: from all layers down to the cheapest, by the
// same share in every step. One run passes every budget, and is longest among those where few layers are left and each
// counts.
double falling_allowance(const std::vector<double>& relative_costs, int64_t done, int64_t steps);

}  // namespace flashmorph
