#include "core/select/polish.h"

#include <algorithm>
#include <ranges>

#include "core/select/set_search.h"
#include "core/select/uniform.h"

namespace flashmorph {
namespace {

constexpr int64_t kFewKept = 8;
constexpr size_t kFinalists = 4;

using Layers = std::vector<int64_t>;

// An exchange that was tried, and what it leaves.
struct Tried {
  int64_t out, in;
  JudgedSet set;
};

JudgedSet judged(const Layers& kept, const Judge& judge) { return {kept, judge(kept)}; }

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
      added.emplace_back(judged(with_layer(kept, layer), evidence.judge), layer);
  std::ranges::sort(added, &JudgedSet::is_better_than, &std::pair<JudgedSet, int64_t>::first);
  Layers layers;
  for (const auto& [set, layer] : added) layers.push_back(layer);
  layers.resize(std::min(layers.size(), static_cast<size_t>(width)));
  return layers;
}

// The best exchanges, as judged; judged closely, where that is asked for.
std::vector<Tried> finalists(const Layers& kept, const Evidence& evidence, int64_t width) {
  std::vector<Tried> tried;
  for (const int64_t in : strongest_outside(kept, evidence, width))
    for (const int64_t out : exchangeable(kept, in, evidence.budget))
      tried.push_back({out, in, judged(exchanged(kept, out, in), evidence.judge)});
  std::ranges::sort(tried, &JudgedSet::is_better_than, &Tried::set);
  tried.resize(std::min(tried.size(), kFinalists));
  if (!evidence.judge_closely) return tried;
  std::ranges::sort(tried, {}, [](const Tried& one) { return one.set.full_layers; });  // so that neighbours differ late
  for (Tried& one : tried) one.set = judged(one.set.full_layers, evidence.judge_closely);
  return tried;
}

JudgedSet best_contender(std::vector<Contender>& contenders, const Evidence& evidence) {
  JudgedSet best;
  for (Contender& one : contenders) {
    const JudgedSet set = judged(one.full_layers, evidence.judge_closely ? evidence.judge_closely : evidence.judge);
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
    for (const Tried& one : finalists(now.full_layers, evidence, width)) {
      if (!one.set.is_better_than(best)) continue;
      best = one.set;
      made = {one.out, one.in, now.judgement, best.judgement};
    }
    if (best.full_layers == now.full_layers) return;
    pick.exchanges.push_back(made);
    now = best;
  }
}

}  // namespace flashmorph
