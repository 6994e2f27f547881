#include "core/select/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<int64_t> top(const std::vector<double>& scores, int64_t keep) {
  return best_layers(scores, LayerBudget::of_layers(static_cast<int64_t>(scores.size()), keep));
}

double margin(const std::vector<double>& scores, int64_t keep) {
  return keep_margin(scores, LayerBudget::of_layers(static_cast<int64_t>(scores.size()), keep));
}

TEST(EqualCosts, KeepTheLargestInLayerOrder) {
  EXPECT_THAT(top({0.1, 0.9, 0.3, 0.8, 0.2}, 3), ElementsAre(1, 2, 3));
  EXPECT_THAT(top({0.5, 0.4}, 0), IsEmpty());
  EXPECT_THAT(top({0.5, 0.4}, 2), ElementsAre(0, 1));
}

TEST(EqualCosts, AmongEqualScoresTheLowerLayerIsKept) {
  EXPECT_THAT(top(std::vector<double>(6, 1.0), 2), ElementsAre(0, 1));
  EXPECT_THAT(top({0.0, 1.0, 0.5, 0.5, 0.5, 1.0}, 4), ElementsAre(1, 2, 3, 5));
  EXPECT_THAT(top(std::vector<double>(40, 0.0), 39), testing::Not(testing::Contains(39)));
  EXPECT_THAT(top({0.0, 0.0, 1.0, 0.0}, 2), ElementsAre(0, 2)) << "a gate at 0 still fills the budget";
}

TEST(EqualCosts, MisuseThrows) {
  EXPECT_ANY_THROW(top({0.5, 0.4}, 3));
  EXPECT_ANY_THROW(top({0.5, 0.4}, -1));
  EXPECT_ANY_THROW(top({0.5, std::nan("")}, 1));
  EXPECT_ANY_THROW(top({0.5, -0.1}, 1));
  EXPECT_ANY_THROW(best_layers({0.5}, LayerBudget::of_layers(2, 1)));
}

TEST(EqualCosts, TheMarginIsFromTheLastKeptToTheFirstDropped) {
  EXPECT_DOUBLE_EQ(margin({0.125, 1.0, 0.5, 0.75}, 2), 0.25);
  EXPECT_DOUBLE_EQ(margin({0.125, 1.0, 0.5, 0.75}, 3), 0.375);
  EXPECT_EQ(margin({0.5, 0.5, 0.5}, 1), 0.0);
  EXPECT_EQ(margin({0.1, 0.9}, 0), 0.0);
  EXPECT_EQ(margin({0.1, 0.9}, 2), 0.0);
}

// All 2^L sets, by the rule in the header.
std::vector<int64_t> by_trying_all(const std::vector<double>& scores, const LayerBudget& budget) {
  std::vector<int64_t> best;
  double best_sum = -1.0;
  for (uint64_t set = 0; set < uint64_t{1} << scores.size(); ++set) {
    std::vector<int64_t> kept;
    double sum = 0.0;
    for (size_t l = 0; l < scores.size(); ++l)
      if (set >> l & 1) {
        kept.push_back(static_cast<int64_t>(l));
        sum += scores[l];
      }
    if (!budget.allows(kept)) continue;
    const bool better = sum != best_sum              ? sum > best_sum
                        : kept.size() != best.size() ? kept.size() > best.size()
                                                     : kept < best;
    if (!better) continue;
    best = kept;
    best_sum = sum;
  }
  return best;
}

TEST(UnequalCosts, TheChoiceIsTheBestOfAllSets) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    LayerBudget budget;
    std::vector<double> scores;
    for (int l = 0; l < 9; ++l) {
      budget.costs.push_back(6 * (random() % 5));
      scores.push_back(static_cast<double>(random() % 8) / 8.0);  // eighths add up exactly, and ties are common
    }
    budget.limit = random() % 80;
    EXPECT_EQ(best_layers(scores, budget), by_trying_all(scores, budget)) << round;
  }
}

TEST(UnequalCosts, ManySmallLayersCanBeWorthMoreThanOneLargeOne) {
  const LayerBudget budget{{4, 2, 2, 3}, 4, "", ""};
  EXPECT_THAT(best_layers({0.9, 0.5, 0.5, 0.6}, budget), ElementsAre(1, 2));
  EXPECT_NEAR(keep_margin({0.9, 0.5, 0.5, 0.6}, budget), 0.1, 1e-9);  // layer 0 alone is the next best
}

std::string complaint(const BudgetSection& budget, const LayerLatency& latency = {}) {
  try {
    layer_budget(budget, {.layers = 4, .kv_heads = 2, .head_dim = 8}, 4, latency);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

TEST(LayerBudget, CountsLayersBytesOrTime) {
  const ModelSpec spec{.layers = 4, .kv_heads = 2, .head_dim = 8};
  EXPECT_EQ(layer_budget({.full_layers = 3}, spec, 4).limit, 3);
  EXPECT_EQ(layer_budget({.ratio = "3:1"}, spec, 4).limit, 1);
  const LayerBudget bytes = layer_budget({.kv_bytes_per_token = 300}, spec, 4);
  EXPECT_THAT(bytes.costs, ElementsAre(128, 128, 128, 128));
  EXPECT_THAT(best_layers({0.1, 0.4, 0.3, 0.2}, bytes), ElementsAre(1, 2));
  const LayerBudget time = layer_budget({.milliseconds = 3.5}, spec, 4, {{1.5, 2.5, 1.0, 0.25}, {0.5, 0.5, 0.5, 0.5}});
  EXPECT_THAT(time.costs, ElementsAre(1000, 2000, 500, 0));
  EXPECT_EQ(time.limit, 1500);
  EXPECT_THAT(best_layers({0.3, 0.9, 0.2, 0.0}, time), ElementsAre(0, 2, 3));
}

TEST(LayerBudget, RefusesTooLittleAndTooMuch) {
  EXPECT_THAT(complaint({.full_layers = 4}), HasSubstr("budget.full_layers: keeps full attention in 4 layers"));
  EXPECT_THAT(complaint({.kv_bytes_per_token = 127}), HasSubstr("budget.kv_bytes_per_token: leaves 127 bytes a token"));
  EXPECT_THAT(complaint({.kv_bytes_per_token = 512}), HasSubstr("the cheapest layer takes 128, all of them 512"));
  EXPECT_THAT(complaint({.milliseconds = 0.1}, {{2, 2, 2, 2}, {1, 1, 1, 1}}),
              HasSubstr("budget.milliseconds: leaves -3900"));
  EXPECT_EQ(complaint({.kv_bytes_per_token = 511}), "none");
}

}  // namespace
}  // namespace flashmorph
