#include "core/base/bad_input.h"
#include "core/select/by_gates.h"
#include "core/select/polish.h"
#include "core/select/selector.h"

// FlashMorph's own: the layers with the largest gates; polished, where that is asked for.

namespace flashmorph {
namespace {

class ByGates : public Selector {
 public:
  bool needs_gates() const override { return true; }
  bool needs_judge(const SelectSection& settings) const override { return settings.own.of<GateSettings>().polish > 0; }

  void check(const SelectSection& settings, const LayerBudget&) const override {
    const auto& gates = settings.own.of<GateSettings>();
    if (!gates.has_penalty() && gates.gate_penalty != GateSettings().gate_penalty)
      throw BadInput("stages.select.gate_penalty",
                     "is set, but a falling budget moves the gates: leave it out, or ask for stages.select.objective: "
                     "paper");
  }

  Pick pick(const Evidence& evidence) const override {
    Pick pick = best_pick(evidence.gates, evidence.budget);
    pick.noise = evidence.gate_noise;
    if (const int64_t width = evidence.settings.own.of<GateSettings>().polish; width > 0 && evidence.judge)
      polish(pick, evidence, width);
    return pick;
  }
};

[[maybe_unused]] const bool registered = register_selector<GateSettings>("flashmorph", std::make_unique<ByGates>());

}  // namespace
}  // namespace flashmorph
