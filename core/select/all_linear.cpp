#include "core/select/selector.h"

// No layer keeps full attention: what the linear branches can do alone.

namespace flashmorph {
namespace {

class AllLinear : public Selector {
 public:
  Pick pick(const Evidence&) const override { return {}; }
};

[[maybe_unused]] const bool registered = register_selector("all_linear", std::make_unique<AllLinear>());

}  // namespace
}  // namespace flashmorph
