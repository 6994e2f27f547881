#include "core/select/uniform.h"

#include <c10/util/Exception.h>

#include "core/select/selector.h"

namespace flashmorph {
namespace {

class Uniform : public Selector {
 public:
  Pick pick(const Evidence& evidence) const override { return {.full_layers = uniform_layers(evidence.budget)}; }
};

[[maybe_unused]] const bool registered = register_selector("uniform", std::make_unique<Uniform>());

}  // namespace

std::vector<int64_t> uniform_layers(int64_t layers, int64_t keep) {
  TORCH_CHECK(keep >= 0 && keep <= layers, "cannot keep ", keep, " of ", layers, " layers");
  std::vector<int64_t> kept;
  for (int64_t k = 0; k < keep; ++k) kept.push_back((2 * k + 1) * layers / (2 * keep));
  return kept;
}

std::vector<int64_t> uniform_layers(const LayerBudget& budget) {
  for (int64_t keep = budget.layers(); keep > 0; --keep)
    if (const std::vector<int64_t> kept = uniform_layers(budget.layers(), keep); budget.allows(kept)) return kept;
  return {};
}

}  // namespace flashmorph
