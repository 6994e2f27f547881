#include "distributed/stages/context.h"

#include <cmath>

namespace flashmorph {

void stop_if_asked(StageContext& context, const std::string& stage, int64_t step) {
  if (context.stop.agreed(context.mesh.world()))
    throw Stopped("stopped in " + stage + " before step " + std::to_string(step + 1));
}

void require_finite(double value, const std::string& stage, const std::string& what, int64_t step) {
  if (!std::isfinite(value))
    throw std::runtime_error(stage + ", step " + std::to_string(step + 1) + ": the " + what + " is " +
                             std::to_string(value) + "; nothing was updated. A lower lr or a longer warm-up may help");
}

}  // namespace flashmorph
