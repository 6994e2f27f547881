#include "core/select/set_search.h"

#include <algorithm>
#include <ranges>
#include <set>

namespace flashmorph {
namespace {

using Layers = std::vector<int64_t>;

// The sets of one layer more that the budget allows.
std::vector<Layers> grown(const Layers& kept, const LayerBudget& budget) {
  std::vector<Layers> sets;
  for (int64_t layer = 0; layer < budget.layers(); ++layer)
    if (!std::ranges::binary_search(kept, layer))
      if (Layers more = with_layer(kept, layer); budget.allows(more)) sets.push_back(std::move(more));
  return sets;
}

// Adds to a set only layers behind its last one: each set comes up once.
void fill(const Layers& kept, const LayerBudget& budget, int64_t most, std::vector<Layers>& filled) {
  if (static_cast<int64_t>(filled.size()) > most) return;
  if (grown(kept, budget).empty()) filled.push_back(kept);
  for (int64_t layer = kept.empty() ? 0 : kept.back() + 1; layer < budget.layers(); ++layer)
    if (const Layers more = with_layer(kept, layer); budget.allows(more)) fill(more, budget, most, filled);
}

}  // namespace

Layers with_layer(const Layers& kept, int64_t layer) {
  Layers more = kept;
  more.insert(std::ranges::upper_bound(more, layer), layer);
  return more;
}

bool JudgedSet::is_better_than(const JudgedSet& other) const {
  if (judgement.recall != other.judgement.recall) return judgement.recall > other.judgement.recall;
  if (judgement.error != other.judgement.error) return judgement.error < other.judgement.error;
  return full_layers < other.full_layers;
}

JudgedSet beam_search(const Evidence& evidence, int64_t width) {
  std::vector<JudgedSet> beam(1), complete;
  while (!beam.empty()) {
    std::set<Layers> candidates;
    for (const JudgedSet& one : beam) {
      const std::vector<Layers> more = grown(one.full_layers, evidence.budget);
      if (more.empty()) complete.push_back(one);
      candidates.insert(more.begin(), more.end());
    }
    beam.clear();
    for (const Layers& candidate : std::views::reverse(candidates))
      beam.push_back({candidate, evidence.judge(candidate)});
    std::ranges::sort(beam, &JudgedSet::is_better_than);
    beam.resize(std::min(beam.size(), static_cast<size_t>(width)));
  }
  return *std::ranges::min_element(complete, &JudgedSet::is_better_than);
}

std::vector<Layers> filled_sets(const LayerBudget& budget, int64_t most) {
  std::vector<Layers> filled;
  fill({}, budget, most, filled);
  return filled;
}

}  // namespace flashmorph
