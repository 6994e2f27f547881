#include "core/select/gate_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace flashmorph {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::Pointwise;

double squared_distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t l = 0; l < a.size(); ++l) sum += (a[l] - b[l]) * (a[l] - b[l]);
  return sum;
}

TEST(NearestWithin, SpendsWhatIsAllowedAtOnePrice) {
  const PricedGates half = nearest_within({1.0, 1.0, 1.0, 1.0}, {1.0, 1.0, 1.0, 1.0}, 2.0);
  EXPECT_THAT(half.gates, Pointwise(DoubleNear(1e-12), {0.5, 0.5, 0.5, 0.5}));
  EXPECT_NEAR(half.price, 0.5, 1e-12);
  EXPECT_THAT(nearest_within({0.9, 0.2, 1.5}, {1.0, 1.0, 1.0}, 1.3).gates,
              Pointwise(DoubleNear(1e-12), {0.35, 0.0, 0.95}))  // by hand: at a price of 0.55
      << "no gate leaves [0, 1]";
}

// No other allowed point is nearer: steps along the budget from the answer, and random points of it.
TEST(NearestWithin, IsNearestOfAllAllowedPoints) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> any(-0.5, 1.5), share(0.05, 0.95);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> gates, costs;
    for (int l = 0; l < 6; ++l) {
      gates.push_back(any(random));
      costs.push_back(l == 5 ? 0.0 : 0.5 + std::abs(any(random)));
    }
    double all = 0.0;
    for (const double cost : costs) all += cost;
    const double allowed = share(random) * all;
    const PricedGates found = nearest_within(gates, costs, allowed);
    double spent = 0.0;
    for (size_t l = 0; l < costs.size(); ++l) spent += costs[l] * found.gates[l];
    ASSERT_NEAR(spent, allowed, 1e-9);
    for (size_t a = 0; a < 5; ++a)
      for (size_t b = 0; b < 5; ++b) {
        std::vector<double> other = found.gates;
        other[a] += 1e-3 / costs[a];
        other[b] -= 1e-3 / costs[b];
        if (a == b || other[a] > 1.0 || other[b] < 0.0) continue;
        EXPECT_GE(squared_distance(other, gates), squared_distance(found.gates, gates) - 1e-12);
      }
    EXPECT_EQ(found.gates[5], std::clamp(gates[5], 0.0, 1.0)) << "what costs nothing has no price";
  }
}

TEST(FallingAllowance, PassesEveryBudgetFromAllLayersToTheCheapest) {
  const std::vector<double> costs = relative_costs({{100, 300, 0, 400}, 500, "", ""});
  EXPECT_THAT(costs, ElementsAre(0.5, 1.5, 0.0, 2.0));
  EXPECT_EQ(falling_allowance(costs, 0, 7), 4.0);
  EXPECT_EQ(falling_allowance(costs, 7, 7), 0.5);
  EXPECT_NEAR(falling_allowance(costs, 3, 7), 4.0 * std::pow(0.5 / 4.0, 3.0 / 7.0), 1e-12);
  EXPECT_EQ(gates_cost({1.0, 0.5, 1.0, 0.25}, {{100, 300, 0, 400}, 500, "", ""}), 350.0);
}

}  // namespace
}  // namespace flashmorph
