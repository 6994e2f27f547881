#include "core/select/budget.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <compare>
#include <numeric>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr double kTimeSteps = 20000.0;
constexpr double kSteps = 1099511627776.0;  // 2^40 a unit of score: sums are whole numbers, so that ties are ties

struct Worth {  // of a set of layers; compared in this order
  int64_t score = 0;
  int64_t layers = 0;
  auto operator<=>(const Worth&) const = default;
  Worth operator+(const Worth& other) const { return {score + other.score, layers + other.layers}; }
};

// best[l][c]: the most that layers l.. are worth at a cost of at most c. From the last layer up, so that the choice can
// be read off from layer 0 on, each layer kept when that is as good.
class Knapsack {
 public:
  Knapsack(const std::vector<double>& scores, const std::vector<int64_t>& costs, int64_t limit)
      : scores_(scores),
        costs_(costs),
        limit_(limit),
        best_(scores.size() + 1, std::vector<Worth>(static_cast<size_t>(limit) + 1)) {
    for (int64_t l = static_cast<int64_t>(scores.size()) - 1; l >= 0; --l)
      for (int64_t c = 0; c <= limit; ++c) best_[l][c] = std::max(best_[l + 1][c], kept(l, c));
  }

  Worth worth() const { return best_[0][limit_]; }

  std::vector<int64_t> layers() const {
    std::vector<int64_t> layers;
    for (int64_t l = 0, c = limit_; l < static_cast<int64_t>(scores_.size()); ++l) {
      if (costs_[l] > c || kept(l, c) < best_[l + 1][c]) continue;
      layers.push_back(l);
      c -= costs_[l];
    }
    return layers;
  }

 private:
  Worth kept(int64_t l, int64_t c) const {
    if (costs_[l] > c) return {-1, 0};
    return best_[l + 1][c - costs_[l]] + Worth{std::llround(scores_[l] * kSteps), 1};
  }

  const std::vector<double>& scores_;
  const std::vector<int64_t>& costs_;
  int64_t limit_;
  std::vector<std::vector<Worth>> best_;
};

// The same choices with smaller numbers: costs by their common divisor, and no more than all of them together.
LayerBudget reduced(LayerBudget budget) {
  const int64_t divisor = std::max<int64_t>(
      1, std::accumulate(budget.costs.begin(), budget.costs.end(), int64_t{0}, std::gcd<int64_t, int64_t>));
  for (int64_t& cost : budget.costs) cost /= divisor;
  const int64_t all = std::accumulate(budget.costs.begin(), budget.costs.end(), int64_t{0});
  budget.limit = std::min(budget.limit / divisor, all);
  return budget;
}

Knapsack solved(const std::vector<double>& scores, const LayerBudget& budget) {
  return {scores, budget.costs, budget.limit};
}

void check_scores(const std::vector<double>& scores, const LayerBudget& budget) {
  TORCH_CHECK(scores.size() == budget.costs.size(), scores.size(), " scores for ", budget.costs.size(), " layers");
  TORCH_CHECK(std::ranges::all_of(scores, [](double score) { return std::isfinite(score) && score >= 0.0; }),
              "a score is not a number from 0 up");
}

LayerBudget cache_bytes(const BudgetSection& budget, const ModelSpec& spec, int64_t element_bytes) {
  return {std::vector<int64_t>(spec.layers, spec.kv_bytes(element_bytes)), budget.kv_bytes_per_token, "bytes a token",
          "budget.kv_bytes_per_token"};
}

LayerBudget microseconds(const BudgetSection& budget, const LayerLatency& latency) {
  LayerBudget in_time{{}, 0, "microseconds", "budget.milliseconds"};
  std::vector<double> extra;
  for (size_t l = 0; l < latency.full.size(); ++l)
    extra.push_back(std::max(0.0, 1000.0 * (latency.full[l] - latency.linear[l])));
  const double all = std::accumulate(extra.begin(), extra.end(), 0.0);
  const int64_t step = 1 + static_cast<int64_t>(all / kTimeSteps);  // finer than any clock repeats itself
  for (const double one : extra) in_time.costs.push_back(step * std::llround(one / static_cast<double>(step)));
  const double all_linear = std::accumulate(latency.linear.begin(), latency.linear.end(), 0.0);
  in_time.limit = static_cast<int64_t>(std::floor(1000.0 * (budget.milliseconds - all_linear)));
  return in_time;
}

}  // namespace

LayerBudget LayerBudget::of_layers(int64_t layers, int64_t keep) {
  TORCH_CHECK(keep >= 0 && keep <= layers, "cannot keep ", keep, " of ", layers, " layers");
  return {std::vector<int64_t>(layers, 1), keep, "layers", "budget.full_layers"};
}

bool LayerBudget::allows(const std::vector<int64_t>& kept) const {
  int64_t cost = 0;
  for (const int64_t layer : kept) cost += costs.at(layer);
  return cost <= limit;
}

LayerBudget layer_budget(const BudgetSection& budget, const ModelSpec& spec, int64_t element_bytes,
                         const LayerLatency& latency) {
  if (budget.counts_layers()) {
    LayerBudget counted = LayerBudget::of_layers(spec.layers, budget.full_layers_of(spec.layers));
    if (!budget.ratio.empty()) counted.key = "budget.ratio";
    return counted;
  }
  const LayerBudget found =
      budget.milliseconds > 0.0 ? microseconds(budget, latency) : cache_bytes(budget, spec, element_bytes);
  const int64_t cheapest = std::ranges::min(found.costs),
                all = std::accumulate(found.costs.begin(), found.costs.end(), int64_t{0});
  if (found.limit < cheapest || found.limit >= all)
    throw BadInput(found.key, "leaves " + std::to_string(found.limit) + " " + found.unit +
                                  " for full attention; the cheapest layer takes " + std::to_string(cheapest) +
                                  ", all of them " + std::to_string(all) +
                                  ": expected from the one to less than the other");
  return found;
}

std::vector<int64_t> best_layers(const std::vector<double>& scores, const LayerBudget& budget) {
  check_scores(scores, budget);
  return solved(scores, reduced(budget)).layers();
}

double keep_margin(const std::vector<double>& scores, const LayerBudget& budget) {
  check_scores(scores, budget);
  const LayerBudget small = reduced(budget);
  const Knapsack best = solved(scores, small);
  const std::vector<int64_t> kept = best.layers();
  if (kept.empty() || kept.size() == scores.size()) return 0.0;
  int64_t next_best = -1;
  for (const int64_t layer : kept) {
    LayerBudget without = small;
    without.costs[layer] = small.limit + 1;
    next_best = std::max(next_best, solved(scores, without).worth().score);
  }
  return static_cast<double>(best.worth().score - next_best) / kSteps;
}

}  // namespace flashmorph
