#include "distributed/stages/context.h"

namespace flashmorph {

void stop_if_asked(StageContext& context, const std::string& stage, int64_t step) {
  if (context.stop.agreed(context.mesh.world()))
    throw Stopped("stopped in " + stage + " before step " + std::to_string(step + 1));
}

}  // namespace flashmorph
