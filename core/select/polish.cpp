#include "core/select/polish.h"

#include <algorithm>

#include "core/select/set_search.h"
#include "core/select/uniform.h"

namespace flashmorph {
namespace {

using Layers = std::vector<int64_t>;

// The layers at the cut: `width` of those that `is_kept`, from the lowest score up, or from the highest down.
Layers at_the_cut(const Pick& pick, bool is_kept, int64_t width) {
  Layers layers;
  for (int64_t layer = 0; layer < static_cast<int64_t>(pick.scores.size()); ++layer)
    if (std::ranges::binary_search(pick.full_layers, layer) == is_kept) layers.push_back(layer);
  const auto score = [&](int64_t layer) { return pick.scores[static_cast<size_t>(layer)]; };
  std::ranges::stable_sort(layers,
                           [&](int64_t a, int64_t b) { return is_kept ? score(a) < score(b) : score(b) < score(a); });
  layers.resize(std::min(layers.size(), static_cast<size_t>(width)));
  return layers;
}

Layers exchanged(Layers kept, int64_t out, int64_t in) {
  std::ranges::replace(kept, out, in);
  std::ranges::sort(kept);
  return kept;
}

}  // namespace

void polish(Pick& pick, const Evidence& evidence, int64_t width) {
  pick.contenders = {{"flashmorph", pick.full_layers, {}}, {"uniform", uniform_layers(evidence.budget), {}}};
  JudgedSet now;
  for (Contender& one : pick.contenders) {
    one.judgement = evidence.judge(one.full_layers);
    const JudgedSet judged{one.full_layers, one.judgement};
    if (&one == &pick.contenders.front() || judged.is_better_than(now)) now = judged;
  }
  for (;;) {
    pick.full_layers = now.full_layers;
    JudgedSet best = now;
    Exchange made;
    for (const int64_t out : at_the_cut(pick, true, width))
      for (const int64_t in : at_the_cut(pick, false, width)) {
        const Layers kept = exchanged(pick.full_layers, out, in);
        if (!evidence.budget.allows(kept)) continue;
        const JudgedSet candidate{kept, evidence.judge(kept)};
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
