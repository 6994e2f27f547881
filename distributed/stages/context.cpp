#include "distributed/stages/context.h"

namespace flashmorph {

void stop_if_asked(StageContext& context, const std::string& stage, int64_t step) {
  if (const StopReason reason = context.stop.agreed(context.mesh.world()); reason != StopReason::none)
    throw Stopped("stopped in " + stage + " before step " + std::to_string(step + 1) + ": " + text_of(reason));
}

}  // namespace flashmorph
