#include "core/select/set_search.h"

// Layer by layer, each time the one with which the hard mixture does best.

namespace flashmorph {
namespace {

class Greedy : public Selector {
 public:
  bool needs_judge(const SelectSection&) const override { return true; }
  Pick pick(const Evidence& evidence) const override { return {.full_layers = beam_search(evidence, 1).full_layers}; }
};

[[maybe_unused]] const bool registered = register_selector("greedy", std::make_unique<Greedy>());

}  // namespace
}  // namespace flashmorph
