#include "core/select/polish.h"

#include <algorithm>
#include <ranges>

#include "core/select/set_search.h"
#include "core/select/uniform.h"

namespace flashmorph {
namespace {

constexpr int64_t kFewKept = 8;

using Layers = std::vector<int64_t>;

JudgedSet judged(const Layers& kept, const Evidence& evidence) { return {kept, evidence.judge(kept)}; }

Layers exchanged(Layers kept, int64_t out, int64_t in) {
  std::ranges::replace(kept, out, in);
  std::ranges::sort(kept);
  return kept;
}

// In whose place the budget allows the layer, the last one first.
Layers exchangeable(const Layers& kept, int64_t in, const LayerBudget& budget) {
  Layers layers;
  for (const int64_t out : std::views::reverse(kept))
    if (budget.allows(exchanged(kept, out, in))) layers.push_back(out);
  return layers;
}

// The dropped layers with which the set does best when they are added to it, whatever they cost there.
Layers strongest_outside(const Layers& kept, const Evidence& evidence, int64_t width) {
  std::vector<std::pair<JudgedSet, int64_t>> added;
  for (int64_t layer = evidence.budget.layers() - 1; layer >= 0; --layer)
    if (!std::ranges::binary_search(kept, layer) && !exchangeable(kept, layer, evidence.budget).empty())
      added.emplace_back(judged(with_layer(kept, layer), evidence), layer);
  std::ranges::sort(added, [](const auto& a, const auto& b) { return a.first.is_better_than(b.first); });
  Layers layers;
  for (const auto& [set, layer] : added) layers.push_back(layer);
  layers.resize(std::min(layers.size(), static_cast<size_t>(width)));
  return layers;
}

JudgedSet best_contender(std::vector<Contender>& contenders, const Evidence& evidence) {
  JudgedSet best;
  for (Contender& one : contenders) {
    const JudgedSet set = judged(one.full_layers, evidence);
    one.judgement = set.judgement;
    if (&one == &contenders.front() || set.is_better_than(best)) best = set;
  }
  return best;
}

}  // namespace

void polish(Pick& pick, const Evidence& evidence, int64_t candidates) {
  pick.contenders = {{"flashmorph", pick.full_layers, {}},
                     {"uniform", uniform_layers(evidence.budget), {}},
                     {"ablate", selector_named("ablate").pick(evidence).full_layers, {}}};
  JudgedSet now = best_contender(pick.contenders, evidence);
  for (;;) {
    pick.full_layers = now.full_layers;
    const auto kept = static_cast<int64_t>(now.full_layers.size());
    const int64_t width = std::max(candidates, (candidates * kFewKept + kept - 1) / kept);
    JudgedSet best = now;
    Exchange made;
    for (const int64_t in : strongest_outside(now.full_layers, evidence, width))
      for (const int64_t out : exchangeable(now.full_layers, in, evidence.budget)) {
        const JudgedSet candidate = judged(exchanged(now.full_layers, out, in), evidence);
        if (!candidate.is_better_than(best)) continue;
        best = candidate;
        made = {out, in, now.judgement, best.judgement};
      }
    if (best.full_layers == now.full_layers) return;
    pick.exchanges.push_back(made);
    now = best;
  }
}

}  // namespace flashmorph
