#include "distributed/stages/context.h"

namespace flashmorph {

StageCheckpoints checkpoints_of(StageContext& context, Regions regions) {
  return {context.checkpoints,
          context.config.checkpoint,
          context.mesh,
          std::move(regions),
          {.warn = [&observer = context.observer](const std::string& warning) { observer.warn(warning); },
           .saved = [&observer = context.observer](int64_t step, double seconds) { observer.saved(step, seconds); }}};
}

void advance(proto::StageProgress& progress, const Stopwatch& watch, double loss) {
  progress.set_step(progress.step() + 1);
  progress.set_seconds(watch.seconds());
  progress.set_loss(loss);
}

void stop_if_asked(StageContext& context, const std::string& stage, int64_t step) {
  if (const StopReason reason = context.stop.agreed(context.mesh.world()); reason != StopReason::none)
    throw Stopped("stopped in " + stage + " before step " + std::to_string(step + 1) + ": " + text_of(reason));
}

void stop_if_asked(StageContext& context, const std::string& stage, StageCheckpoints& checkpoints,
                   const proto::StageProgress& progress) {
  const StopReason reason = context.stop.agreed(context.mesh.world(), checkpoints.seconds_of_last_save());
  if (reason == StopReason::none) return;
  const Phase saving(context.watchdog, Work::save, stage, progress.step());
  const std::string saved = checkpoints.save(progress);
  throw Stopped("stopped in " + stage + " after step " + std::to_string(progress.step()) + ": " + text_of(reason) +
                "; " + saved);
}

}  // namespace flashmorph
