#include "core/base/bad_input.h"
#include "core/select/by_gates.h"
#include "core/select/selector.h"

// FlashMorph's own: the layers with the largest gates.

namespace flashmorph {
namespace {

class ByGates : public Selector {
 public:
  bool needs_gates() const override { return true; }

  void check(const SelectSection& settings, const LayerBudget&) const override {
    const auto& gates = settings.own.of<GateSettings>();
    if (!gates.has_penalty() && gates.gate_penalty != GateSettings().gate_penalty)
      throw BadInput("stages.select.gate_penalty",
                     "is set, but a falling budget moves the gates: leave it out, or ask for stages.select.objective: "
                     "paper");
  }

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
