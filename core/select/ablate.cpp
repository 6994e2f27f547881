#include <algorithm>

#include "core/select/measured_layers.h"

// A layer is worth what the teacher's recall loses without its full attention, all other layers keeping theirs.

namespace flashmorph {
namespace {

// Recall is a share of some hundred words: far below the smallest step between two of them, a layer's error decides.
constexpr double kTie = 0x1p-20;

class Ablate : public Selector {
 public:
  bool needs_judge(const SelectSection&) const override { return true; }

  Pick pick(const Evidence& evidence) const override {
    const double whole = evidence.judge(all_layers(evidence.budget.layers())).recall;
    const std::vector<Judgement> without = each_layer_linear(evidence.judge, evidence.budget.layers());
    const double most_error = std::ranges::max(without, {}, &Judgement::error).error;
    std::vector<double> scores;
    for (const Judgement& one : without)
      scores.push_back(std::max(0.0, whole - one.recall) + (most_error > 0.0 ? kTie * one.error / most_error : 0.0));
    return best_pick(scores, evidence.budget);
  }
};

[[maybe_unused]] const bool registered = register_selector("ablate", std::make_unique<Ablate>());

}  // namespace
}  // namespace flashmorph
