#include <algorithm>

#include "core/select/measured_layers.h"

// A layer is worth what its full attention alone does: the less the next tokens of the model with all other layers
// linear diverge from the teacher's. KL-LS ranks layers so after a short distillation of each such model; here the
// aligned branches are taken as they are.

namespace flashmorph {
namespace {

class KlLs : public Selector {
 public:
  bool needs_judge(const SelectSection&) const override { return true; }

  Pick pick(const Evidence& evidence) const override {
    std::vector<double> divergences(static_cast<size_t>(evidence.budget.layers()));
    for (int64_t layer = evidence.budget.layers() - 1; layer >= 0; --layer)
      divergences[layer] = evidence.judge({layer}).divergence;
    std::vector<double> scores;
    for (const double one : divergences) scores.push_back(std::ranges::max(divergences) - one);
    return best_pick(scores, evidence.budget);
  }
};

[[maybe_unused]] const bool registered = register_selector("kl_ls", std::make_unique<KlLs>());

}  // namespace
}  // namespace flashmorph
