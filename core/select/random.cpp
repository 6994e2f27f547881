#include "core/select/random.h"

#include "core/base/random.h"
#include "core/select/selector.h"

// Any set that fills the budget: scores by chance, a pure function of stages.select.seed.

namespace flashmorph {
namespace {

class Random : public Selector {
 public:
  Pick pick(const Evidence& evidence) const override {
    KeyedRandom random{static_cast<uint64_t>(evidence.settings.own.of<RandomSettings>().seed)};
    std::vector<double> scores(evidence.budget.layers());
    for (double& score : scores) score = random.unit();
    return {.full_layers = best_layers(scores, evidence.budget)};
  }
};

[[maybe_unused]] const bool registered = register_selector<RandomSettings>("random", std::make_unique<Random>());

}  // namespace
}  // namespace flashmorph
