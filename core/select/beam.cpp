#include "core/select/beam.h"

#include "core/select/set_search.h"

// As greedy, with several sets at a time: the placement search of PostNAS (arXiv 2508.15884), on branches that were
// aligned rather than sampled.

namespace flashmorph {
namespace {

class Beam : public Selector {
 public:
  bool needs_judge(const SelectSection&) const override { return true; }
  Pick pick(const Evidence& evidence) const override {
    return {.full_layers = beam_search(evidence, evidence.settings.own.of<BeamSettings>().beam_width).full_layers};
  }
};

[[maybe_unused]] const bool registered = register_selector<BeamSettings>("beam", std::make_unique<Beam>());

}  // namespace
}  // namespace flashmorph
