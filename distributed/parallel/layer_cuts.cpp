#include "distributed/parallel/layer_cuts.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// cost(first, last) of one rank that holds these layers and whatever comes with them.
class RankCost {
 public:
  explicit RankCost(const PartCosts& costs) : costs_(costs), until_(1, 0.0) {
    for (const double layer : costs.layers) until_.push_back(until_.back() + layer);
  }
  int64_t layers() const { return static_cast<int64_t>(costs_.layers.size()); }
  double operator()(int64_t first, int64_t last) const {
    return until_[last] - until_[first] + (first == 0 ? costs_.embedding : 0.0) +
           (last == layers() ? costs_.head : 0.0);
  }

 private:
  const PartCosts& costs_;
  std::vector<double> until_;
};

// best[r][l]: the least total of value(first, last) when layers l.. go to ranks r.., one non-empty range each; `join`
// puts a range and the rest together. next[r][l]: where rank r's range then ends, the smallest among equals.
struct Table {
  std::vector<std::vector<double>> best;
  std::vector<std::vector<int64_t>> next;
};

template <class Value, class Join>
Table least(int64_t ranks, int64_t layers, Value value, Join join) {
  Table table{std::vector(ranks + 1, std::vector(layers + 1, kNever)),
              std::vector(ranks + 1, std::vector<int64_t>(layers + 1, layers))};
  table.best[ranks][layers] = 0.0;
  for (int64_t rank = ranks - 1; rank >= 0; --rank)
    for (int64_t first = 0; first < layers; ++first)
      for (int64_t last = first + 1; last <= layers; ++last) {
        const double total = join(value(first, last), table.best[rank + 1][last]);
        if (total >= table.best[rank][first]) continue;
        table.best[rank][first] = total;
        table.next[rank][first] = last;
      }
  return table;
}

}  // namespace

std::vector<LayerRange> balanced_layers(const PartCosts& costs, int64_t ranks) {
  const RankCost cost(costs);
  const int64_t layers = cost.layers();
  TORCH_CHECK(1 <= ranks && ranks <= layers, layers, " layers over ", ranks, " pipeline ranks");
  const double most =
      least(ranks, layers, cost, [](double here, double rest) { return std::max(here, rest); }).best[0][0];
  const double limit = most * (1.0 + 1e-12);
  const Table even = least(
      ranks, layers,
      [&](int64_t first, int64_t last) {
        const double here = cost(first, last);
        return here <= limit ? here * here : kNever;
      },
      [](double here, double rest) { return here + rest; });
  std::vector<LayerRange> ranges;
  for (int64_t rank = 0, first = 0; rank < ranks; first = ranges[rank++].last)
    ranges.push_back({first, even.next[rank][first]});
  return ranges;
}

std::vector<LayerRange> layers_cut_at(const std::vector<int64_t>& cuts, int64_t layers, int64_t ranks,
                                      const std::string& key) {
  std::vector<LayerRange> ranges = {{0, layers}};
  for (const int64_t cut : cuts) {
    if (cut <= ranges.back().first || cut >= layers)
      throw BadInput(key, "cuts before layer " + std::to_string(cut) + ", expected ascending layers in [1, " +
                              std::to_string(layers - 1) + "]");
    ranges.back().last = cut;
    ranges.push_back({cut, layers});
  }
  if (static_cast<int64_t>(ranges.size()) != ranks)
    throw BadInput(key, "has " + std::to_string(cuts.size()) + " cuts, expected " + std::to_string(ranks - 1) +
                            " for " + std::to_string(ranks) + " pipeline ranks");
  return ranges;
}

}  // namespace flashmorph
