#include "distributed/stages/step.h"

#include <cmath>

namespace flashmorph {

bool StepResult::is_finite() const { return std::isfinite(loss) && std::isfinite(norm); }

bool go_in_turns(const MorphableModel& model) { return model.shard().size() > 1; }

StateShape state_shape(const MorphableModel& model, std::pair<int64_t, int64_t> rows_and_tokens) {
  const Placement& placement = model.placement();
  const auto [rows, tokens] = rows_and_tokens;
  return {{rows, model.shard().own_count(tokens), model.spec().hidden},
          at::TensorOptions(placement.dtype).device(placement.device)};
}

}  // namespace flashmorph
