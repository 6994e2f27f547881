#include "core/select/exhaustive.h"

#include <fmt/format.h>

#include <optional>

#include "core/base/bad_input.h"
#include "core/select/set_search.h"

// Every set that fills the budget: the truth that other methods are compared with, where there are few layers.

namespace flashmorph {
namespace {

class Exhaustive : public Selector {
 public:
  bool needs_judge(const SelectSection&) const override { return true; }

  void check(const SelectSection& settings, const LayerBudget& budget) const override {
    if (static_cast<int64_t>(filled_sets(budget, settings.own.of<ExhaustiveSettings>().most_sets).size()) >
        settings.own.of<ExhaustiveSettings>().most_sets)
      throw BadInput(
          "stages.select.method",
          fmt::format("exhaustive would judge more than {} sets of {} layers that fill {} {}; raise "
                      "stages.select.most_sets, or take beam",
                      settings.own.of<ExhaustiveSettings>().most_sets, budget.layers(), budget.limit, budget.unit));
  }

  Pick pick(const Evidence& evidence) const override {
    std::optional<JudgedSet> best;
    for (const std::vector<int64_t>& kept :
         filled_sets(evidence.budget, evidence.settings.own.of<ExhaustiveSettings>().most_sets)) {
      const JudgedSet judged{kept, evidence.judge(kept)};
      if (!best || judged.is_better_than(*best)) best = judged;
    }
    return {.full_layers = best->full_layers};
  }
};

[[maybe_unused]] const bool registered =
    register_selector<ExhaustiveSettings>("exhaustive", std::make_unique<Exhaustive>());

}  // namespace
}  // namespace flashmorph
