#include "core/select/by_gates.h"
#include "core/select/selector.h"

// FlashMorph's own: the layers with the largest gates.

namespace flashmorph {
namespace {

class ByGates : public Selector {
 public:
  bool needs_gates() const override { return true; }

  Pick pick(const Evidence& evidence) const override {
    return {.full_layers = best_layers(evidence.gates, evidence.budget),
            .scores = evidence.gates,
            .margin = keep_margin(evidence.gates, evidence.budget),
            .noise = evidence.gate_noise};
  }
};

[[maybe_unused]] const bool registered = register_selector<GateSettings>("flashmorph", std::make_unique<ByGates>());

}  // namespace
}  // namespace flashmorph
